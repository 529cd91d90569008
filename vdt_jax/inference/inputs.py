"""Inputs of sampling: videos in any form, and masks.

Besides what `video.read_frames` reads: folders and lists of videos, NumPy arrays, `.npz` files with an array `video`,
`.npy` files, and torch's `.pt` files with an array in the official layout (B, T, C, H, W). A mask is white (128 or
more) where the model generates.
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vdt_jax.data.discover import LIST_SUFFIXES, find_videos
from vdt_jax.data.windows import Window
from vdt_jax.errors import UserError, printable
from vdt_jax.video import VideoInfo, as_rgb, fit_frame, probe, read_frames, read_numbers, to_float, to_uint8
from vdt_jax.weights.torch_files import load_torch

_NUMPY_SUFFIXES = (".npz", ".npy")
_TORCH_SUFFIXES = (".pt", ".pth")
_OVERSHOOT = -0.1  # of a resize filter in an array in [0, 1]
_LAYOUT = "(F, H, W, C) or (N, F, H, W, C)"

logger = logging.getLogger(__name__)
Input = str | os.PathLike | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """A video to sample.

    Attributes:
      name: its path, or what an array is, for messages.
      source: a file or a folder of frames, which is read when frames are needed; or an array (F, H, W, C), uint8 or
        float32 in [-1, 1].
    """

    name: str
    source: Path | np.ndarray

    @functools.cached_property
    def info(self) -> VideoInfo:
        """Length, size and timestamps; the timestamps of an array have no meaning."""
        if isinstance(self.source, Path):
            return probe(self.source)
        return VideoInfo(len(self.source), 1.0, *self.source.shape[1:3])

    @property
    def is_array(self) -> bool:
        """Whether it is an array, whose frames have no rate."""
        return not isinstance(self.source, Path)

    @property
    def rate(self) -> float | None:
        """Frames per second; None for an array or an image."""
        return self.info.fps if isinstance(self.source, Path) and self.info.num_frames > 1 else None

    def sound(self, start: int) -> tuple[Path, float] | tuple[()]:
        """The file whose sound accompanies the frames from `start` on, and the seconds of that frame; () for none."""
        if not isinstance(self.source, Path) or not self.source.is_file():
            return ()
        return self.source, float(self.info.times()[start])

    def numbers(self, window: Window, start: int) -> list[int]:
        """The frames of the clip that begins at frame `start`, chosen as in training; fewer where the video ends.

        Frames of an array are those of the wanted rate, as it has none of its own.

        Raises:
          UserError: there is no frame `start`.
        """
        room = self.info.num_frames - start
        if room < 1:
            raise UserError(f"{self.name} has no frame {start}: choose a smaller start")
        if window.fps and self.rate is None:
            window = dataclasses.replace(window, fps=0.0)
        if window.fps:
            times = self.info.times()
            known = int((times[-1] - times[start] + 0.5 / self.info.fps) * window.fps) + 1
        else:
            known = -(-room // window.stride)
        return window.numbers(self.info, start)[:known]

    def read(self, numbers: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
        """These frames, centre-cropped and resized to a shape (H, W, C): (f, H, W, C) float32 in [-1, 1]."""
        if not isinstance(self.source, Path):
            return np.stack([_fit(frame, shape) for frame in self.source[list(numbers)]])
        wanted = sorted(set(numbers))
        pts = None if self.info.pts is None else [self.info.pts[number] for number in wanted]
        frames = dict(zip(wanted, read_numbers(self.source, wanted, pts), strict=False))
        if len(frames) < len(wanted):
            raise UserError(f"{self.name} ends before its frame {wanted[len(frames)]}: it is corrupt or still growing")
        return np.stack([_fit(frames[number], shape) for number in numbers])

    def stream(self, start: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """All frames from `start` on, as `read` gives them, one after another."""
        frames: Any = read_frames(self.source, start) if isinstance(self.source, Path) else self.source[start:]
        return (_fit(frame, shape) for frame in frames)


def open_videos(value: Any) -> list[Video]:
    """The videos of an input.

    Args:
      value: a path to whatever `read_frames` reads, a folder of videos at any depth, a .csv or .jsonl list of them, an
        .npz with an array `video`, an .npy, or a .pt with (T, C, H, W) or (B, T, C, H, W); or an array. Arrays are (F,
        H, W, C) or (N, F, H, W, C) of uint8, or of floats in [-1, 1] or [0, 1].

    Raises:
      UserError: it cannot be read.
    """
    value = as_input(value)
    if isinstance(value, np.ndarray):
        return _of_array(value, described(value), _LAYOUT)
    path = Path(value)
    suffix = path.suffix.lower()
    if suffix in (*_NUMPY_SUFFIXES, *_TORCH_SUFFIXES):
        if not path.is_file():
            raise UserError(f"file not found: {path}")
        if suffix in _NUMPY_SUFFIXES:
            return _of_array(_numpy_file(path, "video"), str(path), _LAYOUT)
        array = load_torch(path)
        if not isinstance(array, np.ndarray):
            raise UserError(f"{path} holds a {type(array).__name__}, not one array: save the tensor alone")
        array = np.moveaxis(array, -3, -1) if array.ndim >= 4 else array
        return _of_array(array, str(path), "(T, C, H, W) or (B, T, C, H, W)")
    videos = [Video(described(path), path)]
    if path.is_dir() or suffix in LIST_SUFFIXES:
        root, found = find_videos(path)
        if reasons := [f"{described(root / video.name)} {video.reason}" for video in found if video.reason]:
            raise UserError(f"{reasons[0]}: repair it, or take it out of {path}")
        videos = [Video(described(root / video.name), root / video.name) for video in found]
    for video in videos:
        video.info  # noqa: B018 -- a file that cannot be read is named before any work
    return videos


def as_input(value: Any) -> Input:
    """A path, or an array as NumPy's."""
    if isinstance(value, str | os.PathLike) and os.fspath(value):
        return value
    if isinstance(value, np.ndarray | jax.Array):
        return np.asarray(value)
    got = "an empty path" if value == "" else f"a value of type {type(value).__name__}"
    raise UserError(f"an input or mask must be a path or an array, got {got}")


def described(value: Input) -> str:
    """The input in messages: its path as it can be printed, or the shape of an array."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return printable(value)


def _of_array(array: np.ndarray, name: str, layout: str) -> list[Video]:
    """The videos of an array with channels last, whose shape and values are checked."""
    videos = array[None] if array.ndim == 4 else array
    if videos.ndim != 5 or videos.shape[-1] not in (1, 3) or 0 in videos.shape:
        holder = "an array" if name == described(array) else f"{name} holds an array"
        raise UserError(f"{holder} of shape {array.shape}: {layout} with 1 or 3 channels is needed")
    videos = _scaled(videos, name)
    if len(videos) == 1:
        return [Video(name, videos[0])]
    return [Video(f"{name}, video {number},", video) for number, video in enumerate(videos)]


def _scaled(array: np.ndarray, name: str) -> np.ndarray:
    """Pixels as uint8, or as float32 in [-1, 1]; a scale that had to be guessed is logged."""
    if array.dtype == np.uint8:
        if array.max() == 1:
            logger.warning("%s holds nothing but 0 and 1, of 255: it is black; multiply it by 255 if 1 is white", name)
        return array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{name} holds {array.dtype}: give uint8, or floats in [-1, 1] or [0, 1]")
    array = array.astype(np.float32)
    low, high = array.min(), array.max()
    if not (low >= -1.01 and high <= 1.01):  # also where something is NaN
        raise UserError(f"{name} holds numbers that are not in [-1, 1], nor in [0, 1]: scale them, or give uint8")
    if low < _OVERSHOOT:
        return array
    logger.warning(
        "%s holds %.3g to %.3g: read as [0, 1], where 0 is black; if it is [-1, 1] without a dark pixel, give uint8",
        *(name, low, high),
    )
    return array * 2 - 1


def _numpy_file(path: str | os.PathLike, name: str) -> np.ndarray:
    """The array of an .npy, or the one of this name of an .npz."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded as arrays:
            if name not in arrays.files:
                raise UserError(f"{path} holds {', '.join(arrays.files) or 'nothing'}: an array '{name}' is needed")
            return arrays[name]
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise whatever they like on a corrupt file
        raise UserError(f"{path} cannot be read ({error}): is it an {Path(path).suffix.lower()}?") from None


def _fit(frame: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A frame (H', W', C') as float (H, W, C) in [-1, 1]; floats of the right size keep every digit."""
    if frame.shape == shape:
        return to_float(frame) if frame.dtype == np.uint8 else frame
    if frame.dtype != np.uint8:
        frame = to_uint8(frame)
    return to_float(fit_frame(as_rgb(frame), (shape[0], shape[1]), shape[2]))


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """What is generated: where `white` (M, H', W') bool is true, in all frames if M is 1."""

    name: str
    white: np.ndarray

    def of_clip(
        self, shape: tuple[int, int, int], video: Video | None = None, numbers: Sequence[int] = ()
    ) -> np.ndarray:
        """The mask over the pixels of a clip (F, H, W, 1), 1 = generate.

        A mask of the size of the video's frames is cropped and resized as they are; a pixel is generated if any part of
        it is white.

        Args:
          shape: (F, H, W).
          video: the clip's, None for a held-out clip.
          numbers: the clip's frames of the video, which a mask of a different length than F has too.

        Raises:
          UserError: a wrong size or number of frames, or nothing white.
        """
        num_frames, height, width = shape
        source_size = (video.info.height, video.info.width) if video else None
        size, white = self.white.shape[1:], self.white
        if size not in ((height, width), source_size):
            sizes = {each for each in ((height, width), source_size) if each}
            wanted = " or ".join(f"{each[0]}x{each[1]}" for each in sorted(sizes))
            raise UserError(f"mask {self.name} is {size[0]}x{size[1]} (height x width): {wanted} is needed")
        if len(white) == 1:
            white = white.repeat(num_frames, axis=0)
        elif len(white) != num_frames:
            if len(numbers) < num_frames or numbers[-1] >= len(white):
                counts = f"1, the clip's {num_frames}, or as many as the input"
                raise UserError(f"mask {self.name} has {len(white)} frames: {counts} are needed")
            white = white[list(numbers)]
        if size != (height, width):
            white = np.stack([fit_mask(frame, (height, width)) for frame in white])
        if not white.any():
            raise UserError(f"mask {self.name} has nothing white, so nothing to generate: white is 128 or more of 255")
        return white.astype(np.float32)[..., None]


def open_mask(value: Any) -> Mask:
    """A mask: an image, a video, an .npy, an .npz with an array `mask`, or an array (H, W) or (F, H, W).

    128 or more is white; in an array of bool, or with nothing above 1, 1 is white. Arrays may have a last axis of 1.
    """
    mask = as_input(value)
    name = described(mask)
    if not isinstance(mask, np.ndarray):
        path = Path(mask)
        if not path.exists():
            raise UserError(f"mask not found: {name} (give an image, a video, an .npy or an .npz)")
        if path.suffix.lower() not in _NUMPY_SUFFIXES:
            frames = [np.asarray(Image.fromarray(frame).convert("L")) for frame in read_frames(path)]
            if len({frame.shape for frame in frames}) != 1:
                found = "frames of several sizes" if frames else "no frames"
                raise UserError(f"mask {name} has {found}: give an image, or frames of one size")
            return Mask(name, np.stack(frames) >= 128)
        mask = _numpy_file(path, "mask")
    if mask.ndim in (3, 4) and mask.shape[-1] == 1:
        mask = mask[..., 0]
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or 0 in mask.shape:
        raise UserError(f"mask {name} holds an array of shape {mask.shape}: (H, W) or (F, H, W) is needed")
    return Mask(name, mask > 0.5 if mask.max() <= 1 else mask >= 128)


def fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`fit_frame` for a mask (H', W') bool: (H, W), true where any pixel that a cell touches is."""
    scale = min(mask.shape[0] / size[0], mask.shape[1] / size[1])
    edges = []
    for length, cells in zip(mask.shape, size, strict=True):
        first = (length - cells * scale) / 2 + np.arange(cells) * scale
        low, high = np.floor(first + 1e-6).astype(int), np.ceil(first + scale - 1e-6).astype(int)
        edges.append((low, np.maximum(high, low + 1)))
    counts = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # white pixels above and left of
    (top, bottom), (left, right) = edges
    inside = counts[bottom][:, right] - counts[top][:, right] - counts[bottom][:, left] + counts[top][:, left]
    return inside > 0
