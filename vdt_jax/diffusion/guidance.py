"""Classifier-free guidance on labels and on given frames."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdt_jax.diffusion.blend import linear_blend
from vdt_jax.diffusion.gaussian import DenoiseFn, GaussianDiffusion
from vdt_jax.diffusion.masks import Mask, Video, apply_mask


def guide(
    network: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    diffusion: GaussianDiffusion,
    labels: Int[Array, " b"],
    clean: Video,
    mask: Mask,
    noise: Video,
    *,
    null_label: int,
    guidance: jax.Array | float | int | None = None,
    mask_guidance: jax.Array | float | int | None = None,
) -> DenoiseFn:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6, arXiv 2207.12598), on labels, on given frames, or both.

        output = f(x_t, label) + (guidance - 1) (f(x_t, label) - f(x_t, no label))
                               + (mask_guidance - 1) (f(x_t, label) - f(x_t with nothing given, label))

    A scale of 1 changes nothing. In the branch with nothing given, given positions hold q(x_t | clean), with the same
    noise at every step. The variance fraction is that of f(x_t, label).

    Args:
      network: (x_t, timesteps, labels) -> model_output, for any batch size.
      diffusion: the respaced process; timesteps must be in its timestep_map.
      mask: (B, F, h, w, 1), 1 = generate, 0 = given.
      noise: standard normal, for given positions in the branch with nothing given.
      null_label: the label that means "no label".
      guidance, mask_guidance: scales; None omits the branch.
    """
    timestep_map = jnp.asarray(diffusion.schedule.timestep_map)
    scales = [scale for scale in (guidance, mask_guidance) if scale is not None]

    def denoise_fn(x_t: Video, timesteps: Int[Array, " b"]) -> Float[Array, "b f h w out"]:
        branches = [(x_t, labels)]
        if guidance is not None:
            branches.append((x_t, jnp.full_like(labels, null_label)))
        if mask_guidance is not None:
            steps = jnp.searchsorted(timestep_map, timesteps)
            branches.append((apply_mask(mask, x_t, diffusion.q_sample(clean, steps, noise)), labels))
        # Stacked as (B, branches, ...), so that a batch that is sharded over devices is not moved.
        inputs, each_label = (jnp.stack(parts, axis=1) for parts in zip(*branches, strict=True))
        outputs = network(inputs.reshape(-1, *x_t.shape[1:]), timesteps.repeat(len(branches)), each_label.reshape(-1))
        outputs = outputs.reshape(*each_label.shape, *outputs.shape[1:])
        full, channels = outputs[:, 0], x_t.shape[-1]
        output = full[..., :channels]
        for branch, scale in enumerate(scales, 1):
            output += (scale - 1) * (full[..., :channels] - outputs[:, branch, ..., :channels])
        if diffusion.residual:  # every branch has the blend of its given frames, which is 0 where nothing is given
            output += linear_blend(clean, mask) * (1 if mask_guidance is None else mask_guidance)
        return jnp.concatenate([output, full[..., channels:]], axis=-1)

    return denoise_fn
