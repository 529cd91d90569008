"""What is known of a video before its frames are decoded."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class VideoInfo:
    """Length and size of a video, and where its frames stand in time.

    Attributes:
      num_frames: frames, counted.
      fps: frames a second, on average.
      height, width: of the first frame, as it is shown.
      pts: when each frame is shown, (num_frames,) int64 in units of `time_base`, rising; None where the file does not
        say, and frames are found by counting from its beginning.
      time_base: seconds.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    pts: np.ndarray | None = None
    time_base: float = 1.0

    def times(self) -> np.ndarray:
        """Seconds from the first frame to each, (num_frames,) float64."""
        if self.pts is None:
            return np.arange(self.num_frames) / self.fps
        return (self.pts - self.pts[0]) * self.time_base
