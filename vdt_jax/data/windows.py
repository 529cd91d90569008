"""Clips cut out of videos: which frames they take, a number for each clip, and which videos are held out."""

import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vdt_jax.data.discover import Found
from vdt_jax.errors import UserError
from vdt_jax.video import VideoInfo


@dataclass(frozen=True)
class Window:
    """How clips are cut.

    Attributes:
      num_frames: of a clip.
      stride: frames of the video from one frame of a clip to the next.
      fps: frames a second of a clip, whatever the video's; 0 to go by stride.
      hop: frames of the video from the start of one clip to the start of the next.
      short: what becomes of videos shorter than a clip: `skip`, or `pad` with their last frame.
    """

    num_frames: int
    stride: int = 1
    fps: float = 0.0
    hop: int = 4
    short: str = "skip"

    def __post_init__(self) -> None:
        """Refuses what cannot be."""
        if self.stride < 1 or self.hop < 1 or self.fps < 0:
            raise UserError(
                f"data.stride={self.stride} and data.hop={self.hop} must be at least 1, data.fps={self.fps} 0"
            )
        if self.fps and self.stride != 1:
            raise UserError(
                f"data.fps={self.fps} and data.stride={self.stride} say the same thing twice: set one of them"
            )
        if self.short not in ("skip", "pad"):
            raise UserError(f"data.short={self.short}: skip, or pad with the last frame")

    def count(self, info: VideoInfo) -> int:
        """How many clips a video has."""
        if self.fps:
            times = info.times()
            # The last frame may be met half a frame of the video late.
            latest = times[-1] - (self.num_frames - 1) / self.fps + 0.5 / info.fps
            room = int(np.searchsorted(times, latest, side="right"))
        else:
            room = info.num_frames - (self.num_frames - 1) * self.stride
        return -(-room // self.hop) if room > 0 else int(self.short == "pad")

    def numbers(self, info: VideoInfo, clip: int) -> list[int]:
        """The frames of a clip, rising; the last one of the video again and again where a short one is padded."""
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


def tell_short(path: str | os.PathLike, window: Window, known: Iterable[object]) -> None:
    """Says how many of the videos that are known of, if any, are too short for a clip."""
    videos = [info for info in known if isinstance(info, VideoInfo)]
    if short := sum(not window.count(info) for info in videos):
        print(
            f"{path}: {short} of {len(videos)} videos are too short for a clip and left out; data.short=pad takes them",
            flush=True,
        )


class ClipTable:
    """A number for each clip of many videos; as large as the number of videos, not of clips."""

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

    A video is in a split as the list says, else by a hash of its name, so that others that come or go do not move it.
    Where the hash would leave a split empty, the video with the smallest or the largest is in it: among few videos,
    one more may move another. One video alone is in both, and all are where the share is 0.

    Args:
      videos: all that there are, those too that are too short or cannot be read: else a longer clip, or damage to one
        of them, could move another.
    """
    every = range(len(videos))
    if any(video.split for video in videos):
        return [n for n in every if (videos[n].split or "train") == split]
    if len(videos) < 2 or not share:
        return list(every)
    ranks = [zlib.crc32(os.fsencode(video.name)) for video in videos]
    bound = min(max(share * 2**32, min(ranks) + 1), max(ranks))
    return [n for n in every if (ranks[n] < bound) == (split == "held_out")]


def nothing_of(split: str, where: object, count: int, readable: Sequence[VideoInfo], window: Window) -> str:
    """Why a split has no clips, in one line.

    Args:
      split: `train` or `held_out`.
      where: the folder, the list or the cache.
      count: the videos of the split.
      readable: what is known of those that can be read.
      window: how clips are cut.
    """
    none = f"no video for the {split} split in {where}"
    if not count:
        return f"{none}: it is a list that names none; change its splits, or leave them out"
    if not readable:
        return f"{none} can be read, of {count}: mend them, or let a list name the splits"
    longest = max(info.num_frames for info in readable)
    return (
        f"{none} has the {window.num_frames} frames of a clip at stride {window.stride}, fps {window.fps:g} (0 = the "
        f"video's own): the longest has {longest}; data.short=pad takes short ones too, and a list can name the splits"
    )
