"""Files of samples: videos and comparisons."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdt_jax import video
from vdt_jax.errors import UserError
from vdt_jax.inference.page import is_page


def comparison_views(
    clean: np.ndarray, mask: np.ndarray, samples: Sequence[np.ndarray], show_truth: bool = True
) -> list[np.ndarray]:
    """The columns given | sample(s) | truth of a comparison, (F, H', W', 3) uint8 each, enlarged if small.

    All are (F, H, W, C) uint8; `clean` may be wrong where the mask is 1 (generated) if the truth is not shown.
    """
    truth = video.as_rgb(clean)
    views = [video.hide(truth, mask), *map(video.as_rgb, samples), *([truth] if show_truth else [])]
    return [video.enlarge(view) for view in views]


def write_comparison(
    stem: str | Path, clean: np.ndarray, mask: np.ndarray, samples: Sequence[np.ndarray], fps: float = 8
) -> None:
    """Writes given | sample(s) | truth, all (F, H, W, C) in [-1, 1], as stem.gif and as rows of frames in stem.png."""
    views = comparison_views(video.to_uint8(clean), mask, [video.to_uint8(sample) for sample in samples])
    for suffix in (".gif", ".png"):
        write_views(Path(stem).with_suffix(suffix), views, fps)


def write_views(path: str | os.PathLike, views: Sequence[np.ndarray], fps: float) -> None:
    """Writes the columns of a comparison as a looping .gif, or as rows of frames in a .png."""
    suffix = Path(path).suffix
    if suffix not in (".gif", ".png"):
        raise UserError(f"cannot write a comparison to {path}: the extension must be .gif or .png")
    video.write_video(path, video.side_by_side(*views) if suffix == ".gif" else video.frame_grid(*views)[None], fps)


def write_videos(
    paths: Sequence[Path],
    blocks: Iterable[np.ndarray],
    rates: Sequence[float],
    keep: int = 0,
    sound: Sequence[Any] = (),
) -> np.ndarray:
    """Writes B videos, or none if there are no paths, as their frames are made: blocks (B, f, H, W, C) uint8.

    `rates` are their frames per second, `sound` is `sound_of` and `sound_start` of `VideoWriter`.

    Returns:
      The first `keep` frames or a few more, (B, f, H, W, C) uint8.
    """
    kept: list[np.ndarray] = []
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(video.VideoWriter(path, fps, *sound)) for path, fps in zip(paths, rates, strict=False)
        ]
        for block in blocks:
            if not kept or sum(part.shape[1] for part in kept) < keep:
                kept.append(block)
            for writer, frames in zip(writers, block, strict=False):
                for frame in frames:
                    writer.write(frame)
    return np.concatenate(kept, axis=1)


def check_output(output: str | os.PathLike, page: bool = True) -> None:
    """Checks before any work that samples, and their page, can be written.

    Raises:
      UserError: an extension that cannot be written, a folder that cannot be written to, or a page in that folder that
        `write_page` did not write.
    """
    if Path(output).suffix not in video.OUTPUT_SUFFIXES:
        raise UserError(f"output must end in {', '.join(video.OUTPUT_SUFFIXES)}, got {output}")
    if Path(output).is_dir():
        raise UserError(f"output {output} is a folder: name a file in it")
    existing = next(folder for folder in Path(output).absolute().parents if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "you may not write there" if existing.is_dir() else "that is a file"
        raise UserError(f"output {output} would be below {existing}, but {reason}: write to another folder")
    path = Path(output).parent / "index.html"
    if page and path.exists() and not is_page(path):
        raise UserError(f"{path} is there and not a page of this program: write to another folder")


def numbered(path: Path, number: int, count: int) -> Path:
    """The path itself for one sample, NAME_3.mp4 for sample 3 of several."""
    return path if count == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}")
