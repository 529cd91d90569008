"""Position tables for frames and clips of a different size than the weights were trained with."""

import numpy as np

from vdt_jax.errors import UserError
from vdt_jax.models.vdt import grid_embedding, sincos_embedding


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
    """(1, N, D) of a square grid to (1, rows * columns, D) float32.

    A table of `grid` is kept: one of its sinusoids, or of as many positions where that is no square.

    Raises:
      UserError: a table of a different grid that is not square, or no table.
    """
    rows, columns = grid
    if pos_embed.ndim != 3 or pos_embed.shape[0] != 1 or pos_embed.shape[2] % 4 or 0 in pos_embed.shape:
        raise UserError(f"pos_embed has shape {pos_embed.shape}, (1, positions, width) is needed")
    _, count, width = pos_embed.shape
    side = round(count**0.5)
    if count == rows * columns:
        if side**2 != count or np.allclose(pos_embed[0], grid_embedding(grid, width), atol=1e-3):
            return pos_embed
    elif side**2 != count:
        raise UserError(f"pos_embed has {count} positions, neither a square grid nor {rows}x{columns}")
    table = np.asarray(pos_embed, np.float64).reshape(side, side, width)
    resized = np.einsum("Hh,Ww,hwd->HWd", cubic_weights(side, rows), cubic_weights(side, columns), table, optimize=True)
    return resized.reshape(1, rows * columns, width).astype(np.float32)


def resize_time_embed(time_embed: np.ndarray, num_frames: int) -> np.ndarray:
    """(1, F, D) to (1, num_frames, D) float32: the sinusoids at positions spread evenly over the old ones.

    Raises:
      UserError: a table that is not the sinusoids, so that nothing is known between its rows, or no table.
    """
    if time_embed.ndim != 3 or time_embed.shape[0] != 1 or time_embed.shape[2] % 2 or 0 in time_embed.shape:
        raise UserError(f"time_embed has shape {time_embed.shape}, (1, frames, width) is needed")
    _, old, width = time_embed.shape
    if old == num_frames:
        return time_embed
    if not np.allclose(time_embed[0], sincos_embedding(np.arange(old), width), atol=1e-3):
        raise UserError("time_embed is not the sinusoidal table, so it cannot be resized to a different num_frames")
    positions = np.linspace(0, old - 1, num_frames)
    return sincos_embedding(positions, width)[None].astype(np.float32)
