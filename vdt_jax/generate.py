"""From a checkpoint and clips to samples: what the scripts call."""

import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.autoencoder import AutoencoderKL, decode_video, encode_video
from vdt_jax.checkpoints import load_config, load_model
from vdt_jax.diffusion import GaussianDiffusion, make_diffusion
from vdt_jax.errors import UserError
from vdt_jax.masks import task_mask
from vdt_jax.models import VDT
from vdt_jax.sampling import SAMPLERS
from vdt_jax.torch_weights.autoencoder import load_autoencoder


class LoadedModel(NamedTuple):
    """A checkpoint, ready to sample: the network, its parameters and the config that it was trained with."""

    model: VDT
    params: Any
    config: dict[str, Any]

    def diffusion(self, num_steps: int) -> GaussianDiffusion:
        """The process that the network was trained for, respaced to this many steps."""
        return respaced(self.config["diffusion"], num_steps, self.model.learn_sigma)


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


def load_vae(where: str | os.PathLike, dtype: str = "float32") -> LoadedAutoencoder:
    """Loads an autoencoder from a folder, a file or the Hugging Face hub."""
    return LoadedAutoencoder(*load_autoencoder(where, dtype))


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


def load(path: str | os.PathLike) -> LoadedModel:
    """Loads a working directory or a converted folder."""
    return LoadedModel(*load_model(path), load_config(path))


def respaced(options: Mapping[str, Any], num_steps: int, learn_sigma: bool) -> GaussianDiffusion:
    """The diffusion of a config's `diffusion` section, with this many steps."""
    if num_steps < 1:
        raise UserError(f"{num_steps} sampling steps cannot be: at least 1")
    return make_diffusion(**options, timestep_respacing=str(num_steps), learn_sigma=learn_sigma)


def sample_keys(seed: int, numbers: range) -> jax.Array:
    """A key for each sample number: a sample depends on the seed and its number, not on its batch."""
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(jnp.asarray(numbers))


def task_masks(seed: int, numbers: range, task: str, model: VDT, num_given: int | None = None) -> jax.Array:
    """The masks (B, F, h, w, 1) of a task for these sample numbers; 1 = generate, 0 = given."""
    return _task_masks(sample_keys(seed, numbers), task, model.video_shape[:3], num_given)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _task_masks(keys: jax.Array, task: str, shape: tuple[int, int, int], num_given: int | None) -> jax.Array:
    return jax.vmap(lambda key: task_mask(jax.random.fold_in(key, 1), task, shape, num_given))(keys)


def generate(
    model: VDT,
    params: Any,
    diffusion: GaussianDiffusion,
    clean: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray,
    keys: jax.Array,
    *,
    sampler: str = "ddpm",
    labels: jax.Array | np.ndarray | None = None,
) -> jax.Array:
    """Samples what the mask asks for.

    Args:
      clean: (B, F, H, W, C) in [-1, 1], read where mask = 0.
      mask: (B, F, H, W, 1), 1 = generate, 0 = given.
      keys: (B,) one for each sample.
      sampler: one of SAMPLERS.
      labels: (B,) classes; None is class 0. A model of one class does not look at them.

    Returns:
      (B, F, H, W, C), equal to `clean` where mask = 0.

    Raises:
      UserError: an unknown sampler, or a label that the model does not have.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"no sampler '{sampler}': choose from {', '.join(SAMPLERS)}")
    if labels is None or model.num_classes == 1:
        labels = jnp.zeros(len(keys), jnp.int32)
    elif not bool(((labels >= 0) & (labels <= model.num_classes)).all()):
        raise UserError(f"labels {labels.tolist()} are not all in 0..{model.num_classes} (the last is 'no label')")
    return _generate(model, diffusion, sampler, params, jnp.asarray(clean), mask, keys, labels)


def generate_clips(
    model: VDT,
    params: Any,
    diffusion: GaussianDiffusion,
    clips: np.ndarray,
    mask: jax.Array | np.ndarray,
    keys: jax.Array,
    *,
    vae: LoadedAutoencoder | None = None,
    encode_full: bool = False,
    paste: bool = True,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """`generate` from pixels to pixels: encoded before and decoded after it where the model is one of latents.

    Args:
      clips: (B, F, H, W, C) in [-1, 1].
      mask: (B, F, h, w, 1) over what the model denoises, 1 = generate, 0 = given.
      vae: the autoencoder of a model of latents.
      encode_full, paste: see LoadedAutoencoder.
      options: of `generate`.

    Returns:
      The samples (B, F, H, W, C) in [-1, 1], and the mask over their pixels (B, F, H, W, 1).
    """
    mask = np.asarray(mask)
    given = clips if vae is None else vae.encode(clips, mask, keys, encode_full)
    samples = np.asarray(generate(model, params, diffusion, given, mask, keys, **options))
    if vae is None:
        return samples, mask
    return vae.decode(samples, clips, mask, paste), enlarge_mask(mask, vae.model.factor)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(model, diffusion, sampler, params, clean, mask, keys, labels):
    def denoise_fn(x_t, timesteps):
        return model.apply({"params": params}, x_t, timesteps, labels)

    return SAMPLERS[sampler](diffusion, denoise_fn, keys, clean, mask)
