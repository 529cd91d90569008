"""DDPM: ancestral sampling."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdt_jax.diffusion.samplers.common import Problem, Steps


def ddpm(problem: Problem, *, noises: Float[Array | np.ndarray, "steps b f h w c"] | None = None) -> Steps:
    """Ancestral sampling (Ho et al. 2020, algorithm 2, arXiv 2006.11239), with masks.

        x_T ~ N(0, I)
        for t = T-1, ..., 0:  x_{t-1} = mean(x_t) + exp(log_variance(x_t) / 2) z,  z ~ N(0, I) for t > 0, else 0

    Args:
      noises: z of each step in place of drawn ones, (T, B, F, h, w, C), the noisiest step first.
    """
    noises = None if noises is None else jnp.asarray(noises)

    def step(i, x_t):
        t = problem.num_steps - 1 - i
        out = problem.denoise(x_t, t)
        z = problem.noise(t) if noises is None else noises[i]
        return problem.with_given(out.mean + jnp.where(t > 0, jnp.exp(0.5 * out.log_variance) * z, 0.0))

    return problem.with_given(problem.start_noise()), step
