"""UniPC: a multistep predictor and corrector of any order."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vdt_jax.diffusion.gaussian import DenoiseFn, GaussianDiffusion
from vdt_jax.diffusion.masks import apply_mask
from vdt_jax.diffusion.samplers.common import Loop, denoise, start_noise
from vdt_jax.diffusion.samplers.multistep import levels, polynomial_weights
from vdt_jax.diffusion.schedules import NoiseSchedule, Table, at


def unipc(
    diffusion: GaussianDiffusion,
    denoise_fn: DenoiseFn,
    keys: Key[Array, " b"],
    clean: Float[Array, "b f h w c"],
    mask: Float[Array, "b f h w 1"],
    *,
    start: Float[Array | np.ndarray, "b f h w c"] | None = None,
    order: int = 2,
    loop: Loop = jax.lax.fori_loop,
) -> Float[Array, "b f h w c"]:
    """UniPC-p (Zhao et al. 2023, algorithms 1 and 2, arXiv 2302.04867), with masks; multistep, on estimates of x_0.

    At each level the network is called once, at the predicted x_i, and its estimate m_i is used twice: to correct x_i,
    and to predict x_{i+1}.

        correct:  x_i = (sigma_i / sigma_{i-1}) x_{i-1} + weights of (1) for m_i, m_{i-1}, ..., m_{i-p}
        predict:  x_{i+1} = (sigma_{i+1} / sigma_i) x_i + weights of (1) for m_i, ..., m_{i-p+1}

    (1) is in `multistep`. The weights solve the paper's order conditions exactly, so its free function B(h) cancels.
    The correction makes the order p + 1 (theorem 3.1); the first steps have fewer estimates, and so a lower order.

    Args:
      order: p, at least 1.

    Other arguments and the result are those of `ddpm`; x_T is the only random draw.
    """
    weights = unipc_weights(diffusion.schedule, order)
    num_steps = len(diffusion.schedule)

    def step(i, state):
        x, x_before, *history = state  # predicted x_i, corrected x_{i-1}, m_{i-1}, ..., m_{i-p}
        estimate = denoise(diffusion, denoise_fn, x, num_steps - 1 - i).pred_xstart
        estimates = [apply_mask(mask, estimate, clean), *history]
        corrected = at(weights.carry, i - 1) * x_before  # at i = 0 the last entry, which is not used
        for weight, m in zip(weights.correct, estimates, strict=True):
            corrected += at(weight, i) * m
        x = apply_mask(mask, jnp.where(i > 0, corrected, x), clean)
        predicted = at(weights.carry, i) * x
        for weight, m in zip(weights.predict, estimates[:order], strict=True):
            predicted += at(weight, i) * m
        return apply_mask(mask, predicted, clean), x, *estimates[:order]

    x_start = apply_mask(mask, start_noise(keys, clean.shape[1:], start), clean)
    x, *_ = loop(0, num_steps, step, (x_start, x_start, *[jnp.zeros_like(x_start)] * order))
    return x


class UniPCWeights(NamedTuple):
    """Tables of `unipc`, (T,) each, the noisiest level first.

    Attributes:
      carry: weight of the corrected x_i in the prediction of x_{i+1}.
      predict: weights of m_i, m_{i-1}, ..., m_{i-p+1} in it.
      correct: weights of m_i, m_{i-1}, ..., m_{i-p} in the correction of x_i; zeros for i = 0, which is not corrected.
    """

    carry: Table
    predict: list[Table]
    correct: list[Table]


def unipc_weights(schedule: NoiseSchedule, order: int) -> UniPCWeights:
    """Solves for the weights of `unipc` in float64."""
    alphas, sigmas, lambdas = levels(schedule)
    num_steps = len(schedule)
    carry, predict, correct = np.zeros(num_steps), np.zeros((order, num_steps)), np.zeros((order + 1, num_steps))
    predict[0, -1] = 1.0
    for i in range(num_steps - 1):
        carry[i] = sigmas[i + 1] / sigmas[i]
        nodes = lambdas[max(i - order + 1, 0) : i + 1][::-1]
        predict[: len(nodes), i] = alphas[i + 1] * polynomial_weights(nodes, lambdas[i], lambdas[i + 1])
        nodes = np.append(lambdas[i + 1], nodes)
        correct[: len(nodes), i + 1] = alphas[i + 1] * polynomial_weights(nodes, lambdas[i], lambdas[i + 1])
    return UniPCWeights(carry, list(predict), list(correct))
