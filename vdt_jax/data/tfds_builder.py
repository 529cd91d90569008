"""Writes clips as a tensorflow-datasets dataset of ArrayRecord files, without TensorFlow."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vdt_jax.data.clips import Clip


class VideoClips(tfds.core.GeneratorBasedBuilder):
    """Clips `video` (F, H, W, C) uint8 with their `label`, in the order in which they come.

    Args:
      splits: clips by the name of a split.
      shape: (F, H, W, C).
      classes: names of the labels.
      options: of tfds's builders.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, splits: Mapping[str, Iterable[Clip]], shape: Sequence[int], classes: Sequence[str], **options: Any
    ):
        self._clips, self._shape, self._classes = splits, tuple(shape), list(classes)
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clips cut out of videos by vdt_jax's prepare.py.",
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Tensor(shape=self._shape, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=self._classes),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, _: Any) -> dict[str, Any]:
        return {name: self._generate_examples(clips) for name, clips in self._clips.items()}

    def _generate_examples(self, clips: Iterable[Clip]) -> Iterable[tuple[int, Clip]]:
        yield from enumerate(clips)


def write_dataset(
    path: str | os.PathLike, splits: Mapping[str, Iterable[Clip]], shape: Sequence[int], classes: Sequence[str]
) -> Path:
    """Writes a dataset below a folder, whole or not at all; returns where it is. Progress is the caller's to show."""
    tfds.disable_progress_bar()
    builder = VideoClips(splits=splits, shape=shape, classes=classes, data_dir=path, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)
