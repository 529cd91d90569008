"""DPM-Solver++(2M): a second-order multistep solver."""

import jax.numpy as jnp
import numpy as np

from vdt_jax.diffusion.samplers.common import Problem, Steps
from vdt_jax.diffusion.samplers.multistep import levels
from vdt_jax.diffusion.schedules import NoiseSchedule, Table, at


def dpm_solver_pp(problem: Problem) -> Steps:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2, arXiv 2211.01095), with masks.

    With x_i at level i, m_i the estimate of x_0 there, h_i = lambda_i - lambda_{i-1} and r = h_i / h_{i+1}:

        D = (1 + 1 / (2 r)) m_i - 1 / (2 r) m_{i-1};  the first and the last step have D = m_i
        x_{i+1} = (sigma_{i+1} / sigma_i) x_i - alpha_{i+1} (exp(-h_{i+1}) - 1) D

    x_T is the only random draw.
    """
    carry, newest, before = _weights(problem.diffusion.schedule)

    def step(i, state):
        x, earlier = state
        estimate = problem.with_given(problem.denoise(x, problem.num_steps - 1 - i).pred_xstart)
        x = at(carry, i) * x + at(newest, i) * estimate + at(before, i) * earlier
        return problem.with_given(x), estimate

    x_start = problem.with_given(problem.start_noise())
    return (x_start, jnp.zeros_like(x_start)), step


def _weights(schedule: NoiseSchedule) -> tuple[Table, Table, Table]:
    """The weights of x_i, m_i and m_{i-1} in x_{i+1}, the noisiest level first."""
    alphas, sigmas, lambdas = levels(schedule)
    num_steps = len(schedule)
    carry, newest, before = np.zeros(num_steps), np.ones(num_steps), np.zeros(num_steps)
    for i in range(num_steps - 1):
        h = lambdas[i + 1] - lambdas[i]
        ratio = h / (lambdas[i] - lambdas[i - 1]) if i > 0 else 0.0  # 1 / r
        weight = -alphas[i + 1] * np.expm1(-h)
        carry[i], newest[i], before[i] = sigmas[i + 1] / sigmas[i], weight * (1 + ratio / 2), -weight * ratio / 2
    return carry, newest, before
