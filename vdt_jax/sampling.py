"""Samplers: one function each, the paper's algorithm in its docstring, the whole loop one lax.scan.

Given positions carry their clean values: `x_t = where(mask, x_t, clean)` before the first step and after each, so that
the network sees them clean, they come out bit-equal, and what the sampler would have made of them, which no training
ever constrained and which can overflow, never enters.
"""

import jax
import jax.numpy as jnp

from vdt_jax.diffusion import DenoiseFn, GaussianDiffusion
from vdt_jax.masks import apply_mask


def sample_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal (B, *shape), one stream for each of the keys (B,): a sample does not depend on its batch."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def ddpm(
    diffusion: GaussianDiffusion,
    denoise_fn: DenoiseFn,
    keys: jax.Array,
    clean: jax.Array,
    mask: jax.Array,
    *,
    start: jax.Array | None = None,
    noises: jax.Array | None = None,
) -> jax.Array:
    """Ancestral sampling (Ho et al. 2020, algorithm 2, arXiv 2006.11239), with masks.

        x_T ~ N(0, I)
        for t = T-1, ..., 0:  x_{t-1} = mean(x_t) + exp(log_variance(x_t) / 2) z,  z ~ N(0, I) for t > 0, else 0

    Args:
      diffusion: the respaced process; its length is the number of network calls.
      denoise_fn: (x_t, timesteps) -> model_output.
      keys: (B,) one key a sample.
      clean: (B, F, h, w, C), read where mask = 0.
      mask: (B, F, h, w, 1), 1 = generate, 0 = given.
      start: x_T in place of a drawn one, (B, F, h, w, C).
      noises: z of each step in place of drawn ones, (T, B, F, h, w, C), the noisiest step first.

    Returns:
      (B, F, h, w, C), equal to `clean` where mask = 0.
    """
    num_steps, shape = len(diffusion.schedule), clean.shape[1:]
    streams = jax.vmap(lambda key: jax.random.split(key, num_steps + 1))(keys)  # (B, T + 1): the last one starts
    if start is None:
        start = sample_noise(streams[:, num_steps], shape)
    timestep_map = jnp.asarray(diffusion.schedule.timestep_map)

    def denoise(x_t, step):
        steps = jnp.full(clean.shape[0], step)
        out = diffusion.p_mean_variance(denoise_fn(x_t, timestep_map[steps]), x_t, steps, diffusion.clip_denoised)
        z = sample_noise(streams[:, step], shape) if noises is None else noises[num_steps - 1 - step]
        x_t = out.mean + jnp.where(step > 0, jnp.exp(0.5 * out.log_variance) * z, 0.0)
        return apply_mask(mask, x_t, clean), None

    x_t, _ = jax.lax.scan(denoise, apply_mask(mask, start, clean), jnp.arange(num_steps)[::-1])
    return x_t


SAMPLERS = {"ddpm": ddpm}
