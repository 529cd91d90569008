"""Write video in the format of a file's suffix."""

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from vdt_jax.errors import UserError
from vdt_jax.files import atomic
from vdt_jax.video.frames import as_rgb, frame_grid

OUTPUT_SUFFIXES = (".mp4", ".gif", ".png", ".npz")


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: float = 8) -> None:
    """Writes uint8 frames (F, H, W, 1 or 3) in the format of the suffix: .mp4, .gif, .png (a grid) or .npz (`video`).

    It is written atomically.

    Raises:
      UserError: another suffix, or it cannot be written.
    """
    path = Path(path)
    frames = as_rgb(frames)
    if path.suffix == ".mp4":
        with VideoWriter(path, fps) as writer:
            for frame in frames:
                writer.write(frame)
        return
    if path.suffix not in OUTPUT_SUFFIXES:
        raise UserError(f"cannot write {path}: end its name in {', '.join(OUTPUT_SUFFIXES)}")
    with atomic(path) as unfinished:
        if path.suffix == ".gif":
            images = [Image.fromarray(frame) for frame in frames]
            images[0].save(unfinished, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
        elif path.suffix == ".png":
            Image.fromarray(frame_grid(frames)).save(unfinished)
        else:
            np.savez_compressed(unfinished, video=frames)


class VideoWriter:
    """Writes a video frame by frame, in the format of its suffix; a context manager.

    An mp4 is encoded frame by frame and written atomically; frames of other formats are kept in memory until the end.
    """

    def __init__(self, path: str | os.PathLike, fps: float):
        self._path, self._fps = Path(path), fps
        self._stack = contextlib.ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._kept: list[np.ndarray] = []

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, frame: np.ndarray) -> None:
        """Appends a uint8 frame (H, W, 1 or 3)."""
        if self._path.suffix != ".mp4":
            self._kept.append(frame)
            return
        height, width = frame.shape[:2]
        even = np.pad(as_rgb(frame), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # yuv420p halves both
        if self._container is None:
            unfinished = self._stack.enter_context(atomic(self._path))
            self._container = av.open(os.fspath(unfinished), "w")
            self._stack.push(self._close)
            rate = Fraction(self._fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "16"})
            self._stream.width, self._stream.height, self._stream.pix_fmt = even.shape[1], even.shape[0], "yuv420p"
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

    def _close(self, error_type: type[BaseException] | None, *error: Any) -> None:
        try:
            if error_type is None:
                self._container.mux(self._stream.encode())
        finally:
            self._container.close()

    def __exit__(self, error_type: type[BaseException] | None, *error: Any) -> None:
        self._stack.__exit__(error_type, *error)
        if self._kept and error_type is None:
            write_video(self._path, np.stack(self._kept), self._fps)
