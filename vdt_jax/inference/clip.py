"""A sampled clip, and the files that show it: comparisons and a page."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vdt_jax.inference.outputs import comparison_views, numbered, write_views
from vdt_jax.inference.page import Card, cards, describe_given, folded, preformatted, write_page
from vdt_jax.video import write_video

logger = logging.getLogger(__name__)

_INTRODUCTION = "Violet marks what the model generates."


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A video, of which a part was generated.

    Attributes:
      video: (F, H, W, C) uint8. Of a long video that was written to `output` these are the first frames only.
      mask: (F, H, W, 1) uint8, 1 = generated, 0 = given.
      fps: frames per second.
      input: (F, H, W, C) uint8, the clip before sampling; at generated positions it has the true pixels only if
        `truth_known`.
      truth_known: whether the input has all the frames of the clip.
      name: the name of the input.
    """

    video: np.ndarray
    mask: np.ndarray
    fps: float
    input: np.ndarray
    truth_known: bool = False
    name: str = ""

    def __repr__(self) -> str:
        num_frames, height, width, _ = self.video.shape
        return f"Clip({num_frames} frames of {height}x{width}, {self.mask.mean():.0%} generated, {self.fps:g} fps)"

    def save(self, path: str | os.PathLike) -> None:
        """Writes the video as .mp4, .gif, .png (a grid of frames) or .npz (an array `video`).

        Raises:
          UserError: any other extension.
        """
        write_video(path, self.video, self.fps)

    def save_comparison(self, path: str | os.PathLike) -> None:
        """Writes given | sample | truth (where known) as a looping .gif, or as rows of frames in a .png.

        Generated positions are violet in the first column.

        Raises:
          UserError: any other extension.
        """
        write_views(path, comparison_views(self.input, self.mask, [self.video], self.truth_known), self.fps)


def write_gallery(output: str | Path, clips: Sequence[Clip], command: str) -> Path:
    """Writes OUT.gif and OUT.png for each sample, and index.html with the command that made them; returns the page."""
    pictures = []
    for number, clip in enumerate(clips):
        path = numbered(Path(output), number, len(clips))
        for suffix in (".gif", ".png"):
            clip.save_comparison(path.with_suffix(suffix))
        text = f"{describe_given(clip.mask)}; {clip.fps:g} frames per second; {clip.name}"
        logger.info("%s: %s", path, text)
        columns = ("given", "sample", "truth") if clip.truth_known else ("given", "sample")
        pictures.append(Card(path.stem, text, f"{path.stem}.gif", columns))
    page = Path(output).parent / "index.html"
    write_page(page, "Samples", _INTRODUCTION, cards(pictures), folded("Command", preformatted(command)))
    return page
