"""From a checkpoint and clips to samples: what the scripts call."""

import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.checkpoints import load_config, load_model
from vdt_jax.diffusion import GaussianDiffusion, make_diffusion
from vdt_jax.errors import UserError
from vdt_jax.masks import task_mask
from vdt_jax.models import VDT
from vdt_jax.sampling import SAMPLERS


class LoadedModel(NamedTuple):
    """A checkpoint, ready to sample: the network, its parameters and the config that it was trained with."""

    model: VDT
    params: Any
    config: dict[str, Any]

    def diffusion(self, num_steps: int) -> GaussianDiffusion:
        """The process that the network was trained for, respaced to this many steps."""
        return respaced(self.config["diffusion"], num_steps, self.model.learn_sigma)


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
    keys = sample_keys(seed, numbers)
    return jnp.stack([task_mask(jax.random.fold_in(key, 1), task, model.video_shape[:3], num_given) for key in keys])


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


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(model, diffusion, sampler, params, clean, mask, keys, labels):
    def denoise_fn(x_t, timesteps):
        return model.apply({"params": params}, x_t, timesteps, labels)

    return SAMPLERS[sampler](diffusion, denoise_fn, keys, clean, mask)
