"""DDIM: implicit sampling, deterministic at eta = 0."""

import jax
import jax.numpy as jnp

from vdt_jax.diffusion.samplers.common import Problem, Steps
from vdt_jax.diffusion.schedules import at


def ddim(problem: Problem, *, eta: jax.Array | float | int = 0.0) -> Steps:
    """Implicit sampling (Song et al. 2021, eq. 12 and 16, arXiv 2010.02502), with masks.

        eps = (x_t - alpha_t x_0) / sigma_t,  x_0 the network's estimate
        x_{t-1} = alpha_{t-1} x_0 + sqrt(sigma_{t-1}^2 - eta^2 beta-tilde_t) eps + eta sqrt(beta-tilde_t) z

    With eta = 0 it is a first-order solver of the probability-flow ODE, and x_T is the only random draw; in rectified
    flow it is Euler's method, x_{t-1} = x_t + (sigma_{t-1} - sigma_t) v. eta = 1 is ddpm with the variance beta-tilde.
    alpha and sigma are those of the respaced process, and alpha_{-1} = 1, sigma_{-1} = 0.

    Args:
      eta: the share of ddpm's noise that is added, 0 to 1.
    """
    schedule = problem.diffusion.schedule
    sigmas = eta * jnp.asarray(schedule.sqrt_posterior_variance, jnp.float32)

    def step(i, x_t):
        t = problem.num_steps - 1 - i
        x_start = problem.denoise(x_t, t).pred_xstart
        eps = (x_t - at(schedule.alpha, t) * x_start) / at(schedule.sigma, t)
        weight = jnp.sqrt(jnp.maximum(at(schedule.sigma_prev**2, t) - at(sigmas, t) ** 2, 0.0))
        z = problem.noise(t)
        return problem.with_given(at(schedule.alpha_prev, t) * x_start + weight * eps + at(sigmas, t) * z)

    return problem.with_given(problem.start_noise()), step
