"""A sampled clip, and how it is saved."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from vdt_jax.errors import UserError
from vdt_jax.inference.outputs import comparison_views
from vdt_jax.video import frame_grid, side_by_side, write_video


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A video, of which a part was generated.

    Attributes:
      video: (F, H, W, C) uint8. Of a long video that was written to `output` these are the first frames only.
      mask: (F, H, W, 1) uint8, 1 = generated, 0 = given.
      fps: frames a second.
      input: (F, H, W, C) uint8; equal to the truth at generated positions if `truth_known`.
      truth_known: whether the input has all the frames of the clip.
    """

    video: np.ndarray
    mask: np.ndarray
    fps: float
    input: np.ndarray
    truth_known: bool = False

    def __repr__(self) -> str:
        num_frames, height, width, _ = self.video.shape
        return f"Clip({num_frames} frames of {height}x{width}, {self.mask.mean():.0%} generated, {self.fps:g} fps)"

    def save(self, path: str | os.PathLike) -> None:
        """Writes the video as .mp4, .gif, .png (a grid of frames) or .npz (an array `video`).

        Raises:
          UserError: another suffix.
        """
        write_video(path, self.video, self.fps)

    def save_comparison(self, path: str | os.PathLike) -> None:
        """Writes given | sample | truth (where known) as a looping .gif, or as rows of frames in a .png.

        Generated positions are violet in the first column.

        Raises:
          UserError: another suffix.
        """
        suffix = Path(path).suffix
        views = comparison_views(self.input, self.mask, [self.video], self.truth_known)
        if suffix == ".gif":
            write_video(path, side_by_side(*views), self.fps)
        elif suffix == ".png":
            write_video(path, frame_grid(*views)[None])
        else:
            raise UserError(f"cannot write a comparison to {path}: the suffix must be .gif or .png")
