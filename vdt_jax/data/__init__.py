"""Clips by number: sources (digits, videos, datasets, latents), and the one pipeline that serves them.

`source.clip(number, rng) -> {"video": uint8 (F, H, W, C), "label": int}` is the same for the same number and the same
draws always. It may raise `UnreadableClip`, and the pipeline puts another in its place.
"""

import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vdt_jax.data.clips import MAX_REPLACEMENTS, Clip, Source, UnreadableClip, as_example
from vdt_jax.errors import UserError

SPLITS = ("train", "held_out")
# Imported when they are named: grain, tfds and PyAV take seconds, and a source may stand above this package.
_SOURCES = {
    "moving_digits": "vdt_jax.data.digits:MovingDigits",
    "moving_mnist": "vdt_jax.data.moving_mnist:MovingMnist",
    "synthetic": "vdt_jax.data.synthetic:Synthetic",
    "video_folder": "vdt_jax.data.video_folder:VideoFolder",
    "tfds": "vdt_jax.data.tfds:Tfds",
    "latents": "vdt_jax.latents.cache:Latents",
}


def make_source(
    options: Mapping[str, Any],
    shape: tuple[int, int, int, int],
    split: str,
    bad_files: str | os.PathLike | None = None,
) -> Source:
    """The source that a config's `data` section names.

    Args:
      options: `name`, and the keyword arguments of that source; None and "" are its default. tfds:NAME is a dataset.
      shape: (F, H, W, C) of a clip.
      split: `train`, or `held_out`: clips that training never sees.
      bad_files: a JSON-lines file where a source of files lists those that it cannot read, with the reasons.

    Raises:
      UserError: an unknown name, or what the source says.
    """
    options = {key: value for key, value in options.items() if value not in (None, "")}
    name, colon, dataset = options.pop("name").partition(":")
    taken = keys_of(name)
    if unknown := options.keys() - taken:
        raise UserError(
            f"data source {name} takes no {', '.join(sorted(unknown))}: it takes {sorted(taken) or 'nothing'}"
        )
    options |= {"dataset": dataset} if colon else {}
    options |= {"bad_files": bad_files} if "bad_files" in _parameters(name) else {}
    return _class(name)(shape, split, **options)


def keys_of(name: str) -> set[str]:
    """The keys of a config's `data` section that a source takes, besides `name`.

    Raises:
      UserError: an unknown name.
    """
    return _parameters(name.partition(":")[0]) - {"shape", "split", "dataset", "bad_files"}


def _parameters(name: str) -> set[str]:
    if name not in _SOURCES:
        raise UserError(f"no data source '{name}': choose from {', '.join(_SOURCES)}")
    return set(inspect.signature(_class(name)).parameters)


def _class(name: str) -> Any:
    module, _, attribute = _SOURCES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def take(source: Source, numbers: range) -> dict[str, np.ndarray]:
    """These clips as a batch, {"video": float32 (B, F, H, W, C) in [-1, 1], "labels": (B,) int32}.

    Past the end it begins again. In place of a clip that cannot be read stands the next one that can.

    Raises:
      UserError: none can be read.
    """
    clips = [as_example(_readable_clip(source, number)) for number in numbers]
    return {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}


def _readable_clip(source: Source, number: int) -> Clip:
    reason = None
    tries = min(len(source), MAX_REPLACEMENTS)
    for replacement in range(number, number + tries):
        try:
            return source.clip(replacement % len(source))
        except UnreadableClip as error:
            reason = error
    raise UserError(f"{tries} clips in a row cannot be read; the last: {reason}")
