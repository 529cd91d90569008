"""Linear blending of the given frames: a baseline of the evaluation, and the reference of residual diffusion."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdt_jax.diffusion.masks import Mask, Video

Distance = Float[Array, "b f h w 1"]


def neighbours(video: Video, mask: Mask) -> tuple[Video, Distance, Video, Distance]:
    """For each position the last given value before or at it and the next one after or at it, with their distances.

    Distances are in frames. Where there is no such value, the distance is infinite and the returned value 0.
    """
    given = mask < 0.5
    num_frames = video.shape[1]
    frames = jnp.arange(num_frames).reshape(1, -1, 1, 1, 1)
    before = jax.lax.cummax(jnp.where(given, frames, -1), axis=1)
    after = jax.lax.cummin(jnp.where(given, frames, num_frames), axis=1, reverse=True)

    def value(source, found):
        return jnp.where(found, jnp.take_along_axis(video, jnp.clip(source, 0, num_frames - 1), axis=1), 0)

    has_before, has_after = before >= 0, after < num_frames
    distance_before = jnp.where(has_before, frames - before, jnp.inf)
    distance_after = jnp.where(has_after, after - frames, jnp.inf)
    return value(before, has_before), distance_before, value(after, has_after), distance_after


def copy_nearest(video: Video, mask: Mask) -> Video:
    """Copies each position from the nearest frame in which it is given; of two equally near, the earlier."""
    before, distance_before, after, distance_after = neighbours(video, mask)
    return jnp.where(distance_before <= distance_after, before, after)


def linear_blend(video: Video, mask: Mask) -> Video:
    """Interpolates each position linearly between its given values; outside of them it copies the nearest.

    Args:
      video: (B, F, h, w, C), read where mask = 0.
      mask: (B, F, h, w, 1), 1 = generate, 0 = given.

    Returns:
      (B, F, h, w, C): `video` at given positions, 0 (grey) at positions that are given in no frame.
    """
    before, distance_before, after, distance_after = neighbours(video, mask)
    total = distance_before + distance_after  # infinite unless the position is between two given values
    share = jnp.where((total > 0) & jnp.isfinite(total), distance_before / total, 0)
    return jnp.where(jnp.isfinite(total), before + share * (after - before), copy_nearest(video, mask))
