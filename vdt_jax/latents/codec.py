"""Videos through an autoencoder: whole ones with bounded memory, batches of clips for training.

Frames go in chunks, large frames in tiles, and each shape is compiled once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.distributed.mesh import map_batches
from vdt_jax.errors import UserError
from vdt_jax.models.autoencoder import AutoencoderKL


def sample_posterior(mean: jax.Array, logvar: jax.Array, key: jax.Array | None) -> jax.Array:
    """A draw from the distribution of the latents, or its mode where there is no key."""
    if key is None:
        return mean
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)


@functools.partial(jax.jit, static_argnums=0)
def encode_moments(model: AutoencoderKL, params: Any, frames: jax.Array) -> jax.Array:
    """Moments (B, h, w, 8) of frames (B, H, W, 3) in [-1, 1]: mean, then logvar."""
    moments: Any = model.apply({"params": params}, frames, method="encode")
    return jnp.concatenate(moments, axis=-1)


def encode_video(
    model: AutoencoderKL, params: Any, video: np.ndarray, *, key: jax.Array | None, chunk: int = 4, tile: int = 512
) -> jax.Array:
    """Scaled latents of one video.

    Args:
      video: (F, H, W, 3) in [-1, 1], H and W multiples of `model.factor`.
      key: draws from the posterior, as the official VDT does; None takes its mode.
      chunk: frames at once.
      tile: frames with a longer side are encoded in tiles of this many pixels.

    Returns:
      (F, h, w, 4) float32.

    Raises:
      UserError: frames of a size that has no latents.
    """
    height, width = video.shape[1:3]
    if height % model.factor or width % model.factor:
        raise UserError(f"frames of {height}x{width} have no latents: both sides must be multiples of {model.factor}")
    encode = functools.partial(encode_moments, model, params)
    moments = map_batches(functools.partial(_by_tiles, encode, tile, 1 / model.factor), min(chunk, len(video)), video)
    return draw_latents(model.scaling_factor, moments, key)


def encode_batch(model: AutoencoderKL, params: Any, videos: jax.Array, key: jax.Array | None) -> jax.Array:
    """Scaled latents (B, F, h, w, 4) of training clips (B, F, H, W, 3) in [-1, 1]; `key` as in `encode_video`.

    Traceable. One frame of every clip at a time, so that memory does not grow with F and B may be spread over devices.
    """
    moments = jax.lax.map(functools.partial(encode_moments, model, params), jnp.moveaxis(videos, 1, 0))
    return draw_latents(model.scaling_factor, jnp.moveaxis(moments, 0, 1), key)


def draw_latents(
    scaling_factor: float | jax.Array, moments: jax.Array | np.ndarray, key: jax.Array | None
) -> jax.Array:
    """Scaled latents (..., C) float32 from cached moments (..., 2 C), mean and logvar; `key` as in `encode_video`."""
    mean, logvar = jnp.split(jnp.asarray(moments, jnp.float32), 2, axis=-1)
    return scaling_factor * sample_posterior(mean, logvar, key)


def decode_video(
    model: AutoencoderKL, params: Any, latents: np.ndarray, *, chunk: int = 4, tile: int = 512
) -> np.ndarray:
    """One video (F, H, W, 3) in [-1, 1] from its scaled latents (F, h, w, 4); the rest as in `encode_video`."""
    decode = functools.partial(_decode, model, params)
    by_tiles = functools.partial(_by_tiles, decode, tile // model.factor, model.factor)
    return np.clip(map_batches(by_tiles, min(chunk, len(latents)), np.asarray(latents) / model.scaling_factor), -1, 1)


@functools.partial(jax.jit, static_argnums=0)
def _decode(model: AutoencoderKL, params: Any, latents: jax.Array) -> Any:
    return model.apply({"params": params}, latents, method="decode")


def _by_tiles(function: Callable[[np.ndarray], Any], tile: int, scale: float, frames: np.ndarray) -> np.ndarray:
    """`function` on tiles of frames (B, H, W, C) that overlap by a quarter or more, blended with linear ramps.

    Attention and normalisation see one tile, so that seams would show without the blend. `scale` is the size of the
    output over that of the input.
    """
    height, width = frames.shape[1:3]
    tile_height, tile_width = min(tile, height), min(tile, width)
    total, weights = np.zeros(()), np.zeros((1, round(height * scale), round(width * scale), 1), np.float32)
    ramps = _ramp(round(tile_height * scale))[:, None] * _ramp(round(tile_width * scale))[None, :]
    for top in _starts(height, tile_height, scale):
        for left in _starts(width, tile_width, scale):
            out = np.asarray(function(frames[:, top : top + tile_height, left : left + tile_width]))
            if (tile_height, tile_width) == (height, width):
                return out
            if total.ndim == 0:
                total = np.zeros((len(out), *weights.shape[1:3], out.shape[-1]), np.float32)
            place = np.s_[:, round(top * scale) :, round(left * scale) :]
            total[place][:, : ramps.shape[0], : ramps.shape[1]] += ramps[None, :, :, None] * out
            weights[place][:, : ramps.shape[0], : ramps.shape[1]] += ramps[None, :, :, None]
    return total / weights


def _starts(size: int, tile: int, scale: float) -> Sequence[int]:
    """Where tiles begin: evenly spread, the last one ending at the edge, on whole latent cells."""
    cell = max(1, round(1 / scale))
    count = 1 if size <= tile else 1 + -(-(size - tile) // max(cell, tile * 3 // 4))
    return [round(i * (size - tile) / max(count - 1, 1) / cell) * cell for i in range(count)]


def _ramp(length: int) -> np.ndarray:
    """Rises from the edge over a quarter of a tile, falls over the last one; never zero."""
    position = np.arange(1, length + 1, dtype=np.float32)
    return np.minimum(1, np.minimum(position, position[::-1]) / max(1, length // 4))
