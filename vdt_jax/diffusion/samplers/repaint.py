"""RePaint: completion with a network that was trained without masks."""

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.diffusion.masks import apply_mask
from vdt_jax.diffusion.samplers.common import Problem, Steps, sample_noise
from vdt_jax.diffusion.schedules import at


def repaint(problem: Problem, *, resamples: jax.Array | int = 1) -> Steps:
    """RePaint (Lugmayr et al. 2022, algorithm 1, arXiv 2201.09865).

    All positions that the network receives are equally noisy. Given positions hold q(x_t | clean), with one noise for
    all steps, and each step is repeated so that generated positions adapt to them:

        for t = T-1, ..., 0, `resamples` times each:
          x_{t-1} = the ddpm step of x_t;  at given positions q(x_{t-1} | clean)
          except after the last time:  x_t = (alpha_t / alpha_{t-1}) x_{t-1} + sqrt(beta_t) z

    A network that was trained with masks does better with any other sampler.

    Args:
      resamples: times that each step is taken, at least 1; the network is called T * resamples times.
    """
    schedule, num_steps, shape = problem.diffusion.schedule, problem.num_steps, problem.clean.shape[1:]
    fixed_noise = problem.start_noise()  # independent of all later draws
    alpha = np.append(1.0, schedule.alpha)  # at t + 1: entry 0 is x_{-1}, which is clean
    sigma = np.append(0.0, schedule.sigma)

    def with_given(x, t):
        return apply_mask(problem.mask, x, at(alpha, t + 1) * problem.clean + at(sigma, t + 1) * fixed_noise)

    def step(i, x_t):
        t = num_steps - 1 - i
        beta = at(schedule.betas, t)

        def resample(u, x_t):
            draws = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, u)))(problem.step_keys(t))
            again = at(schedule.ratio, t) * x_t + jnp.sqrt(beta) * sample_noise(draws[:, 1], shape)
            x_t = jnp.where(u > 0, with_given(again, t), x_t)
            out = problem.denoise(x_t, t)
            z = jnp.where(t > 0, sample_noise(draws[:, 0], shape), 0.0)
            return with_given(out.mean + jnp.exp(0.5 * out.log_variance) * z, t - 1)

        return jax.lax.fori_loop(0, resamples, resample, x_t)

    return with_given(fixed_noise, num_steps - 1), step
