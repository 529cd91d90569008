"""The space that a model denoises in: pixels, or the latents of an autoencoder.

Everything that differs between the two is here: shapes, encoding, decoding, masks, hashes, and which clips a data
source must serve. The rest of the package asks a `Space`.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.data import Source, make_source
from vdt_jax.data.clips import Clip
from vdt_jax.errors import UserError
from vdt_jax.latents.cache import Latents
from vdt_jax.latents.codec import decode_video, draw_latents, encode_batch, encode_video
from vdt_jax.models.autoencoder import AutoencoderKL
from vdt_jax.models.fingerprint import fingerprint
from vdt_jax.models.vdt import VDT
from vdt_jax.video import to_uint8
from vdt_jax.weights.autoencoder import load_autoencoder


@dataclasses.dataclass(frozen=True)
class PixelSpace:
    """The model denoises the clips themselves: clips, samples and masks pass through unchanged."""

    hash = None

    def clip_shape(self, model: VDT) -> tuple[int, int, int, int]:
        return model.video_shape

    def encode(self, clips: np.ndarray, mask: np.ndarray, keys: jax.Array, encode_full: bool = False) -> np.ndarray:
        return clips

    def decode(self, x: np.ndarray, clips: np.ndarray, mask: np.ndarray, paste: bool = True) -> np.ndarray:
        return x

    def enlarge_mask(self, mask: np.ndarray) -> np.ndarray:
        return mask

    def shrink_mask(self, mask: np.ndarray) -> np.ndarray:
        return mask


@dataclasses.dataclass(frozen=True, eq=False)
class VaeSpace:
    """The model denoises the latents of an autoencoder, which encodes and decodes frame by frame."""

    model: AutoencoderKL
    params: Any

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the autoencoder's sizes and parameters."""
        return fingerprint(self.model, self.params)

    def clip_shape(self, model: VDT) -> tuple[int, int, int, int]:
        """(F, H, W, C) of the clips whose latents this VDT denoises.

        Raises:
          UserError: the VDT has a different number of channels than the latents.
        """
        num_frames, height, width, channels = model.video_shape
        if channels != self.model.latent_channels:
            raise UserError(
                f"the model has {channels} channels, the latents of the autoencoder have {self.model.latent_channels}: "
                "leave out --vae, or name the autoencoder that the model was trained with"
            )
        return num_frames, height * self.model.factor, width * self.model.factor, self.model.in_channels

    def encode(self, clips: np.ndarray, mask: np.ndarray, keys: jax.Array, encode_full: bool = False) -> jax.Array:
        """Scaled latents of clips, drawn from the posterior.

        Hidden pixels are first replaced by the mean of the clip's given pixels: the autoencoder's global attention
        would otherwise spread them over the whole frame, into the latents of given cells.

        Args:
          clips: (B, F, H, W, 3) in [-1, 1].
          mask: (B, F, h, w, 1) over the latents, 1 = generate, 0 = given.
          keys: (B,) one for each sample.
          encode_full: encodes the hidden pixels too, as the official code does.

        Returns:
          (B, F, h, w, C); zeros for frames without a given cell, which are not encoded.
        """
        if not encode_full:
            hidden = self.enlarge_mask(mask) > 0.5
            given = np.where(hidden, np.nan, clips).reshape(len(clips), -1, clips.shape[-1])
            counts = np.maximum(np.isfinite(given).sum(axis=1), 1)
            mean = np.nansum(given, axis=1) / counts
            clips = np.where(hidden, mean[:, None, None, None].astype(np.float32), clips)
        latents: Any = np.zeros((*mask.shape[:-1], self.model.latent_channels), np.float32)
        for clip, key, out, given in zip(clips, keys, latents, np.any(mask < 0.5, axis=(2, 3, 4)), strict=True):
            if given.any():
                key = jax.random.fold_in(key, 2)
                out[given] = encode_video(self.model, self.params, clip[given], key=key)
        return jnp.asarray(latents)

    def decode(self, x: Any, clips: np.ndarray, mask: np.ndarray, paste: bool = True) -> np.ndarray:
        """Clips (B, F, H, W, 3) of scaled latents x (B, F, h, w, C), with the given pixels of `clips` pasted back.

        Args:
          mask: (B, F, h, w, 1) over the latents, 1 = generate, 0 = given.
          paste: False returns given pixels as the autoencoder decodes them.
        """
        decoded = np.array(clips)
        for out, video, generated in zip(decoded, np.asarray(x), np.any(mask > 0.5, axis=(2, 3, 4)), strict=True):
            frames = generated if paste else np.ones_like(generated)
            if frames.any():
                out[frames] = decode_video(self.model, self.params, video[frames])
        return np.where(self.enlarge_mask(mask) > 0.5, decoded, clips) if paste else decoded

    def enlarge_mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask (B, F, h, w, 1) over latents as one over pixels (B, F, H, W, 1); 1 = generate, 0 = given."""
        return np.asarray(mask).repeat(self.model.factor, axis=2).repeat(self.model.factor, axis=3)

    def shrink_mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask (B, F, H, W, 1) over pixels as one over latents (B, F, h, w, 1).

        1 = generate, 0 = given; a cell is generated if any of its pixels is.
        """
        factor = self.model.factor
        height, width = mask.shape[2] // factor, mask.shape[3] // factor
        return mask.reshape(*mask.shape[:2], height, factor, width, factor, 1).max(axis=(3, 5))


Space = PixelSpace | VaeSpace


def load_space(vae: str | os.PathLike | None, dtype: str = "float32", config: Mapping[str, Any] | None = None) -> Space:
    """The space of a model: pixels, or the latents of an autoencoder from a folder, a file or the Hugging Face hub.

    Args:
      vae: the autoencoder, or None for pixels.
      dtype: what the autoencoder computes in, `float32` or `bfloat16`.
      config: of the checkpoint that it is for.

    Raises:
      UserError: no autoencoder there, or not the one that `config` names.
    """
    if vae is None:
        return PixelSpace()
    space = VaeSpace(*load_autoencoder(vae, dtype))
    trained_with = (config or {}).get("autoencoder")
    if trained_with not in (None, space.hash):
        raise UserError(
            f"the model was trained with the autoencoder {trained_with[:12]}, --vae={vae} is {space.hash[:12]}: "
            "name the autoencoder that it was trained with"
        )
    return space


def source_shape(
    data: Mapping[str, Any], model: VDT, space: Space, num_frames: int | None = None
) -> tuple[int, int, int, int]:
    """(F, H, W, C) of the clips of a config's `data` section: latents for a cache, pixels otherwise."""
    shape = model.video_shape if data["name"] == "latents" else space.clip_shape(model)
    return (num_frames or shape[0], *shape[1:])


def pixel_source(
    data: Mapping[str, Any], model: VDT, space: Space, split: str, num_frames: int | None = None
) -> Source:
    """The clips of a config's `data` section as they are looked at, sampled and evaluated: see `viewable`."""
    return viewable(space, make_source(data, source_shape(data, model, space, num_frames), split))


def viewable(space: Space, source: Source) -> Source:
    """The source itself, or that of a latent cache decoded; UserError if a different autoencoder made the cache."""
    return CachedClips(source, space) if isinstance(source, Latents) else source


class CachedClips:
    """The modes of a latent cache's clips: pixels (F, H, W, 3) uint8, without an autoencoder latents (F, h, w, C)."""

    def __init__(self, cache: Latents, space: Space):
        if isinstance(space, VaeSpace):
            cache.check_autoencoder(space.hash)
        self._cache, self._space, self.num_classes = cache, space, cache.num_classes
        self.generated, self.crop = cache.generated, cache.crop

    def __len__(self) -> int:
        return len(self._cache)

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`."""
        clip = self._cache.clip(number, rng)
        latents = np.asarray(draw_latents(self._cache.scaling_factor, clip["video"], None))
        if isinstance(self._space, PixelSpace):
            return clip | {"video": latents}
        return clip | {"video": to_uint8(decode_video(self._space.model, self._space.params, latents))}


class BatchEncoder(NamedTuple):
    """What a training batch passes through on the device: `encode(weights, video, key)` gives scaled latents."""

    weights: Any
    encode: Callable[[Any, jax.Array, jax.Array], jax.Array]


def batch_encoder(space: Space, source: Source) -> BatchEncoder | None:
    """The encoder of a run's batches: draws from the moments of a cache, or an autoencoder; None for pixels."""
    if isinstance(source, Latents):
        return BatchEncoder(source.scaling_factor, draw_latents)
    if isinstance(space, VaeSpace):
        return BatchEncoder(space.params, functools.partial(encode_batch, space.model))
    return None


def autoencoder_hash(space: Space, source: Source) -> str | None:
    """The hash of the autoencoder whose latents a run is trained on, for its config.json; None for pixels."""
    return source.autoencoder if isinstance(source, Latents) else space.hash
