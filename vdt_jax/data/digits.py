"""Moving digits: glyphs of Pillow's own font that drift and bounce, without a download.

After moving MNIST (Srivastava et al. 2015, arXiv 1502.04681), but computed from the number of a clip. Digits have
sub-pixel positions: each glyph is drawn eight times too large and averaged down, once for each eighth of a pixel.
"""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vdt_jax.data.clips import MADE, Clip
from vdt_jax.errors import UserError

_PHASES = 8  # sub-pixel positions along each axis, and the magnification at which glyphs are drawn
_GLYPH_HEIGHT = 12  # pixels
_STROKE = 4  # added around each line at the large size: thin lines all but vanish at 12 px
_SPEED = (1.5, 3.0)  # pixels a frame


@functools.cache
def glyph_tiles() -> list[np.ndarray]:
    """For each digit, its picture at each sub-pixel offset: (8, 8, h, w) float32 in [0, 1]."""
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


class MovingDigits:
    """2^20 training clips (and 2^20 held out) of digits 12 px high that move 1.5 to 3 px a frame: (F, H, W, 1) uint8.

    The label of a clip of one digit is that digit; clips of several have no classes.

    Args:
      shape: (F, H, W, 1), frames of at least 16x16.
      split: `train` or `held_out`, which use different random streams.
      num_digits: digits a clip, drawn brightest-wins.

    Raises:
      UserError: more than one channel, or frames too small for a digit.
    """

    generated = True
    crop = MADE

    def __init__(self, shape: tuple[int, int, int, int], split: str, num_digits: int = 2):
        if shape[3] != 1 or min(shape[1:3]) < 16:
            raise UserError(f"moving digits come in one channel and at least 16x16 pixels, not {shape[1:]} (H, W, C)")
        self._shape, self._num_digits = shape, num_digits
        self.num_classes = 10 if num_digits == 1 else 1
        self._stream = 0 if split == "train" else 1

    def __len__(self) -> int:
        return 2**20

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`; a clip is a function of its number, `rng` is not used."""
        num_frames, height, width, _ = self._shape
        rng = np.random.default_rng([self._stream, number])
        clip = np.zeros((num_frames, height, width), np.float32)
        time = np.arange(num_frames)
        digits = rng.integers(0, 10, self._num_digits)
        for digit in digits:
            tiles = glyph_tiles()[digit]
            tile_height, tile_width = tiles.shape[2:]
            speed, angle = rng.uniform(*_SPEED), rng.uniform(0, 2 * np.pi)
            room_y, room_x = height - tile_height, width - tile_width
            path_y = _bounce(rng.uniform(0, 2 * room_y) + speed * np.sin(angle) * time, room_y)
            path_x = _bounce(rng.uniform(0, 2 * room_x) + speed * np.cos(angle) * time, room_x)
            eighths_y = np.round(path_y * _PHASES).astype(int)
            eighths_x = np.round(path_x * _PHASES).astype(int)
            for frame, y, x in zip(clip, eighths_y, eighths_x, strict=True):
                top, left = y // _PHASES, x // _PHASES
                window = frame[top : top + tile_height, left : left + tile_width]
                np.maximum(window, tiles[y % _PHASES, x % _PHASES], out=window)
        video = np.round(clip * 255).astype(np.uint8)[..., None]
        return {"video": video, "label": int(digits[0]) if self.num_classes > 1 else 0}
