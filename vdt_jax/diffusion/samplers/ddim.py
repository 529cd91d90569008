"""DDIM: implicit sampling, deterministic at eta = 0."""

import jax
import jax.numpy as jnp

from vdt_jax.diffusion.samplers.common import Problem, Steps
from vdt_jax.diffusion.schedules import at


def ddim(problem: Problem, *, eta: jax.Array | float | int = 0.0) -> Steps:
    """Implicit sampling (Song et al. 2021, eq. 12 and 16, arXiv 2010.02502), with masks.

        eps = (x_t - sqrt(alpha-bar_t) x_0) / sqrt(1 - alpha-bar_t),  x_0 the network's estimate
        sigma_t = eta sqrt((1 - alpha-bar_{t-1}) / (1 - alpha-bar_t)) sqrt(1 - alpha-bar_t / alpha-bar_{t-1})
        x_{t-1} = sqrt(alpha-bar_{t-1}) x_0 + sqrt(1 - alpha-bar_{t-1} - sigma_t^2) eps + sigma_t z

    With eta = 0 it is a first-order solver of the probability-flow ODE, and x_T is the only random draw; eta = 1 is
    ddpm with the variance beta-tilde. alpha-bar is that of the respaced process, and alpha-bar_{-1} = 1.

    Args:
      eta: the share of ddpm's noise that is added, 0 to 1.
    """
    schedule = problem.diffusion.schedule
    sigmas = eta * jnp.asarray(schedule.sqrt_posterior_variance, jnp.float32)

    def step(i, x_t):
        t = problem.num_steps - 1 - i
        x_start = problem.denoise(x_t, t).pred_xstart
        eps = (x_t - at(schedule.sqrt_alphas_cumprod, t) * x_start) / at(schedule.sqrt_one_minus_alphas_cumprod, t)
        weight = jnp.sqrt(jnp.maximum(at(schedule.one_minus_alphas_cumprod_prev, t) - at(sigmas, t) ** 2, 0.0))
        z = problem.noise(t)
        return problem.with_given(at(schedule.sqrt_alphas_cumprod_prev, t) * x_start + weight * eps + at(sigmas, t) * z)

    return problem.with_given(problem.start_noise()), step
