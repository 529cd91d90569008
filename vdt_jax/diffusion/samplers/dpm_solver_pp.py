"""DPM-Solver++(2M): a second-order multistep solver."""

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.diffusion.samplers.common import Problem, Steps
from vdt_jax.diffusion.samplers.multistep import either, levels
from vdt_jax.diffusion.schedules import NoiseSchedule, Table, at


def dpm_solver_pp(problem: Problem, *, lower_order_final: jax.Array | bool = False) -> Steps:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2, arXiv 2211.01095), with masks.

    With x_i at level i, m_i the estimate of x_0 there, h_i = lambda_i - lambda_{i-1} and r = h_i / h_{i+1}:

        D = (1 + 1 / (2 r)) m_i - 1 / (2 r) m_{i-1};  the first and the last step have D = m_i
        x_{i+1} = (sigma_{i+1} / sigma_i) x_i - alpha_{i+1} (exp(-h_{i+1}) - 1) D

    x_T is the only random draw.

    Args:
      lower_order_final: see `multistep`; the authors use it with fewer than 10 steps.
    """
    schedule = problem.diffusion.schedule
    carry, newest, before = either(lower_order_final, lambda lower: _weights(schedule, lower))

    def step(i, state):
        x, earlier = state
        estimate = problem.with_given(problem.denoise(x, problem.num_steps - 1 - i).pred_xstart)
        x = at(carry, i) * x + at(newest, i) * estimate + at(before, i) * earlier
        return problem.with_given(x), estimate

    x_start = problem.with_given(problem.start_noise())
    return (x_start, jnp.zeros_like(x_start)), step


def _weights(schedule: NoiseSchedule, lower_order_final: bool) -> tuple[Table, Table, Table]:
    """The weights of x_i, m_i and m_{i-1} in x_{i+1}, the noisiest level first."""
    alphas, sigmas, lambdas = levels(schedule)
    num_steps = len(schedule)
    carry, newest, before = np.zeros(num_steps), np.ones(num_steps), np.zeros(num_steps)
    for i in range(num_steps - 1):
        h = lambdas[i + 1] - lambdas[i]
        first_order = i == 0 or (lower_order_final and i == num_steps - 2)
        ratio = 0.0 if first_order else h / (lambdas[i] - lambdas[i - 1])  # 1 / r
        weight = -alphas[i + 1] * np.expm1(-h)
        carry[i], newest[i], before[i] = sigmas[i + 1] / sigmas[i], weight * (1 + ratio / 2), -weight * ratio / 2
    return carry, newest, before
