"""UniPC: a multistep predictor and corrector of any order."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vdt_jax.diffusion.samplers.common import Problem, Steps
from vdt_jax.diffusion.samplers.multistep import either, levels, polynomial_weights
from vdt_jax.diffusion.schedules import NoiseSchedule, Table, at


def unipc(problem: Problem, *, order: int = 2, lower_order_final: jax.Array | bool = False) -> Steps:
    """UniPC-p (Zhao et al. 2023, algorithms 1 and 2, arXiv 2302.04867), with masks; multistep, on estimates of x_0.

    At each level the network is called once, at the predicted x_i, and its estimate m_i is used twice: to correct x_i,
    and to predict x_{i+1}.

        correct:  x_i = (sigma_i / sigma_{i-1}) x_{i-1} + weights of (1) for m_i, m_{i-1}, ..., m_{i-p}
        predict:  x_{i+1} = (sigma_{i+1} / sigma_i) x_i + weights of (1) for m_i, ..., m_{i-p+1}

    (1) is in `multistep`. The weights solve the paper's order conditions exactly, so its free function B(h) cancels; in
    the authors' code 0.5 replaces the solution in the predictor of order 2 and in the corrector of order 1.
    The correction makes the order p + 1 (theorem 3.1); the first steps have fewer estimates, and so a lower order.
    x_T is the only random draw.

    Args:
      order: p, at least 1.
      lower_order_final: see `multistep`; the default of the authors.
    """
    schedule = problem.diffusion.schedule
    carry, predict, correct = either(lower_order_final, lambda lower: _weights(schedule, order, lower))

    def step(i, state):
        x, x_before, *history = state  # predicted x_i, corrected x_{i-1}, m_{i-1}, ..., m_{i-p}
        estimate = problem.denoise(x, problem.num_steps - 1 - i).pred_xstart
        estimates = [problem.with_given(estimate), *history]
        corrected = at(carry, i - 1) * x_before  # at i = 0 the last entry, which is not used
        for weight, m in zip(correct, estimates, strict=True):
            corrected += at(weight, i) * m
        x = problem.with_given(jnp.where(i > 0, corrected, x))
        predicted = at(carry, i) * x
        for weight, m in zip(predict, estimates[:order], strict=True):
            predicted += at(weight, i) * m
        return problem.with_given(predicted), x, *estimates[:order]

    x_start = problem.with_given(problem.start_noise())
    return (x_start, x_start, *[jnp.zeros_like(x_start)] * order), step


def _weights(
    schedule: NoiseSchedule, order: int, lower_order_final: bool
) -> tuple[Table, Float[np.ndarray, "p t"], Float[np.ndarray, "p_plus_1 t"]]:
    """The weights of each step, the noisiest level first.

    Returns:
      carry: of the corrected x_i in the prediction of x_{i+1}.
      predict: of m_i, m_{i-1}, ..., m_{i-p+1} in it.
      correct: of m_i, m_{i-1}, ..., m_{i-p} in the correction of x_i; zeros for i = 0, which is not corrected.
    """
    alphas, sigmas, lambdas = levels(schedule)
    num_steps = len(schedule)
    carry, predict, correct = np.zeros(num_steps), np.zeros((order, num_steps)), np.zeros((order + 1, num_steps))
    predict[0, -1] = 1.0
    for i in range(num_steps - 1):
        carry[i] = sigmas[i + 1] / sigmas[i]
        count = min(order, i + 1, num_steps - 1 - i) if lower_order_final else min(order, i + 1)
        nodes = lambdas[i + 1 - count : i + 1][::-1]
        predict[: len(nodes), i] = alphas[i + 1] * polynomial_weights(nodes, lambdas[i], lambdas[i + 1])
        nodes = np.append(lambdas[i + 1], nodes)
        correct[: len(nodes), i + 1] = alphas[i + 1] * polynomial_weights(nodes, lambdas[i], lambdas[i + 1])
    return carry, predict, correct
