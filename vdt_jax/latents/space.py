"""Pixels to latents and back, for models of latents."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.data import Source, make_source
from vdt_jax.data.clips import Clip
from vdt_jax.errors import UserError
from vdt_jax.latents.cache import Latents
from vdt_jax.latents.codec import decode_video, draw_latents, encode_video
from vdt_jax.models.autoencoder import AutoencoderKL
from vdt_jax.models.fingerprint import fingerprint
from vdt_jax.models.vdt import VDT
from vdt_jax.video import to_uint8
from vdt_jax.weights.autoencoder import load_autoencoder


class LoadedAutoencoder(NamedTuple):
    """An autoencoder and its parameters, for models of latents."""

    model: AutoencoderKL
    params: Any

    def clip_shape(self, model: VDT) -> tuple[int, int, int, int]:
        """(F, H, W, C) of the clips whose latents this VDT denoises.

        Raises:
          UserError: a VDT of other latents.
        """
        num_frames, height, width, channels = model.video_shape
        if channels != self.model.latent_channels:
            raise UserError(
                f"this model takes {channels} channels, the autoencoder makes {self.model.latent_channels}: "
                "leave out --vae, or name the one that the model was trained with"
            )
        return num_frames, height * self.model.factor, width * self.model.factor, self.model.in_channels

    def encode(self, clips: np.ndarray, mask: np.ndarray, keys: jax.Array, encode_full: bool = False) -> jax.Array:
        """Scaled latents of clips, drawn from the posterior.

        Hidden pixels are first replaced by the mean of the clip's given ones: attention spreads what stands there over
        the whole frame, so that the latents of the given cells would tell of it.

        Args:
          clips: (B, F, H, W, 3) in [-1, 1].
          mask: (B, F, h, w, 1) over the latents, 1 = generate, 0 = given.
          keys: (B,) one for each sample.
          encode_full: encodes the hidden pixels too, as the official code does.

        Returns:
          (B, F, h, w, C); zeros for frames of which nothing is given, which are not encoded.
        """
        if not encode_full:
            hidden = enlarge_mask(mask, self.model.factor) > 0.5
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

    def decode(self, latents: Any, clips: np.ndarray, mask: np.ndarray, paste: bool = True) -> np.ndarray:
        """Clips (B, F, H, W, 3) of scaled latents (B, F, h, w, C), with the given pixels of `clips` pasted back."""
        decoded = np.array(clips)
        for out, video, generated in zip(decoded, np.asarray(latents), np.any(mask > 0.5, axis=(2, 3, 4)), strict=True):
            frames = generated if paste else np.ones_like(generated)
            if frames.any():
                out[frames] = decode_video(self.model, self.params, video[frames])
        return np.where(enlarge_mask(mask, self.model.factor) > 0.5, decoded, clips) if paste else decoded


def enlarge_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """A mask (B, F, h, w, 1) over latents as one over their pixels, (B, F, H, W, 1); 1 = generate, 0 = given."""
    return np.asarray(mask).repeat(factor, axis=2).repeat(factor, axis=3)


def shrink_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """A mask (B, F, H, W, 1) over pixels as one over latents, (B, F, h, w, 1): any pixel generated, the cell is too."""
    height, width = mask.shape[2] // factor, mask.shape[3] // factor
    return mask.reshape(*mask.shape[:2], height, factor, width, factor, 1).max(axis=(3, 5))


def load_vae(
    where: str | os.PathLike, dtype: str = "float32", config: Mapping[str, Any] | None = None
) -> LoadedAutoencoder:
    """Loads an autoencoder from a folder, a file or the Hugging Face hub.

    Args:
      config: of the checkpoint that it is for.

    Raises:
      UserError: none there, or another than the one that the checkpoint was trained with, where that is known.
    """
    vae = LoadedAutoencoder(*load_autoencoder(where, dtype))
    trained_with = (config or {}).get("autoencoder")
    if trained_with is not None and trained_with != (named := fingerprint(*vae)):
        raise UserError(
            f"the model was trained with the autoencoder {trained_with[:12]}, --vae={where} is {named[:12]}: name the "
            "one that it was trained with"
        )
    return vae


def autoencoder_of(source: Source, vae: LoadedAutoencoder | None) -> str | None:
    """The hash of the autoencoder whose latents a run is trained on, for its config.json; None for a run on pixels."""
    if isinstance(source, Latents):
        return source.autoencoder
    return None if vae is None else fingerprint(*vae)


def clip_shape(model: VDT, vae: LoadedAutoencoder | None) -> tuple[int, int, int, int]:
    """(F, H, W, C) of the clips that a model works on, through its autoencoder if it is one of latents.

    Raises:
      UserError: a model of latents without an autoencoder, or with another's.
    """
    if vae is not None:
        return vae.clip_shape(model)
    if model.in_channels not in (1, 3):
        raise UserError(f"this is a model of latents ({model.in_channels} channels): add --vae=FOLDER")
    return model.video_shape


class CachedClips:
    """The clips of a latent cache as they are looked at: the mode of each, decoded where there is an autoencoder.

    A `Source` of pixels, (F, H, W, 3) uint8, or without an autoencoder of scaled latents, (F, h, w, C) float32.

    Raises:
      UserError: another autoencoder than the one that made the cache.
    """

    def __init__(self, cache: Latents, vae: LoadedAutoencoder | None):
        if vae is not None:
            cache.check_autoencoder(fingerprint(*vae))
        self._cache, self._vae, self.num_classes = cache, vae, cache.num_classes
        self.generated, self.crop = cache.generated, cache.crop

    def __len__(self) -> int:
        return len(self._cache)

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`."""
        clip = self._cache.clip(number, rng)
        latents = np.asarray(draw_latents(self._cache.scaling_factor, clip["video"], None))
        return clip | {"video": latents if self._vae is None else to_uint8(decode_video(*self._vae, latents))}


def sampled_clips(
    data: Mapping[str, Any], model: VDT, vae: LoadedAutoencoder | None, split: str, num_frames: int | None = None
) -> Source:
    """The clips of a config's `data` section that a model is sampled on: pixels, those of cached latents too.

    Args:
      num_frames: of a clip; the model's if not said.
    """
    cached = data["name"] == "latents"
    shape = model.video_shape if cached and vae is not None else clip_shape(model, vae)
    source = make_source(data, (num_frames or shape[0], *shape[1:]), split)
    return CachedClips(source, vae) if isinstance(source, Latents) else source
