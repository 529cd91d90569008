"""Moving Fashion-MNIST as OpenSTL makes it (Tan et al. 2023, arXiv 2306.11249): two garments that drift and bounce.

The motion is that of moving MNIST (Srivastava et al. 2015, arXiv 1502.04681): garments of 28 px move 3.6 px a frame,
rounded down to whole pixels, and bounce off the walls; the brighter of two overlapping pixels is kept.
"""

import random
from pathlib import Path

import numpy as np

from vdt_jax.data.clips import Clip, Computed
from vdt_jax.data.digits import read_digits
from vdt_jax.errors import UserError

DEBIAN = "/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"
_GARMENT = 28  # pixels
_GARMENTS = 2  # in a clip
_STEP = 0.1  # of the room between the walls, per frame
_TEST_CLIPS = 10_000
_TEST_SEED = 0

Motion = tuple[float, float, float, int]  # x, y, direction, number of the garment


class MovingFashionMnist(Computed):
    """2^20 training clips; held out are the 10,000 test clips of OpenSTL, bit for bit: (F, H, W, 1) uint8.

    As in OpenSTL the garments of both are those of Fashion-MNIST's training file.

    Args:
      shape: (F, H, W, 1), frames of more than 28x28; OpenSTL's are 20 of 64x64.
      split: `train` or `held_out`.
      path: Fashion-MNIST's train-images-idx3-ubyte.gz, that of Debian's package dataset-fashion-mnist by default.

    Raises:
      UserError: an unsupported shape, or no garments there.
    """

    def __init__(self, shape: tuple[int, int, int, int], split: str, path: str = DEBIAN):
        if shape[3] != 1 or min(shape[1:3]) <= _GARMENT:
            raise UserError(
                f"moving Fashion-MNIST has one channel and more than {_GARMENT}x{_GARMENT} pixels, not {shape[1:]} "
                "(H, W, C)"
            )
        if not Path(path).exists():
            raise UserError(
                f"no Fashion-MNIST at '{path}': apt-get install dataset-fashion-mnist, or name "
                "train-images-idx3-ubyte.gz with --config.data.path"
            )
        self._garments, self._shape = read_digits(Path(path)), shape
        self._tests: list[list[Motion]] = []
        if split == "held_out":
            rng = random.Random(_TEST_SEED)  # one stream for all of them, so a clip depends on those before it
            self._tests = [self._draw(rng) for _ in range(_TEST_CLIPS)]

    def __len__(self) -> int:
        return len(self._tests) or 2**20

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`; a clip is a function of its number, `rng` is not used."""
        motions = self._tests[number] if self._tests else self._draw(random.Random(_TEST_SEED + 1 + number))
        num_frames, height, width, _ = self._shape
        video = np.zeros((num_frames, height, width), np.uint8)
        for x, y, direction, garment in motions:
            tops = _path(y, np.sin(direction), num_frames, height - _GARMENT)
            lefts = _path(x, np.cos(direction), num_frames, width - _GARMENT)
            for frame, top, left in zip(video, tops, lefts, strict=True):
                window = frame[top : top + _GARMENT, left : left + _GARMENT]
                np.maximum(window, self._garments[garment], out=window)
        return {"video": video[..., None], "label": 0}

    def _draw(self, rng: random.Random) -> list[Motion]:
        """The motions of a clip, drawn from Python's own generator in the order in which OpenSTL draws them."""
        rng.choice([_GARMENTS])  # OpenSTL draws the number of garments, which takes bits from the generator
        motions = []
        for _ in range(_GARMENTS):
            x, y, direction = rng.random(), rng.random(), rng.random() * 2 * np.pi
            motions.append((x, y, direction, rng.randint(0, len(self._garments) - 1)))
        return motions


def _path(place: float, velocity: float, num_frames: int, room: int) -> list[int]:
    """The position along one axis in each frame, 0 to `room`, of what starts at `place`, 0 to 1."""
    step, path = velocity * _STEP, []
    for _ in range(num_frames):
        place += step
        if place <= 0 or place >= 1:
            place, step = (0.0 if place <= 0 else 1.0), -step
        path.append(int(room * place))
    return path
