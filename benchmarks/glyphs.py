"""Which digit a frame of moving_digits shows: the nearest of all glyphs at all places and of an empty frame."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.data.digits import glyph_tiles

NOTHING = 10  # for a frame that is nearer to black than to any glyph


@functools.cache
def glyphs() -> tuple[np.ndarray, np.ndarray]:
    """Every digit at every second eighth of a pixel: images (N, 1, h, w) in [0, 1], and their digits (N,)."""
    tiles = [tile for phases in glyph_tiles() for tile in phases[::2, ::2].reshape(-1, *phases.shape[2:])]
    height, width = max(tile.shape[0] for tile in tiles), max(tile.shape[1] for tile in tiles)
    padded = [np.pad(tile, ((0, height - tile.shape[0]), (0, width - tile.shape[1]))) for tile in tiles]
    return np.stack(padded)[:, None], np.repeat(np.arange(10), len(tiles) // 10)


@jax.jit
def digits_shown(video: jax.Array) -> jax.Array:
    """For each frame of a video (F, H, W, 1) in [-1, 1] the nearest by squared distance, (F,): a digit or NOTHING."""
    pictures, digits = map(jnp.asarray, glyphs())
    frames = (jnp.clip(jnp.moveaxis(video, -1, 1), -1, 1) + 1) / 2
    beyond = [(0, side - 1) for side in pictures.shape[2:]]  # images are as large as the largest glyph
    overlap = jax.lax.conv_general_dilated(frames, pictures, (1, 1), beyond)
    # Without the square of the frame, which is a part of all of its distances.
    distances = (pictures**2).sum((1, 2, 3))[None] - 2 * overlap.max((2, 3))
    return jnp.where(distances.min(1) < 0, digits[distances.argmin(1)], NOTHING)


def consistency(videos: np.ndarray) -> dict[str, str]:
    """How consistently samples (N, F, H, W, 1) show one digit each."""
    shown = np.stack([digits_shown(jnp.asarray(video)) for video in videos])
    counts = np.stack([np.bincount(row, minlength=NOTHING + 1)[:NOTHING] for row in shown])
    return {
        "frames that show their sample's most common digit": f"{(counts.max(1) / shown.shape[1]).mean():.1%}",
        "samples of one digit throughout": f"{(counts.max(1) == shown.shape[1]).mean():.1%}",
        "frames without a digit": f"{(shown == NOTHING).mean():.1%}",
    }
