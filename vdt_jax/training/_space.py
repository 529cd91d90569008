"""Stands in for vdt_jax.latents.space and vdt_jax.inference.pipeline until they are merged: see the report."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from vdt_jax.inference.generation import CachedClips, generate_clips, load_vae, respaced, sample_keys, task_masks
from vdt_jax.latents.cache import Latents
from vdt_jax.latents.codec import draw_latents, encode_batch
from vdt_jax.latents.space import autoencoder_of

Space = Any


def load_space(vae):
    return None if vae is None else load_vae(vae)


def source_shape(data, model, space):
    return model.video_shape if space is None or data["name"] == "latents" else space.clip_shape(model)


def viewable(space, source):
    return CachedClips(source, space) if isinstance(source, Latents) else source


class BatchEncoder(NamedTuple):
    weights: Any
    encode: Callable[[Any, jax.Array, Any], jax.Array]


def batch_encoder(space, source):
    if isinstance(source, Latents):
        return BatchEncoder(source.scaling_factor, draw_latents)
    return None if space is None else BatchEncoder(space.params, functools.partial(encode_batch, space.model))


def autoencoder_hash(space, source):
    return autoencoder_of(source, space)


class Pipeline(NamedTuple):
    model: Any
    params: Any
    config: Any
    space: Any

    def diffusion(self, steps):
        return respaced(self.config["diffusion"], steps, self.model.learn_sigma)

    def task_masks(self, task, numbers, seed=0):
        return task_masks(seed, numbers, task, self.model)

    def complete(self, clips, mask, keys, *, diffusion, labels=None):
        return generate_clips(
            self.model, self.params, diffusion, clips, mask, keys, vae=self.space, labels=labels
        )


__all__ = ["sample_keys"]
