"""Inputs of sampling: a video in any form, and masks.

Besides what `video.read_frames` reads: NumPy arrays, `.npz` files with an array `video`, and torch's `.pt` files with
an array in the official layout (B, T, C, H, W). A mask is white (128 or more) where the model generates.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from vdt_jax.errors import UserError
from vdt_jax.video import as_rgb, fit_frame, frame_rate, probe, read_frames, to_float, to_uint8
from vdt_jax.weights.torch_files import load_torch

_ARRAY_SUFFIXES = (".npz", ".pt", ".pth")

Input = str | os.PathLike | np.ndarray


def as_input(value: Any) -> Input:
    """A path, or an array as NumPy's."""
    if isinstance(value, str | os.PathLike):
        return value
    if isinstance(value, np.ndarray | jax.Array):
        return np.asarray(value)
    raise UserError(f"an input or mask must be a path or an array, got a value of type {type(value).__name__}")


def is_array(path: Input) -> bool:
    """Whether this is an array rather than a video: arrays may hold several clips, and have no frame rate."""
    return isinstance(path, np.ndarray) or Path(path).suffix in _ARRAY_SUFFIXES


def described(path: Input) -> str:
    """The input in messages: its path, or the shape of an array."""
    return f"an array of shape {path.shape}" if isinstance(path, np.ndarray) else str(path)


def read_clips(path: Any, shape: tuple[int, int, int, int], start: int = 0, stride: int = 1) -> np.ndarray:
    """The clips that a file holds, as far as they go: (N, f, H, W, C) float32 in [-1, 1], 1 <= f <= F.

    N is 1 but for arrays of several clips. Frames start, start + stride, ... are taken; those of another size are
    centre-cropped and resized.

    Args:
      path: whatever `read_frames` reads; an .npz of `video` (F, H, W, C) or (N, F, H, W, C); a .pt of (T, C, H, W) or
        (B, T, C, H, W). Arrays are uint8, or floats in [-1, 1].
      shape: (F, H, W, C).

    Raises:
      UserError: nothing that can be read, or no frame from `start` on.
    """
    if is_array(path):
        videos: Any = _read_array(path)[:, start::stride][:, : shape[0]]
    else:
        videos = [itertools.islice(read_frames(path, start, stride), shape[0])]
    clips = [[_fit(frame, shape) for frame in video] for video in videos]
    if not clips[0]:
        raise UserError(f"{described(path)} has no frame {start}: choose a smaller start")
    return np.array(clips, np.float32)


def stream_frames(path: Any, shape: tuple[int, int, int, int], start: int = 0) -> tuple[Iterator[np.ndarray], int]:
    """All frames from `start` on, (H, W, C) float32 in [-1, 1] each, read as they are asked for, and how many.

    Of an array of several clips the first is taken.
    """
    if is_array(path):
        frames: Any = _read_array(path)[0, start:]
        count = len(frames)
    else:
        frames, count = read_frames(path, start), max(probe(path).num_frames - start, 0)
    return (_fit(frame, shape) for frame in frames), count


def input_rate(path: Any) -> float | None:
    """Frames a second, None for what does not say."""
    return None if is_array(path) else frame_rate(path)


def _read_array(path: Input) -> np.ndarray:
    """(N, F, H, W, C), uint8 or float32 in [-1, 1]."""
    layout = "(F, H, W, C) or (N, F, H, W, C)"
    if isinstance(path, np.ndarray):
        video = path
    elif not Path(path).is_file():
        raise UserError(f"no file {path}: give a video that exists")
    elif Path(path).suffix == ".npz":
        video = _npz(path, "video")
    else:
        video, layout = load_torch(path), "(T, C, H, W) or (B, T, C, H, W)"
        if not isinstance(video, np.ndarray):
            raise UserError(f"{path} holds a {type(video).__name__}, not one array: save the tensor alone")
        video = np.moveaxis(video, -3, -1) if video.ndim >= 4 else video
    if video.ndim == 4:
        video = video[None]
    if video.ndim != 5 or video.shape[-1] not in (1, 3) or 0 in video.shape:
        name = "an array" if isinstance(path, np.ndarray) else f"{path} holds an array"
        raise UserError(f"{name} of shape {video.shape}: {layout} with 1 or 3 channels is needed")
    if video.dtype == np.uint8:
        return video
    video = video.astype(np.float32)
    if not np.abs(video).max() <= 1.01:  # also where something is NaN
        raise UserError(f"{described(path)} holds numbers that are not in [-1, 1]: scale them, or give uint8")
    return video


def _npz(path: str | os.PathLike, name: str) -> np.ndarray:
    """The array of this name."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if name not in arrays.files:
                raise UserError(f"{path} holds {', '.join(arrays.files) or 'nothing'}: an array '{name}' is needed")
            return arrays[name]
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise whatever they like on a damaged file
        raise UserError(f"{path} cannot be read ({error}): is it an .npz?") from None


def _fit(frame: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
    """A frame (H', W', C') as float (H, W, C) in [-1, 1]; floats of the right size keep every digit."""
    if frame.shape == shape[1:]:
        return to_float(frame) if frame.dtype == np.uint8 else frame
    if frame.dtype != np.uint8:
        frame = to_uint8(frame)
    return to_float(fit_frame(as_rgb(frame), (shape[1], shape[2]), shape[3]))


def frame_size(path: Any) -> tuple[int, int]:
    """(H, W) of the frames in a file."""
    return _read_array(path).shape[2:4] if is_array(path) else next(read_frames(path)).shape[:2]


def read_mask(
    path: Input,
    shape: tuple[int, int, int],
    source_size: tuple[int, int] | None = None,
    start: int = 0,
    stride: int = 1,
) -> np.ndarray:
    """A mask over pixels (F, H, W, 1), 1 = generate: one picture for all frames, or a mask for each.

    Args:
      path: a picture, a video, or an .npz of `mask` (H, W) or (F, H, W), with or without a last axis of 1.
      shape: (F, H, W) of the clip.
      source_size: (H, W) of the input's frames: a mask of that size is cropped and resized as they are, and a pixel is
        generated if any part of it is white.
      start, stride: as of the input, for a mask with more frames than F.
    """
    num_frames, height, width = shape
    mask = _white(path)
    if mask.shape[1:] != (height, width):
        if mask.shape[1:] != source_size:
            sizes = {size for size in ((height, width), source_size) if size}
            wanted = " or ".join(f"{size[0]}x{size[1]}" for size in sorted(sizes))
            raise UserError(
                f"mask {described(path)} is {mask.shape[1]}x{mask.shape[2]} (height x width): {wanted} is needed"
            )
        mask = np.stack([fit_mask(frame, (height, width)) for frame in mask])
    if len(mask) == 1:
        mask = np.repeat(mask, num_frames, axis=0)
    elif len(mask) != num_frames:
        taken = mask[start::stride][:num_frames]
        if len(taken) < num_frames:
            raise UserError(
                f"mask {described(path)} has {len(mask)} frames: 1, the clip's {num_frames}, or as many as the input "
                "are needed"
            )
        mask = taken
    if not mask.any():
        raise UserError(
            f"mask {described(path)} has nothing white, so nothing to generate: white is 128 or more of 255"
        )
    return mask.astype(np.float32)[..., None]


def _white(path: Input) -> np.ndarray:
    """(F, H, W) bool: 128 or more is white; in an array of bool, or with nothing above 1, 1 is white."""
    if isinstance(path, np.ndarray):
        mask = path
    elif not Path(path).exists():
        raise UserError(f"no mask {path}: give a picture, a video or an .npz")
    elif Path(path).suffix == ".npz":
        mask = _npz(path, "mask")
    else:
        frames = [np.asarray(Image.fromarray(frame).convert("L")) for frame in read_frames(path)]
        return np.stack(frames) >= 128
    if mask.ndim in (3, 4) and mask.shape[-1] == 1:
        mask = mask[..., 0]
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or 0 in mask.shape:
        raise UserError(f"mask {described(path)} holds an array of shape {mask.shape}: (H, W) or (F, H, W) is needed")
    return mask > 0.5 if mask.max() <= 1 else mask >= 128


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
