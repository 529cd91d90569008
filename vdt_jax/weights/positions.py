"""Position tables for frames and clips of another size than the weights were trained with."""

import numpy as np

from vdt_jax.errors import UserError
from vdt_jax.models.vdt import sincos_embedding


def cubic_weights(old: int, new: int) -> np.ndarray:
    """The (new, old) matrix of torch's bicubic resize along one axis, float64.

    Keys 1981 (doi:10.1109/TASSP.1981.1163711) with a = -0.75, pixel centres at halves, indices outside clamped to the
    edge, and no antialiasing where it shrinks: `F.interpolate(mode="bicubic")` as the official loader calls it.
    """
    a = -0.75
    rows = np.arange(new)[:, None]
    centres = (rows + 0.5) * old / new - 0.5
    columns = np.floor(centres).astype(int) + np.arange(-1, 3)
    d = np.abs(centres - columns)
    weights = np.where(d <= 1, (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (rows, columns.clip(0, old - 1)), weights)
    return matrix


def resize_pos_embed(pos_embed: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(1, N, D) of a square grid to (1, rows * columns, D) float32; a table that has the grid already stays as it is.

    Raises:
      UserError: N is neither a square nor the size of the grid.
    """
    rows, columns = grid
    num_old = pos_embed.shape[1]
    side = round(num_old**0.5)
    if side**2 != num_old:
        if num_old == rows * columns:
            return pos_embed
        raise UserError(f"pos_embed has {num_old} positions, which is neither a square grid nor {rows}x{columns}")
    table = np.asarray(pos_embed, np.float64).reshape(side, side, -1)
    weights = (cubic_weights(side, rows), cubic_weights(side, columns))
    resized = np.einsum("Hh,Ww,hwd->HWd", *weights, table, optimize=True)
    return resized.reshape(1, rows * columns, -1).astype(np.float32)


def resize_time_embed(time_embed: np.ndarray, num_frames: int) -> np.ndarray:
    """(1, F, D) to (1, num_frames, D) float32: the sinusoids at positions spread evenly over the old ones.

    Raises:
      UserError: a table that is not the sinusoids, so that nothing is known between its rows.
    """
    _, old, width = time_embed.shape
    if not np.allclose(time_embed[0], sincos_embedding(np.arange(old), width), atol=1e-3):
        raise UserError("time_embed is not the sinusoidal table: num_frames cannot resize it")
    positions = np.linspace(0, old - 1, num_frames)
    return sincos_embedding(positions, width)[None].astype(np.float32)
