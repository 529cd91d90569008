"""What is known of a video before its frames are decoded."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class VideoInfo:
    """Length and size of a video, and where its frames stand in time.

    Attributes:
      num_frames: frames, counted.
      fps: frames per second, on average.
      height, width: of the first frame, as it is shown.
      pts: when each frame is shown, rising, in units of `time_base`: a range where frames are evenly spaced. None where
        the file does not say, or says it of few frames, and frames are found by counting from its beginning.
      time_base: seconds.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    pts: Sequence[int] | None = None
    time_base: float = 1.0

    def times(self) -> np.ndarray:
        """Seconds from the first frame to each, (num_frames,) float64."""
        if self.pts is None:
            return np.arange(self.num_frames) / self.fps
        if isinstance(self.pts, range):
            return np.arange(self.num_frames) * (self.pts.step * self.time_base)
        return (np.asarray(self.pts) - self.pts[0]) * self.time_base

    def to_json(self) -> dict[str, Any]:
        """As a dict that JSON can hold; the inverse of `from_json`."""
        pts: Any = self.pts
        even = {"pts": {"start": pts.start, "step": pts.step}} if isinstance(pts, range) else {}
        return asdict(self) | even

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "VideoInfo":
        """From what `to_json` gave."""
        pts: Any = fields["pts"]
        if isinstance(pts, dict):
            pts = _evenly(pts["start"], pts["step"], fields["num_frames"])
        return cls(**{**fields, "pts": pts})


def as_pts(stamps: Sequence[int]) -> Sequence[int]:
    """Rising times, as a range where they are evenly spaced."""
    step = stamps[1] - stamps[0] if len(stamps) > 1 else 1
    even = _evenly(stamps[0], step, len(stamps))
    return even if list(stamps) == list(even) else stamps


def _evenly(start: int, step: int, count: int) -> range:
    return range(start, start + step * count, step)
