"""Writes clips as a tensorflow-datasets dataset of ArrayRecord files, without TensorFlow."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vdt_jax.data.clips import Clip, Source, UnreadableClip


class VideoClips(tfds.core.GeneratorBasedBuilder):
    """A dataset of clips: `video` (F, H, W, C) uint8, `label` and perhaps `actions` (F,), in the given order."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        splits: Mapping[str, Iterable[Clip]],
        shape: Sequence[int],
        classes: Sequence[str],
        actions: Sequence[str] = (),
        **options: Any,
    ):
        self._clips, self._shape, self._classes, self._actions = splits, tuple(shape), list(classes), list(actions)
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            "video": tfds.features.Tensor(shape=self._shape, dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=self._classes),
        }
        if self._actions:
            names = tfds.features.ClassLabel(names=self._actions)
            features["actions"] = tfds.features.Sequence(names, length=self._shape[0])
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clips cut out of videos by vdt_jax's prepare.py.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, _: Any) -> dict[str, Any]:
        return {name: self._generate_examples(clips) for name, clips in self._clips.items()}

    def _generate_examples(self, clips: Iterable[Clip]) -> Iterable[tuple[int, Clip]]:
        yield from enumerate(clips)


def readable_clips(source: Source, advance: Callable[[int], object]) -> Iterator[Clip]:
    """The clips of a source in order, without unreadable ones, decoded in parallel; calls `advance(1)` after each."""

    def read(number: int) -> Clip | None:
        try:
            return source.clip(number)
        except UnreadableClip:
            return None

    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(source), 4 * threads):
            for clip in pool.map(read, range(first, min(first + 4 * threads, len(source)))):
                advance(1)
                if clip is not None:
                    yield clip


def write_dataset(
    path: str | os.PathLike,
    splits: Mapping[str, Iterable[Clip]],
    shape: Sequence[int],
    classes: Sequence[str],
    actions: Sequence[str] = (),
) -> Path:
    """Writes a dataset below a folder, atomically, and returns its folder; see `VideoClips`."""
    tfds.disable_progress_bar()
    options = {"data_dir": path, "file_format": "array_record"}
    builder = VideoClips(splits=splits, shape=shape, classes=classes, actions=actions, **options)
    builder.download_and_prepare()
    return Path(builder.data_dir)
