"""Clips of the videos of a folder, at any depth, or of a list."""

import os

import numpy as np

from vdt_jax.data.clips import CENTRED, BadFiles, Clip, SlowClip, UnreadableClip, identity_of
from vdt_jax.data.decoders import Decoders
from vdt_jax.data.discover import find_videos
from vdt_jax.data.index import index_videos, sizes
from vdt_jax.data.windows import ClipTable, Window, class_numbers, log_short, of_split, usable
from vdt_jax.errors import UserError
from vdt_jax.video import CENTRE, CENTRE_AS_DIT, Crop

# From the name of a crop to its description in the report of an evaluation, and the crop itself.
_CROPS = {
    "exact": (CENTRED, CENTRE),
    "dit": ("centre, as DiT's center_crop_arr: halved, then bicubic, then whole pixels", CENTRE_AS_DIT),
}
# From the name of an option to a test whether a value is in its range, and the range in words.
_RANGES = {
    "random_crop": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "held_out": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "max_bad": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "time_limit": (lambda value: value > 0, "> 0"),
    "memory_limit": (lambda value: value > 0, "> 0"),
}


class VideoFolder:
    """Clips of the videos below a folder or in a list: cropped, resized, (F, H, W, C) uint8.

    Args:
      shape: (F, H, W, C), C = 3, or 1 for grey.
      split: `train` or `held_out`; splits are by whole video, see `of_split`.
      path: the folder, or a .csv or .jsonl list, see `find_videos`.
      held_out_path: another folder or list, for the held-out split; then all of `path` is for training.
      held_out: share of the videos that is held out, at least one; with 0 all videos are in both splits.
      stride, fps, hop, short: see `Window`.
      labels: whether videos have classes: the folders directly below `path`, or the list's labels, in natural order.
      crop: `exact`, the largest centred window, with sub-pixel precision; `dit`, as DiT's code crops.
      random_crop: smallest size of the random crops of training clips, as a share of the largest crop that fits; 0 for
        the centre.
      random_flip: whether half of the training clips are mirrored.
      max_bad: share of the videos that may be unreadable.
      time_limit, memory_limit: seconds and megabytes that decoding a clip may take, see `Decoders`.
      bad_files: where to list unreadable videos, with the reasons.

    Attributes:
      classes: the names of the labels.

    Raises:
      UserError: no folder, no videos in it, none long enough, too many unreadable ones.
    """

    generated = False

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        split: str,
        path: str = "",
        held_out_path: str = "",
        held_out: float = 0.1,
        stride: int = 1,
        fps: float = 0.0,
        hop: int = 4,
        short: str = "skip",
        labels: bool = False,
        crop: str = "exact",
        random_crop: float = 0.0,
        random_flip: bool = False,
        max_bad: float = 0.1,
        time_limit: float = 10.0,
        memory_limit: int = 3000,
        bad_files: str | os.PathLike | None = None,
    ):
        if not path:
            raise UserError("data.path is missing: add --config.data.path=FOLDER")
        if shape[3] not in (1, 3):
            raise UserError(f"in_channels must be 3, or 1 for grey, for a folder of videos; got {shape[3]}")
        _check_ranges(random_crop=random_crop, held_out=held_out, max_bad=max_bad)
        _check_ranges(time_limit=time_limit, memory_limit=memory_limit)
        self.crop, self._centre = _centre_crop(crop, random_crop)
        self._shape, self._random_crop, self._random_flip = shape, random_crop, random_flip
        self._window = Window(shape[0], stride, fps, hop, short)
        self._decoders = Decoders(time_limit, memory_limit)

        self._root, found = find_videos(path)
        classes = class_numbers(found)
        if held_out_path and split == "held_out":
            self._root, found = find_videos(held_out_path)
        self._bad = BadFiles(len(found), max_bad, bad_files)
        known = index_videos(self._root, found, self._decoders, self._bad)
        chosen = range(len(found)) if held_out_path else of_split(found, split, held_out)
        self._chosen = [found[n] for n in chosen]
        if split == "train" or held_out_path:
            log_short(self._root, self._window, known)
        self._videos = usable([(found[n], known[n]) for n in chosen], self._window, split, self._root)
        self._clips = ClipTable([self._window.count(info) for _, info in self._videos])
        self._slow: set[int] = set()  # videos whose other clips are not tried: each could take as long
        self._labels = classes if labels else {}
        self.classes = list(self._labels) or [""]
        self.num_classes = len(self.classes)
        if labels and (unknown := {video.label for video, _ in self._videos} - classes.keys()):
            names = ", ".join(sorted(unknown)[:5])
            remedy = f"({len(unknown)} in total): remove them, or set data.labels=False"
            raise UserError(f"{self._root} has classes that {path} lacks: {names} {remedy}")

    @property
    def identity(self) -> str:
        """See `Source`; it includes unreadable videos."""
        return identity_of(sizes(self._root, self._chosen))

    def __len__(self) -> int:
        return len(self._clips)

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`; an unreadable clip is listed in `bad_files`."""
        number, which = self._clips[number]
        video, info = self._videos[number]
        if number in self._slow:
            raise UnreadableClip(f"another clip of {video.name} took longer than data.time_limit")
        crop, flip = self._centre, False
        if rng is not None and self._random_crop:
            crop = Crop(rng.uniform(self._random_crop, 1), rng.random(), rng.random())
        if rng is not None and self._random_flip:
            flip = bool(rng.random() < 0.5)
        path = os.path.abspath(self._root / video.name)  # noqa: PTH100 -- links are left as they are
        numbers = self._window.numbers(info, which)
        with self._bad.noted(video.name):
            try:
                frames = self._decoders.clip(path, numbers, info, self._shape[1:], crop, flip)
            except SlowClip:
                self._slow.add(number)
                raise
        return {"video": frames, "label": self._labels.get(video.label, 0)}


def _check_ranges(**values: float) -> None:
    """UserError: a value out of the range of its option."""
    for name, value in values.items():
        in_range, words = _RANGES[name]
        if not in_range(value):
            raise UserError(f"data.{name} must be {words}, got {value:g}")


def _centre_crop(crop: str, random_crop: float) -> tuple[str, Crop]:
    """The entry of _CROPS for an option `crop`. UserError: unknown, or random crops without `exact`."""
    if crop not in _CROPS:
        raise UserError(f"data.crop must be one of {', '.join(_CROPS)}, got {crop!r}")
    if crop != "exact" and random_crop:
        raise UserError(f"data.crop={crop} and data.random_crop exclude each other: leave out one of them")
    return _CROPS[crop]
