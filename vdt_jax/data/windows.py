"""Clips cut out of videos: which frames they take, a number for each clip, and which videos are held out."""

import logging
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vdt_jax.data.discover import Found
from vdt_jax.errors import UserError
from vdt_jax.video import VideoInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """How clips are cut out of videos.

    Attributes:
      num_frames: of a clip.
      stride: frames of the video from one frame of a clip to the next.
      fps: frame rate of a clip, whatever the video's; 0 to use `stride`.
      hop: frames of the video from the start of one clip to the start of the next.
      short: what to do with videos shorter than a clip: `skip` them, or `pad` them with their last frame.
    """

    num_frames: int
    stride: int = 1
    fps: float = 0.0
    hop: int = 4
    short: str = "skip"

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, minimum in (("stride", 1), ("hop", 1), ("fps", 0)):
            if getattr(self, name) < minimum:
                raise UserError(f"data.{name} must be >= {minimum}, got {getattr(self, name):g}")
        if self.fps and self.stride != 1:
            raise UserError(
                f"data.fps and data.stride exclude each other, got fps={self.fps:g} and stride={self.stride}"
            )
        if self.short not in ("skip", "pad"):
            raise UserError(f"data.short must be skip, or pad (with the last frame); got {self.short}")

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
            after = np.searchsorted(times, wanted).clip(1, max(1, len(times) - 1))
            if len(times) == 1:
                return [0] * self.num_frames
            nearer_before = wanted - times[after - 1] <= times[after] - wanted
            return np.where(nearer_before, after - 1, after).tolist()
        last = info.num_frames - 1
        return [min(start + n * self.stride, last) for n in range(self.num_frames)]


def log_short(path: str | os.PathLike, window: Window, known: Iterable[object]) -> None:
    """Logs how many of the readable videos, if any, are too short for a clip."""
    videos = [info for info in known if isinstance(info, VideoInfo)]
    if short := sum(not window.count(info) for info in videos):
        logger.warning(
            "%s: skipped %d of %d videos, too short for a clip; data.short=pad takes them", path, short, len(videos)
        )


class ClipTable:
    """Numbers the clips of many videos; its memory grows with the videos, not with the clips."""

    def __init__(self, counts: Sequence[int]):
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> tuple[int, int]:
        """(video, clip of that video)."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        video = int(np.searchsorted(self._ends, number, side="right"))
        return video, number - (int(self._ends[video - 1]) if video else 0)


def of_split(videos: Sequence[Found], split: str, share: float) -> list[int]:
    """The places of the videos of a split, `train` or `held_out`.

    The list decides, else a hash of the name, so that a video stays in its split when others are added or removed. If
    the hash would leave a split empty, it gets the video with the smallest or largest hash, so among few videos an
    added one may move another. A single video is in both splits; so are all videos if the share is 0.

    Args:
      videos: all of them, also those that are too short or unreadable: otherwise a longer clip, or damage to one video,
        could move another.
      split: `train` or `held_out`.
      share: of the videos, that is held out.
    """
    every = range(len(videos))
    if any(video.split for video in videos):
        return [n for n in every if (videos[n].split or "train") == split]
    if len(videos) < 2 or not share:
        return list(every)
    ranks = [zlib.crc32(os.fsencode(video.name)) for video in videos]
    bound = min(max(share * 2**32, min(ranks) + 1), max(ranks))
    return [n for n in every if (ranks[n] < bound) == (split == "held_out")]


def no_clips_message(split: str, where: object, count: int, readable: Sequence[VideoInfo], window: Window) -> str:
    """An error message for a split without clips.

    Args:
      split: `train` or `held_out`.
      where: the folder, the list or the cache.
      count: videos of the split.
      readable: those that can be read.
      window: how clips are cut.
    """
    none = f"no video for the {split} split in {where}"
    if not count:
        return f"{none}: the list assigns no videos to it; change its splits, or leave them out"
    if not readable:
        return f"{none} can be read, of {count}: repair them, or give the splits in a list"
    longest = max(info.num_frames for info in readable)
    return (
        f"{none} has the {window.num_frames} frames of a clip at stride {window.stride}, fps {window.fps:g} (0 = the "
        f"video's own): the longest has {longest}; data.short=pad takes short ones too, and a list can give the splits"
    )
