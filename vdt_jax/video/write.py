"""Write video in the format that a file's extension says."""

import contextlib
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from vdt_jax.errors import UserError
from vdt_jax.files import atomic
from vdt_jax.video import sound
from vdt_jax.video.frames import as_rgb, frame_grid

OUTPUT_SUFFIXES = (".mp4", ".gif", ".png", ".npz")
_RATES = (0.1, 1000)  # frames per second that players show
_NO_SOUND: tuple[float, Any] = (math.inf, None)
_SHORTEST = 2  # hundredths of a second: browsers show a GIF with a shorter delay at 10 frames per second


def write_video(
    path: str | os.PathLike,
    frames: np.ndarray,
    fps: float = 8,
    sound_of: str | os.PathLike | None = None,
    sound_start: float = 0.0,
) -> None:
    """Writes uint8 frames (F, H, W, 1 or 3) atomically: .mp4, .gif, .png (a grid) or .npz (`video`), by the extension.

    A GIF shows at most 50 frames per second, so of faster videos it leaves frames out.

    Args:
      fps: from 0.1 to 1000; .png and .npz have none.
      sound_of, sound_start: as for `VideoWriter`.

    Raises:
      UserError: an unsupported extension or rate, or it cannot be written.
    """
    check_rate(path, fps)
    path = Path(path)
    frames = as_rgb(frames)
    if path.suffix == ".mp4":
        with VideoWriter(path, fps, sound_of, sound_start) as writer:
            for frame in frames:
                writer.write(frame)
        return
    if path.suffix not in OUTPUT_SUFFIXES:
        raise UserError(f"cannot write {path}: end its name in {', '.join(OUTPUT_SUFFIXES)}")
    with atomic(path) as unfinished:
        if path.suffix == ".gif":
            images, delays = _gif_frames(frames, fps)
            images[0].save(unfinished, save_all=True, append_images=images[1:], duration=delays, loop=0)
        elif path.suffix == ".png":
            Image.fromarray(frame_grid(frames)).save(unfinished)
        else:
            np.savez_compressed(unfinished, video=frames)


def check_rate(path: str | os.PathLike, fps: float) -> None:
    """Raises UserError where players do not show an .mp4 or .gif at this rate."""
    if Path(path).suffix in (".mp4", ".gif") and not _RATES[0] <= fps <= _RATES[1]:
        raise UserError(f"cannot write {path}: fps must be from {_RATES[0]} to {_RATES[1]}, got {fps:g}")


def _gif_frames(frames: np.ndarray, fps: float) -> tuple[list[Image.Image], list[int]]:
    """Images and how many milliseconds each is shown: whole hundredths of a second, at least two, without drift."""
    times = np.rint(100 * np.arange(len(frames) + 1) / fps).astype(int).tolist()
    kept = [0]
    for number in range(1, len(frames)):
        if times[number] - times[kept[-1]] >= _SHORTEST:
            kept.append(number)
    starts = [times[number] for number in kept]
    ends = [*starts[1:], max(times[-1], starts[-1] + _SHORTEST)]
    delays = [10 * (end - start) for start, end in zip(starts, ends, strict=True)]
    return [Image.fromarray(frames[number]) for number in kept], delays


class VideoWriter:
    """Writes a video frame by frame, in the format of its extension; a context manager.

    An mp4 is encoded frame by frame and written atomically; frames of other formats are kept in memory until the end.

    Args:
      fps: from 0.1 to 1000.
      sound_of: a video whose sound goes into an .mp4 without re-encoding, and ends with the frames; None for none. It
        is not used where it has no sound, or the output is no .mp4.
      sound_start: seconds from the first frame of that video to the first frame written.

    Raises:
      UserError: an unsupported rate.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fps: float,
        sound_of: str | os.PathLike | None = None,
        sound_start: float = 0.0,
    ):
        check_rate(path, fps)
        self._path, self._fps = Path(path), fps
        self._sound_of, self._sound_start = sound_of, sound_start
        self._stack = contextlib.ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._sound: Iterator[tuple[float, Any]] = iter(())
        self._next_sound = _NO_SOUND
        self._num_frames = 0
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
        if not self._num_frames:
            self._open(*even.shape[:2])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        self._num_frames += 1
        while self._next_sound[0] < self._num_frames / self._fps:
            self._container.mux(self._next_sound[1])
            self._next_sound = next(self._sound, _NO_SOUND)

    def _open(self, height: int, width: int) -> None:
        unfinished = self._stack.enter_context(atomic(self._path))
        self._container = av.open(os.fspath(unfinished), "w")
        self._stack.push(self._close)
        rate = Fraction(self._fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "16"})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        if self._sound_of is not None:
            self._sound = sound.packets(self._sound_of, self._sound_start, self._container)
            self._next_sound = next(self._sound, _NO_SOUND)

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
