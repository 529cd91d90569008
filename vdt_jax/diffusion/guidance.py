"""Guidance: the network's answer, pushed away from what it would say if it knew less."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.diffusion.gaussian import DenoiseFn, GaussianDiffusion
from vdt_jax.diffusion.masks import apply_mask


def guide(
    network: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    diffusion: GaussianDiffusion,
    labels: jax.Array,
    clean: jax.Array,
    mask: jax.Array,
    noise: jax.Array,
    *,
    null_label: int,
    guidance: jax.Array | float | None = None,
    mask_guidance: jax.Array | float | None = None,
) -> DenoiseFn:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6, arXiv 2207.12598), on labels, on given frames, or both.

        output = f(x_t, label) + (guidance - 1) (f(x_t, label) - f(x_t, no label))
                               + (mask_guidance - 1) (f(x_t, label) - f(x_t with nothing given, label))

    A scale of 1 changes nothing. The branch with nothing given sees q(x_t | clean) at given positions, with the same
    noise at every step. The variance fraction is that of f(x_t, label).

    Args:
      network: (x_t, timesteps, labels) -> model_output, for any batch.
      diffusion: the respaced process.
      labels: (B,).
      clean: (B, F, h, w, C), read where mask = 0.
      mask: (B, F, h, w, 1), 1 = generate, 0 = given.
      noise: (B, F, h, w, C), what the branch with nothing given has at given positions.
      null_label: the label that means "no label".
      guidance, mask_guidance: scales; None leaves the branch out of the program.

    Returns:
      denoise_fn: (x_t, timesteps) -> model_output; timesteps must be some of the process's.
    """
    alpha_bar = diffusion.schedule.alphas_cumprod
    signal, sigma = (jnp.asarray(np.sqrt(table), jnp.float32) for table in (alpha_bar, 1 - alpha_bar))
    timestep_map = jnp.asarray(diffusion.schedule.timestep_map)
    scales = [scale for scale in (guidance, mask_guidance) if scale is not None]

    def denoise_fn(x_t: jax.Array, timesteps: jax.Array) -> jax.Array:
        branches = [(x_t, labels)]
        if guidance is not None:
            branches.append((x_t, jnp.full_like(labels, null_label)))
        if mask_guidance is not None:
            step = jnp.searchsorted(timestep_map, timesteps)[:, None, None, None, None]
            branches.append((apply_mask(mask, x_t, signal[step] * clean + sigma[step] * noise), labels))
        # Next to one another, (B, branches, ...): a batch that is spread over devices stays where it is.
        inputs, each_label = (jnp.stack(parts, axis=1) for parts in zip(*branches, strict=True))
        outputs = network(inputs.reshape(-1, *x_t.shape[1:]), timesteps.repeat(len(branches)), each_label.reshape(-1))
        outputs = outputs.reshape(*each_label.shape, *outputs.shape[1:])
        full, channels = outputs[:, 0], x_t.shape[-1]
        output = full[..., :channels]
        for branch, scale in enumerate(scales, 1):
            output += (scale - 1) * (full[..., :channels] - outputs[:, branch, ..., :channels])
        return jnp.concatenate([output, full[..., channels:]], axis=-1)

    return denoise_fn
