"""Clips cut out of videos: which frames they take, a number for each clip, and which videos are held out."""

import logging
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdt_jax.data.discover import Found
from vdt_jax.errors import UserError
from vdt_jax.options import option, validate
from vdt_jax.video import VideoInfo
from vdt_jax.video.images import natural_key

_TIE = 1e-9  # seconds: a time half-way between two frames goes to the first, whatever the rounding
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """How clips are cut out of videos."""

    num_frames: int
    stride: int = option(1, "Frames of the video from one frame of a clip to the next.", minimum=1)
    fps: float = option(0.0, "Frame rate of a clip, whatever the video's; 0 to use `stride`.", minimum=0)
    hop: int = option(4, "Frames of the video from the start of one clip to the start of the next.", minimum=1)
    short: str = option(
        "skip", "Videos shorter than a clip: skip, or pad with the last frame.", choices=("skip", "pad")
    )

    def __post_init__(self) -> None:
        validate(self, "data.")
        if self.fps and self.stride != 1:
            given = f"fps={self.fps:g} and stride={self.stride}"
            raise UserError(f"data.fps and data.stride exclude each other, got {given}")

    def count(self, info: VideoInfo) -> int:
        """The number of clips of a video."""
        if self.fps:
            times = info.times()
            # The last frame of a clip may be half a frame of the video late.
            latest = times[-1] - (self.num_frames - 1) / self.fps + 0.5 / info.fps
            room = int(np.searchsorted(times, latest, side="right"))
        else:
            room = info.num_frames - (self.num_frames - 1) * self.stride
        return -(-room // self.hop) if room > 0 else int(self.short == "pad")

    def numbers(self, info: VideoInfo, clip: int) -> list[int]:
        """The numbers of the frames of a clip, rising; padding repeats the last one."""
        start = clip * self.hop
        if self.fps:
            times = info.times()
            wanted = times[start] + np.arange(self.num_frames) / self.fps
            middles = (times[1:] + times[:-1]) / 2
            return np.searchsorted(middles, wanted - _TIE).tolist()
        last = info.num_frames - 1
        return [min(start + n * self.stride, last) for n in range(self.num_frames)]


class ClipTable:
    """Numbers the clips of many videos; its memory grows with the videos, not with the clips."""

    def __init__(self, counts: Sequence[int]):
        self._starts = np.cumsum([0, *counts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> tuple[int, int]:
        """(video, clip of that video)."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        video = int(np.searchsorted(self._starts, number, side="right")) - 1
        return video, number - int(self._starts[video])


def of_split(videos: Sequence[Found], split: str, share: float) -> list[int]:
    """The indices of the videos of a split, `train` or `held_out`; `share` of the videos is held out.

    The list decides, else a hash of the name, so that a video stays in its split when others are added or removed. If
    the hash would leave a split empty, it gets the video with the smallest or largest hash, so among few videos an
    added one may move another. A single video is in both splits; so are all videos if the share is 0. `videos` includes
    short and unreadable ones: otherwise a longer clip, or damage to one video, could move another.
    """
    every = range(len(videos))
    if any(video.split for video in videos):
        return [n for n in every if (videos[n].split or "train") == split]
    if len(videos) < 2 or not share:
        return list(every)
    ranks = [zlib.crc32(os.fsencode(video.name)) for video in videos]
    bound = min(max(share * 2**32, min(ranks) + 1), max(ranks))
    return [n for n in every if (ranks[n] < bound) == (split == "held_out")]


def usable(videos: Sequence[Any], window: Window, split: str, where: object) -> list[Any]:
    """Those videos of a split that can be read and are long enough, or a UserError; `where` is the folder or the cache.

    A video is a tuple of its `Found`, its `VideoInfo` or the reason why it cannot be read, and more.
    """
    readable = [video for video in videos if isinstance(video[1], VideoInfo)]
    if chosen := [video for video in readable if window.count(video[1])]:
        return chosen
    none = f"no video for the {split} split in {where}"
    if not videos:
        raise UserError(f"{none}: the list assigns no videos to it; change its splits, or leave them out")
    if not readable:
        raise UserError(f"{none} can be read, of {len(videos)}: repair them, or give the splits in a list")
    longest = max(video[1].num_frames for video in readable)
    raise UserError(
        f"{none} has the {window.num_frames} frames of a clip at stride {window.stride}, fps {window.fps:g} (0 = the "
        f"video's own): the longest has {longest}; data.short=pad takes short ones too, and a list can give the splits"
    )


def log_short(path: str | os.PathLike, window: Window, known: Iterable[object]) -> None:
    """Logs how many of the readable videos, if any, are too short for a clip."""
    counts = [window.count(info) for info in known if isinstance(info, VideoInfo)]
    if short := counts.count(0):
        message = "%s: skipped %d of %d videos, too short for a clip; data.short=pad takes them"
        logger.warning(message, path, short, len(counts))


def class_numbers(videos: Iterable[Found]) -> dict[str, int]:
    """The number of each label, in natural order."""
    ordered = sorted((video.label for video in videos), key=natural_key)
    return {label: number for number, label in enumerate(dict.fromkeys(ordered))}
