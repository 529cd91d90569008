"""Video in image files: GIF and animated WebP, folders of frames, a single image; through Pillow."""

import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vdt_jax.video.info import VideoInfo, as_pts

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FOLDER_FPS = 25.0  # a folder of frames does not say how fast they go
_MAGIC = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")
_DEFAULT_MS = 100  # what viewers take where a frame says 0


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file begins like an image, whatever its name; but .mjpeg is many images, for FFmpeg."""
    if Path(path).suffix.lower() == ".mjpeg":
        return False
    with Path(path).open("rb") as file:
        head = file.read(16)
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts frame_2 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def frame_files(folder: str | os.PathLike) -> list[str]:
    """The images of a folder in natural order, by name; names that begin with a dot are left out."""
    files = (file for file in Path(folder).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    return sorted((file.name for file in files if not file.name.startswith(".")), key=natural_key)


def probe_image(path: str | os.PathLike) -> VideoInfo:
    """Counts the frames of an image and reads how long each is shown; the first is decoded."""
    with Image.open(path) as image:
        height, width = _as_frame(image).shape[:2]
        stamps = [0]
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            if image.format == "WEBP":
                image.load()  # it knows the duration of a frame only then
            stamps.append(stamps[-1] + round(image.info.get("duration", 0) or _DEFAULT_MS))
    count = len(stamps) - 1
    return VideoInfo(count, 1000 * count / stamps[-1], height, width, as_pts(stamps[:-1]), 1e-3)


def image_numbers(path: str | os.PathLike, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames of these rising numbers, (H, W, 3) uint8, until there are no more."""
    with Image.open(path) as image:
        count = getattr(image, "n_frames", 1)
        for number in numbers:
            if number >= count:
                return
            image.seek(number)
            yield _as_frame(image)


def probe_folder(path: str | os.PathLike) -> VideoInfo:
    """Counts the frames of a folder; the first is decoded."""
    names = frame_files(path)
    first = next(folder_numbers(path, [0])) if names else np.zeros((0, 0, 3), np.uint8)
    return VideoInfo(len(names), FOLDER_FPS, first.shape[0], first.shape[1])


def folder_numbers(path: str | os.PathLike, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames of these rising numbers of a folder, (H, W, 3) uint8, until there are no more."""
    names = _listing(os.fspath(path), Path(path).stat().st_mtime_ns)
    for number in numbers:
        if number >= len(names):
            return
        with Image.open(Path(path) / names[number]) as image:
            yield _as_frame(image)


@functools.lru_cache(maxsize=16)
def _listing(folder: str, _mtime_ns: int) -> list[str]:
    """One clip after another comes from the same few folders."""
    return frame_files(folder)


def _as_frame(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8: upright, 16 bits brought to 8, what is transparent on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        scale = 257 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 1
        grey = np.clip(values / scale, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))
