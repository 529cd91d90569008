"""DDPM: ancestral sampling."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vdt_jax.diffusion.gaussian import DenoiseFn, GaussianDiffusion
from vdt_jax.diffusion.masks import apply_mask
from vdt_jax.diffusion.samplers.common import Loop, denoise, sample_noise, start_noise, step_keys


def ddpm(
    diffusion: GaussianDiffusion,
    denoise_fn: DenoiseFn,
    keys: Key[Array, " b"],
    clean: Float[Array, "b f h w c"],
    mask: Float[Array, "b f h w 1"],
    *,
    start: Float[Array | np.ndarray, "b f h w c"] | None = None,
    noises: Float[Array | np.ndarray, "steps b f h w c"] | None = None,
    loop: Loop = jax.lax.fori_loop,
) -> Float[Array, "b f h w c"]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2, arXiv 2006.11239), with masks.

        x_T ~ N(0, I)
        for t = T-1, ..., 0:  x_{t-1} = mean(x_t) + exp(log_variance(x_t) / 2) z,  z ~ N(0, I) for t > 0, else 0

    Args:
      diffusion: the respaced process of T steps.
      denoise_fn: (x_t, timesteps) -> model_output; called once a step.
      keys: (B,) one random key for each sample.
      clean: (B, F, h, w, C), read where mask = 0.
      mask: (B, F, h, w, 1), 1 = generate, 0 = given.
      start: x_T in place of a drawn one, (B, F, h, w, C).
      noises: z of each step in place of drawn ones, (T, B, F, h, w, C), the noisiest step first.
      loop: runs the steps; see `Loop`.

    Returns:
      The samples (B, F, h, w, C), equal to `clean` where mask = 0.
    """
    num_steps, shape = len(diffusion.schedule), clean.shape[1:]
    noises = None if noises is None else jnp.asarray(noises)

    def step(i, x_t):
        t = num_steps - 1 - i
        out = denoise(diffusion, denoise_fn, x_t, t)
        z = sample_noise(step_keys(keys, t), shape) if noises is None else noises[i]
        x_t = out.mean + jnp.where(t > 0, jnp.exp(0.5 * out.log_variance) * z, 0.0)
        return apply_mask(mask, x_t, clean)

    return loop(0, num_steps, step, apply_mask(mask, start_noise(keys, shape, start), clean))
