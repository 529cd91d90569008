"""Solvers of the probability-flow ODE that remember earlier network outputs: few steps do.

With alpha = sqrt(alpha-bar), sigma = sqrt(1 - alpha-bar) and lambda = log(alpha / sigma), half the log of the
signal-to-noise ratio, the ODE has the exact solution (Lu et al. 2022, arXiv 2211.01095, proposition 4.1)

    x_t = (sigma_t / sigma_s) x_s + alpha_t int_{lambda_s}^{lambda_t} exp(lambda - lambda_t) x_0(lambda) dlambda  (1)

where x_0(lambda) is the network's estimate along the way. A solver puts a polynomial through some of the estimates:
then x_t is a weighted sum of x_s and these, and the weights depend on the schedule alone. They are made here as
float64 tables, so that a step is a dot product.

The last step goes to no noise at all, lambda = infinity, where (1) is the newest estimate. Given positions carry their
clean values in the estimates too.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.diffusion.gaussian import DenoiseFn, GaussianDiffusion
from vdt_jax.diffusion.masks import apply_mask
from vdt_jax.diffusion.samplers.loop import Sampling, denoise, start_noise
from vdt_jax.diffusion.schedules import NoiseSchedule


def polynomial_weights(nodes: np.ndarray, start: float, end: float) -> np.ndarray:
    """Weights (n,) that make sum_j w_j p(nodes_j) the integral in (1), from start to end, of polynomials of degree < n.

    In v = (lambda - start) / (end - start) the moments of exp(lambda - end) follow by parts: I_0 = 1 - exp(-h),
    I_k = 1 - (k / h) I_{k-1} with h = end - start; where that loses digits (small h) the series is summed.
    """
    h, n = end - start, len(nodes)
    if h > 0.5:
        moments = [-np.expm1(-h)]
        for k in range(1, n):
            moments.append(1 - k / h * moments[-1])
        moments = np.array(moments)
    else:  # int_0^1 h exp(h (v - 1)) v^k dv = h sum_j (-h)^j k! / (k + j + 1)!
        moments = np.zeros(n)
        for k in range(n):
            term = h / (k + 1)
            for j in range(30):
                moments[k] += term
                term *= -h / (k + j + 2)
    powers = ((nodes - start) / h)[None, :] ** np.arange(n)[:, None]
    return np.linalg.solve(powers, moments)


def _levels(schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha, sigma and lambda, (T,) each, the noisiest first."""
    alpha_bar = schedule.alphas_cumprod[::-1]
    alphas, sigmas = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    return alphas, sigmas, np.log(alphas / sigmas)


def dpm_solver_pp(
    diffusion: GaussianDiffusion,
    denoise_fn: DenoiseFn,
    keys: jax.Array,
    clean: jax.Array,
    mask: jax.Array,
    *,
    start: jax.Array | None = None,
) -> Sampling:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2, arXiv 2211.01095), with masks; of second order.

    With x_i at level i, m_i the estimate of x_0 there, h_i = lambda_i - lambda_{i-1} and r = h_i / h_{i+1}:

        D = (1 + 1 / (2 r)) m_i - 1 / (2 r) m_{i-1};  the first and the last step have D = m_i
        x_{i+1} = (sigma_{i+1} / sigma_i) x_i - alpha_{i+1} (exp(-h_{i+1}) - 1) D

    Args and result as in `ddpm`; nothing is drawn after x_T.
    """
    alphas, sigmas, lambdas = _levels(diffusion.schedule)
    num_steps = len(alphas)
    carry, newest, before = np.zeros(num_steps), np.ones(num_steps), np.zeros(num_steps)
    for i in range(num_steps - 1):
        h = lambdas[i + 1] - lambdas[i]
        ratio = h / (lambdas[i] - lambdas[i - 1]) if i > 0 else 0.0  # 1 / r
        weight = -alphas[i + 1] * np.expm1(-h)
        carry[i], newest[i], before[i] = sigmas[i + 1] / sigmas[i], weight * (1 + ratio / 2), -weight * ratio / 2
    carry, newest, before = (jnp.asarray(table, jnp.float32) for table in (carry, newest, before))
    if start is None:
        start = start_noise(keys, clean.shape[1:])
    start = apply_mask(mask, start, clean)

    def step(i, state):
        x, earlier = state
        estimate = apply_mask(mask, denoise(diffusion, denoise_fn, x, num_steps - 1 - i).pred_xstart, clean)
        x = carry[i] * x + newest[i] * estimate + before[i] * earlier
        return apply_mask(mask, x, clean), estimate

    return Sampling(num_steps, (start, jnp.zeros_like(start)), step)


def unipc_tables(schedule: NoiseSchedule, order: int) -> dict[str, np.ndarray]:
    """The weights of `unipc`, the noisiest level first.

    Returns:
      `carry` (T,): of the corrected x_i in the prediction of x_{i+1}; `predict` (T, order): of m_i, m_{i-1}, ... there;
      `correct` (T, order + 1): of m_i, m_{i-1}, ... in the correction of x_i (zeros for i = 0, which stays as it is).
    """
    alphas, sigmas, lambdas = _levels(schedule)
    num_steps = len(alphas)
    carry, predict, correct = np.zeros(num_steps), np.zeros((num_steps, order)), np.zeros((num_steps, order + 1))
    predict[-1, 0] = 1.0
    for i in range(num_steps - 1):
        carry[i] = sigmas[i + 1] / sigmas[i]
        nodes = lambdas[max(i - order + 1, 0) : i + 1][::-1]
        predict[i, : len(nodes)] = alphas[i + 1] * polynomial_weights(nodes, lambdas[i], lambdas[i + 1])
        nodes = np.append(lambdas[i + 1], nodes)
        correct[i + 1, : len(nodes)] = alphas[i + 1] * polynomial_weights(nodes, lambdas[i], lambdas[i + 1])
    return {"carry": carry, "predict": predict, "correct": correct}


def unipc(
    diffusion: GaussianDiffusion,
    denoise_fn: DenoiseFn,
    keys: jax.Array,
    clean: jax.Array,
    mask: jax.Array,
    *,
    start: jax.Array | None = None,
    order: int = 2,
) -> Sampling:
    """UniPC-p (Zhao et al. 2023, algorithms 1 and 2, arXiv 2302.04867), with masks; multistep, on estimates of x_0.

    At each level the network is called once, at the predicted x_i, and its answer m_i serves twice: to correct x_i, and
    to predict x_{i+1}.

        correct:  x_i = (sigma_i / sigma_{i-1}) x_{i-1} + weights of (1) for m_i, m_{i-1}, ..., m_{i-p}
        predict:  x_{i+1} = (sigma_{i+1} / sigma_i) x_i + weights of (1) for m_i, ..., m_{i-p+1}

    The weights solve the paper's order conditions exactly, and then its free function B(h) drops out of them. The
    correction makes the order p + 1 (theorem 3.1); the first steps have fewer estimates, and so a lower order.

    Args and result as in `ddpm`; nothing is drawn after x_T. `order` is p.
    """
    tables = {name: jnp.asarray(table, jnp.float32) for name, table in unipc_tables(diffusion.schedule, order).items()}
    num_steps = len(diffusion.schedule)
    if start is None:
        start = start_noise(keys, clean.shape[1:])
    start = apply_mask(mask, start, clean)

    def step(i, state):
        x, x_before, *history = state  # x predicted at this level; x_before corrected at the last; m_{i-1}, m_{i-2} ...
        estimate = apply_mask(mask, denoise(diffusion, denoise_fn, x, num_steps - 1 - i).pred_xstart, clean)
        estimates = [estimate, *history]
        corrected = tables["carry"][i - 1] * x_before
        for j in range(order + 1):
            corrected += tables["correct"][i, j] * estimates[j]
        x = apply_mask(mask, jnp.where(i > 0, corrected, x), clean)
        predicted = tables["carry"][i] * x
        for j in range(order):
            predicted += tables["predict"][i, j] * estimates[j]
        return apply_mask(mask, predicted, clean), x, *estimates[:order]

    return Sampling(num_steps, (start, start, *[jnp.zeros_like(start)] * order), step)
