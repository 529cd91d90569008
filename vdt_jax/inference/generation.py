"""From a checkpoint and clips to samples: what the scripts call.

The loop over steps is one program, compiled for the shapes of a batch and reused for any other batch, scale of
guidance or stretch of steps. A batch is spread over the devices that hold the parameters.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.checkpoints import load_config, load_model
from vdt_jax.diffusion.gaussian import GaussianDiffusion, make_diffusion
from vdt_jax.diffusion.masks import task_mask
from vdt_jax.distributed.mesh import make_mesh, replicated
from vdt_jax.errors import UserError
from vdt_jax.inference.functional import generate, generate_on_devices, measure_step
from vdt_jax.latents.space import CachedClips, LoadedAutoencoder, clip_shape, enlarge_mask, load_vae, sampled_clips
from vdt_jax.models.vdt import VDT

__all__ = [
    "CachedClips",
    "LoadedAutoencoder",
    "LoadedModel",
    "clip_shape",
    "enlarge_mask",
    "generate",
    "generate_clips",
    "generate_on_devices",
    "load",
    "load_model",
    "load_vae",
    "measure_step",
    "respaced",
    "sample_keys",
    "sampled_clips",
    "task_masks",
    "window_filler",
]


class LoadedModel(NamedTuple):
    """A checkpoint, ready to sample: the network, its parameters and the config that it was trained with."""

    model: VDT
    params: Any
    config: dict[str, Any]

    def diffusion(self, steps: int | str) -> GaussianDiffusion:
        """The process that the network was trained for, respaced: a number of steps, or a string as for schedules."""
        return respaced(self.config["diffusion"], steps, self.model.learn_sigma)


def load(path: str | os.PathLike) -> LoadedModel:
    """Loads a working directory or a converted folder, onto every device."""
    model, params = load_model(path)
    return LoadedModel(model, jax.device_put(params, replicated(make_mesh())), load_config(path))


def respaced(options: Mapping[str, Any], steps: int | str, learn_sigma: bool) -> GaussianDiffusion:
    """The diffusion of a config's `diffusion` section, with these steps: a number, or as `respace_timesteps` takes."""
    if isinstance(steps, int) and steps < 1:
        raise UserError(f"{steps} sampling steps cannot be: at least 1")
    return make_diffusion(**options, timestep_respacing=str(steps), learn_sigma=learn_sigma)


def sample_keys(seed: int, numbers: range) -> jax.Array:
    """A key for each sample number: a sample depends on the seed and its number, not on its batch."""
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(jnp.asarray(numbers))


def task_masks(seed: int, numbers: range, task: str, model: VDT, num_given: int | None = None) -> jax.Array:
    """The masks (B, F, h, w, 1) of a task for these sample numbers; 1 = generate, 0 = given."""
    return _task_masks(sample_keys(seed, numbers), task, model.video_shape[:3], num_given)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _task_masks(keys: jax.Array, task: str, shape: tuple[int, int, int], num_given: int | None) -> jax.Array:
    return jax.vmap(lambda key: task_mask(jax.random.fold_in(key, 1), task, shape, num_given))(keys)


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
    """`generate_on_devices` from pixels to pixels: a model of latents encodes before it and decodes after it.

    Args:
      clips: (B, F, H, W, C) in [-1, 1].
      mask: (B, F, h, w, 1) over what the model denoises, 1 = generate, 0 = given.
      vae: the autoencoder of a model of latents.
      encode_full, paste: see LoadedAutoencoder.
      options: of `generate_on_devices`.

    Returns:
      The samples (B, F, H, W, C) in [-1, 1], and the mask over their pixels (B, F, H, W, 1).
    """
    mask = np.asarray(mask)
    given = clips if vae is None else vae.encode(clips, mask, keys, encode_full)
    samples = generate_on_devices(model, params, diffusion, given, mask, keys, **options)
    if vae is None:
        return samples, mask
    return vae.decode(samples, clips, mask, paste), enlarge_mask(mask, vae.model.factor)


def window_filler(
    model: VDT,
    params: Any,
    diffusion: GaussianDiffusion,
    keys: jax.Array,
    *,
    labels: np.ndarray | None = None,
    rows: int | None = None,
    **options: Any,
) -> Callable[[np.ndarray, np.ndarray, range], np.ndarray]:
    """What completes the windows of a long video, as `windows.extend` and `windows.raise_frame_rate` want it.

    Args:
      keys: (B,) one for each sample that `extend` goes on with, or (1,) for `raise_frame_rate`.
      labels: (B,) or (1,) alike.
      rows: windows of a call, where they are those of one video: fewer are padded, so that one program serves all.
      options: of `generate_clips`.
    """

    def fill(clips: np.ndarray, mask: np.ndarray, numbers: range) -> np.ndarray:
        size = max(len(clips), rows or 0)
        take = np.minimum(np.arange(size), len(clips) - 1)
        samples, windows = np.broadcast_arrays(np.arange(len(keys)), np.asarray(numbers)[take if rows else 0])
        each_key = _fold_in(keys[samples], windows)
        positions = np.broadcast_to(mask[take][..., None, None, None], (*mask[take].shape, *model.frame_size, 1))
        each_label = None if labels is None else labels[samples]
        filled, _ = generate_clips(
            model, params, diffusion, clips[take], positions, each_key, labels=each_label, **options
        )
        return filled[: len(clips)]

    return fill


@jax.jit
def _fold_in(keys: jax.Array, windows: jax.Array) -> jax.Array:
    return jax.vmap(lambda key, window: jax.random.fold_in(jax.random.fold_in(key, 4), window))(keys, windows)
