"""Read and write video: mp4 and everything else that PyAV decodes, GIF, PNG grids, npz.

On disk and at this door frames are uint8 `(F, H, W, 3)`; inside the program video is float32 `(F, H, W, C)` in [-1, 1].
mp4 is lossy: what was given comes out of a file nearly, not exactly, as it went in. GIF keeps 256 colours a frame.
"""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from PIL import Image

from vdt_jax.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".gif")
OUTPUT_SUFFIXES = (".mp4", ".gif", ".png", ".npz")
_HIDDEN = np.array([92, 70, 148], np.uint8)  # what the viewer sees where nothing is given


def to_float(frames: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1], shape kept."""
    return frames.astype(np.float32) / 127.5 - 1


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] (clipped) to uint8, shape kept; the inverse of `to_float` for what came from it."""
    return np.clip(np.round((np.asarray(video, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def read_frames(path: str | os.PathLike, start: int = 0, stride: int = 1) -> Iterator[np.ndarray]:
    """Decodes frames start, start + stride, ... of a video file, (H, W, 3) uint8 each, until it ends.

    Raises:
      UserError: no such file, or none that PyAV can decode.
    """
    if not Path(path).is_file():
        raise UserError(f"no file {path}: give a video that exists")
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} has no video stream")
            container.streams.video[0].thread_type = "AUTO"
            for index, frame in enumerate(container.decode(video=0)):
                if index >= start and (index - start) % stride == 0:
                    yield frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"{path} cannot be decoded ({error}): is it a video?") from None


def frame_rate(path: str | os.PathLike) -> float:
    """Frames a second of a video file, 25 where it does not say."""
    with av.open(os.fspath(path)) as container:
        return float(container.streams.video[0].average_rate or 25)


def fit_frame(frame: np.ndarray, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """Centre crop to the shape of `size` (H, W), antialiased resize, grey if channels = 1: (H, W, channels) uint8."""
    height, width = frame.shape[:2]
    scale = min(height / size[0], width / size[1])
    crop_height, crop_width = size[0] * scale, size[1] * scale
    top, left = (height - crop_height) / 2, (width - crop_width) / 2
    image = Image.fromarray(frame).resize(
        (size[1], size[0]), Image.Resampling.BICUBIC, box=(left, top, left + crop_width, top + crop_height)
    )
    return np.asarray(image.convert("L"))[..., None] if channels == 1 else np.asarray(image)


def read_clip(path: str | os.PathLike, shape: tuple[int, int, int, int], start: int = 0, stride: int = 1) -> np.ndarray:
    """One clip of a video file, uint8 of shape (F, H, W, C), centre-cropped and resized.

    Raises:
      UserError: a file that cannot be decoded, or is too short.
    """
    num_frames, height, width, channels = shape
    clip = []
    for frame in read_frames(path, start, stride):
        clip.append(fit_frame(frame, (height, width), channels))
        if len(clip) == num_frames:
            return np.stack(clip)
    raise UserError(f"{path} has {len(clip)} frames from frame {start} at stride {stride}: {num_frames} are needed")


def as_rgb(frames: np.ndarray) -> np.ndarray:
    """(..., H, W, C) uint8 to (..., H, W, 3): grey is repeated, of latents the first three channels are shown."""
    return np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames[..., :3]


def enlarge(frames: np.ndarray, at_least: int = 128) -> np.ndarray:
    """Whole-number magnification of (F, H, W, C) to a height near `at_least`, so that small videos can be seen."""
    factor = max(1, at_least // frames.shape[1])
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def hide(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What the model was given: uint8 (F, H, W, 3) with the generated positions (mask (F, H, W, 1) = 1) in violet."""
    return np.where(mask > 0.5, _HIDDEN, as_rgb(frames))


def side_by_side(*videos: np.ndarray, gap: int = 4) -> np.ndarray:
    """Videos (F, H, W, 3) left to right with a white gap."""
    num_frames, height = videos[0].shape[:2]
    bar = np.full((num_frames, height, gap, 3), 255, np.uint8)
    parts = [part for video in videos for part in (video, bar)]
    return np.concatenate(parts[:-1], axis=2)


def frame_grid(*videos: np.ndarray, gap: int = 2) -> np.ndarray:
    """One picture: a row for each video (F, H, W, 3), a column for each frame."""
    rows = []
    for video in videos:
        padded = np.pad(video, ((0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=255)
        rows.append(np.concatenate(list(padded), axis=1))
    return np.concatenate(rows, axis=0)


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: float = 8) -> None:
    """Writes uint8 frames (F, H, W, 1 or 3) in the format of the suffix: .mp4, .gif, .png (a grid) or .npz (`video`).

    Raises:
      UserError: another suffix.
    """
    path = Path(path)
    frames = as_rgb(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        with VideoWriter(path, fps) as writer:
            for frame in frames:
                writer.write(frame)
    elif path.suffix == ".gif":
        images = [Image.fromarray(frame) for frame in frames]
        images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    elif path.suffix == ".png":
        Image.fromarray(frame_grid(frames)).save(path)
    elif path.suffix == ".npz":
        np.savez_compressed(path, video=frames)
    else:
        raise UserError(f"cannot write {path}: end its name in {', '.join(OUTPUT_SUFFIXES)}")


class VideoWriter:
    """Writes a video frame by frame, in the format of its suffix; a context manager.

    An mp4 goes to the disk as it comes, under another name until it is whole; other formats are kept in memory.
    """

    def __init__(self, path: str | os.PathLike, fps: float):
        self._path, self._fps = Path(path), fps
        self._unfinished = self._path.with_name(f".unfinished.{self._path.name}")
        self._container = self._stream = None
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
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(os.fspath(self._unfinished), "w")
            rate = Fraction(self._fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "16"})
            self._stream.width, self._stream.height, self._stream.pix_fmt = even.shape[1], even.shape[0], "yuv420p"
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if self._container is not None:
            if error_type is None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if error_type is None:
                self._unfinished.replace(self._path)
            else:
                self._unfinished.unlink()
        elif self._kept and error_type is None:
            write_video(self._path, np.stack(self._kept), self._fps)
