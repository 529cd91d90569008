"""Clips by number: sources (digits, videos, datasets, latents, your own class), and one pipeline for all of them."""

from vdt_jax.data.clips import Clip, Source, UnreadableClip, take
from vdt_jax.data.sources import SPLITS, is_built_in, keys_of, make_source

__all__ = ["SPLITS", "Clip", "Source", "UnreadableClip", "is_built_in", "keys_of", "make_source", "take"]
