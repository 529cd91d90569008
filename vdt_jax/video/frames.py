"""Frames as arrays: bytes and floats, one size for all, and views to look at."""

from typing import NamedTuple

import numpy as np
from PIL import Image

_HIDDEN = np.array([92, 70, 148], np.uint8)  # what the viewer sees where nothing is given


class Crop(NamedTuple):
    """Which part of a frame is kept: a window of the wanted shape, or the centre as DiT's code crops it."""

    size: float = 1.0  # (0, 1] of the largest window that fits
    y: float = 0.5  # from 0, top, to 1, bottom
    x: float = 0.5  # from 0, left, to 1, right
    as_dit: bool = False  # see `_fit_as_dit`; the numbers above are not used


CENTRE, CENTRE_AS_DIT = Crop(), Crop(as_dit=True)


def to_float(frames: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1], shape kept."""
    return frames.astype(np.float32) / 127.5 - 1


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] (clipped) to uint8, shape kept; the inverse of `to_float` for what came from it."""
    return np.clip(np.round((np.asarray(video, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def fit_frame(frame: np.ndarray, size: tuple[int, int], channels: int = 3, crop: Crop = CENTRE) -> np.ndarray:
    """Crop to the shape of `size` (H, W), antialiased resize, grey if channels = 1: (H, W, channels) uint8."""
    image = Image.fromarray(frame)
    if crop.as_dit:
        image = _fit_as_dit(image, *size)
    else:
        scale = min(image.height / size[0], image.width / size[1]) * crop.size
        crop_height, crop_width = size[0] * scale, size[1] * scale
        top, left = (image.height - crop_height) * crop.y, (image.width - crop_width) * crop.x
        box = (left, top, left + crop_width, top + crop_height)
        # The gap shrinks large frames by whole steps first: a third of the time, and nearly the same image.
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box, reducing_gap=3.0)
    return np.asarray(image.convert("L"))[..., None] if channels == 1 else np.asarray(image)


def _fit_as_dit(image: Image.Image, height: int, width: int) -> Image.Image:
    """The crop of ADM and DiT: halved while it can be, resized to whole pixels, then cropped to whole pixels.

    Source: center_crop_arr of github.com/openai/guided-diffusion, image_datasets.py, and of facebookresearch/DiT,
    train.py; there for squares.
    """
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


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
    """One image: a row for each video (F, H, W, 3), a column for each frame."""
    margins = ((0, 0), (gap, gap), (gap, gap), (0, 0))
    rows = [np.concatenate(list(np.pad(video, margins, constant_values=255)), axis=1) for video in videos]
    return np.concatenate(rows, axis=0)
