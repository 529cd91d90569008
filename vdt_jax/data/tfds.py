"""Clips of a tensorflow-datasets dataset, without TensorFlow.

The video of a record is a tensor (T, H, W, C) uint8, or the bytes of a video file. Datasets with Image or Video
features, such as ucf101, need TensorFlow as soon as they are constructed: the extra `tf`.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vdt_jax.data.clips import CENTRED, BadFiles, Clip, UnreadableClip, identity_of
from vdt_jax.data.decoders import Decoders
from vdt_jax.data.windows import Window
from vdt_jax.errors import UserError
from vdt_jax.video import VideoInfo, as_rgb, fit_frame

_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # of features.json; type: as older versions wrote it
_HELD_OUT_SPLITS = ("held_out", "validation", "test")


class Tfds:
    """Clips of a dataset, cropped at the centre, resized, (F, H, W, C) uint8.

    If all videos have the same length, each has as many clips as fit. Otherwise each has one clip, which starts at the
    first frame, or in training anywhere.

    Args:
      shape: (F, H, W, C), C = 3, or 1 for grey.
      split: `train` or `held_out`: the dataset's split held_out, validation or test; without any of them, the last part
        of its train split.
      dataset: a folder that tfds wrote, or the name of a dataset that was prepared as array_record.
      feature: the feature of a record that holds the video.
      held_out: share of the train split that is held out, if the dataset has no such split.
      labels: whether to use the feature `label`.
      stride, hop, short, max_bad, time_limit, memory_limit, bad_files: as for `VideoFolder`.

    Raises:
      UserError: no such dataset, not prepared, one that needs TensorFlow, a feature that is no video, too many
        unreadable records.
    """

    generated = False
    crop = CENTRED

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        split: str,
        dataset: str = "",
        feature: str = "video",
        held_out: float = 0.1,
        stride: int = 1,
        hop: int = 4,
        short: str = "skip",
        labels: bool = False,
        max_bad: float = 0.1,
        time_limit: float = 10.0,
        memory_limit: int = 3000,
        bad_files: str | os.PathLike | None = None,
    ):
        if not dataset:
            raise UserError("data.name has no dataset: write tfds:FOLDER, or tfds:NAME")
        if shape[3] not in (1, 3):
            raise UserError(f"in_channels must be 3, or 1 for grey, for a dataset of videos; got {shape[3]}")
        if not 0 <= held_out < 1:
            raise UserError(f"data.held_out must be from 0 to less than 1, got {held_out:g}")
        self._shape, self._feature = shape, feature
        self._window = Window(shape[0], stride, 0.0, hop, short)
        self._decoders = Decoders(time_limit, memory_limit)
        self._data, info, whole = _open(dataset, split)
        files = [[name, list(part.shard_lengths), part.num_bytes] for name, part in sorted(info.splits.items())]
        self.identity = identity_of([info.full_name, *files])
        _check_feature(dataset, info.features, feature)
        if labels and "label" not in info.features:
            raise UserError(f"{dataset} has no feature 'label': leave out data.labels")
        self._labels = labels
        self.num_classes = getattr(info.features["label"], "num_classes", None) or 1 if labels else 1
        count = len(self._data)
        kept = count if whole else max(1, count - round(count * held_out))
        self._records = range(kept, count) if not whole and split == "held_out" and kept < count else range(kept)
        length = (info.features[feature].shape or (None,))[0]
        # Clips of a record: 0 where that differs from record to record, and each has one.
        self._per_record = 0 if length is None else self._window.count(VideoInfo(length, 25.0, 0, 0))
        if length is not None and not self._per_record:
            raise UserError(
                f"the videos of {dataset} have {length} frames, too few for {shape[0]} at stride {stride}: choose "
                "fewer frames, a smaller stride or data.short=pad"
            )
        self._bad = BadFiles(len(self._records), max_bad, bad_files)

    def __len__(self) -> int:
        return len(self._records) * max(1, self._per_record)

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`; if videos differ in length, `rng` draws where a clip starts.

        Unreadable records are listed in `bad_files`, too short ones are not.
        """
        place, which = divmod(number, max(1, self._per_record))
        record = self._records[place]
        with self._bad.noted(f"record {record}"):
            values, info = self._look_at(record)
        if not self._per_record:
            count = self._window.count(info)
            if not count:
                raise UnreadableClip(f"record {record} has {info.num_frames} frames, too few")
            which = int(rng.integers(count)) if rng is not None else 0
        numbers, video = self._window.numbers(info, which), values[self._feature]
        height, width, channels = self._shape[1:]
        if isinstance(video, bytes):
            with self._bad.noted(f"record {record}"):
                frames = self._decoders.clip(None, numbers, info, (height, width, channels), content=video)
        else:
            frames = np.stack([fit_frame(frame, (height, width), channels) for frame in as_rgb(video[numbers])])
        return {"video": frames, "label": int(values["label"]) if self._labels else 0}

    def _look_at(self, record: int) -> tuple[dict[str, Any], VideoInfo]:
        """The values of a record, and the VideoInfo of its video: an array, or the bytes of a file."""
        try:
            values = self._data[record]
        except Exception as error:  # array_record, protobuf and tfds raise many types on a corrupt file
            raise UnreadableClip(f"cannot be read ({_line(error)})") from None
        video = values[self._feature]
        if isinstance(video, bytes):
            return values, self._decoders.probe(None, video)
        if not len(video):
            raise UnreadableClip("has no frames")
        return values, VideoInfo(len(video), 25.0, 0, 0)


def _check_feature(dataset: str, features: Any, name: str) -> None:
    """Raises UserError if a feature is neither uint8 (T, H, W, C) with C = 1 or 3, nor bytes."""
    if name not in features:
        raise UserError(f"{dataset} has no feature '{name}': data.feature can be {', '.join(features)}")
    shape, dtype = features[name].shape, features[name].np_dtype
    encoded = not isinstance(shape, dict) and shape == () and dtype == np.object_
    if not encoded and (isinstance(shape, dict) or dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3)):
        kind = "several features" if isinstance(shape, dict) else f"{np.dtype(dtype).name} of shape {shape}"
        raise UserError(
            f"data.feature={name} of {dataset} is {kind}: a video is uint8 (T, H, W, C) with 1 or 3 channels, or the "
            f"bytes of a file; its features are {', '.join(features)}"
        )


def _open(dataset: str, split: str) -> tuple[Any, Any, bool]:
    """The records of a split, the dataset's info, and whether the split is the dataset's own."""
    import tensorflow_datasets as tfds  # takes a second
    from google.protobuf.json_format import ParseError

    builder: Any
    folder = next((file.parent for file in sorted(Path(dataset).rglob("dataset_info.json"))), None)
    if folder:
        _check_classes(folder)
    elif re.match(r"[\w-]+:(?![\d*])", dataset):  # a name may end with a version, as in mnist:3.*.*
        raise UserError(
            f"folder not found: {dataset}; community datasets of tfds are not supported: prepare it in a folder first"
        )
    with _refused(dataset, ImportError, NotImplementedError, ValueError, ParseError):  # ValueError: an unknown name
        builder = tfds.builder_from_directory(folder) if folder else tfds.builder(dataset, file_format="array_record")
    splits = builder.info.splits
    if not splits:
        prepare = f"tfds.builder('{dataset}', file_format='array_record').download_and_prepare()"
        raise UserError(
            f"the dataset {dataset} is not prepared on this machine: "
            f'python -c "import tensorflow_datasets as tfds; {prepare}"'
        )
    own = "train" if split == "train" else next((name for name in _HELD_OUT_SPLITS if name in splits), None)
    if "train" not in splits:
        raise UserError(f"{dataset} has no split 'train' but {', '.join(splits)}: write it with one")
    whole = own is not None and any(name in splits for name in _HELD_OUT_SPLITS)
    with _refused(dataset, ImportError, NotImplementedError):
        return builder.as_data_source(split=own or "train"), builder.info, whole


def _check_classes(folder: Path) -> None:
    """Raises UserError where features.json names classes outside of tfds, which tfds would import."""
    file = folder / "features.json"
    try:
        names = set(_class_names(json.loads(file.read_text())))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}): the dataset is damaged, prepare it again") from None
    if others := sorted(name for name in names if not name.startswith("tensorflow_datasets.core.features.")):
        raise UserError(f"{file} names the class {others[0]!r}: only features of tfds are read; write it with those")


def _class_names(value: Any) -> Iterator[str]:
    """The classes that a features.json names, also in the JSON that its texts hold."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            nested = json.loads(value)
            yield from _class_names(nested) if isinstance(nested, dict | list) else ()
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        if key in _CLASS_KEYS and isinstance(item, str):
            yield item
        yield from _class_names(item)


@contextlib.contextmanager
def _refused(dataset: str, *failures: type[Exception]) -> Iterator[None]:
    """Turns these exceptions of tfds into one line."""
    try:
        yield
    except failures as error:
        if isinstance(error, ImportError):
            raise UserError(f"{dataset} needs TensorFlow ({_line(error)}): pip install tensorflow") from None
        raise UserError(
            f"{dataset} is neither a folder that tfds wrote nor a dataset that tfds knows without TensorFlow "
            f"({_line(error)}): for its datasets with Image or Video features, pip install tensorflow"
        ) from None


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
