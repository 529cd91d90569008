"""Position tables of another size, against torch's own resize."""

from pathlib import Path

import numpy as np
import pytest

from vdt_jax.errors import UserError
from vdt_jax.models.vdt import grid_embedding, sincos_embedding
from vdt_jax.weights.positions import cubic_weights, resize_pos_embed, resize_time_embed

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "pos_embed_resize.npz")


@pytest.mark.parametrize(("source", "target", "side"), [("grid4", "grid4_to_8", 8), ("grid8", "grid8_to_4", 4)])
def test_bicubic_is_torchs(source, target, side):
    np.testing.assert_allclose(resize_pos_embed(GOLDEN[source], (side, side)), GOLDEN[target], atol=1e-5, rtol=0)


def test_same_size_is_the_same():
    np.testing.assert_array_equal(resize_pos_embed(GOLDEN["grid8"], (8, 8)), GOLDEN["grid8"])
    np.testing.assert_array_equal(cubic_weights(5, 5), np.eye(5))


def test_frames_that_are_not_square():
    """Along each axis as the square resize; a table of the grid asked for is kept, though 4 x 16 is also 8 x 8."""
    square = resize_pos_embed(GOLDEN["grid4"], (8, 8)).reshape(8, 8, -1)
    tall = resize_pos_embed(GOLDEN["grid4"], (8, 4)).reshape(8, 4, -1)
    wide = resize_pos_embed(tall.transpose(1, 0, 2)[:, ::2].reshape(1, 16, -1), (4, 8))
    assert square.shape == (8, 8, tall.shape[-1]) and wide.shape == (1, 32, tall.shape[-1])
    rows = np.einsum("Hh,hwd->Hwd", cubic_weights(4, 8), GOLDEN["grid4"].reshape(4, 4, -1))
    np.testing.assert_allclose(tall, rows, atol=1e-6)
    np.testing.assert_allclose(square, np.einsum("Ww,hwd->hWd", cubic_weights(4, 8), tall), atol=1e-6)
    table = grid_embedding((4, 16), 8)[None].astype(np.float32)
    np.testing.assert_array_equal(resize_pos_embed(table, (4, 16)), table)
    assert np.abs(resize_pos_embed(table, (8, 8)) - table).max() < 2  # read as a square, as the official files are
    with pytest.raises(UserError, match="32 positions, neither a square grid nor 5x5"):
        resize_pos_embed(wide, (5, 5))


@pytest.mark.parametrize("shape", [(), (4, 8), (2, 4, 8), (1, 4, 7), (1, 0, 8)])
def test_what_is_no_table_is_refused(shape):
    with pytest.raises(UserError, match="pos_embed has shape"):
        resize_pos_embed(np.zeros(shape, np.float32), (2, 2))
    with pytest.raises(UserError, match="time_embed has shape"):
        resize_time_embed(np.zeros(shape, np.float32), 2)


def test_weights_sum_to_one():
    for old, new in ((1, 4), (2, 7), (16, 3), (3, 3)):
        np.testing.assert_allclose(cubic_weights(old, new).sum(axis=1), 1)


def table(positions):
    return sincos_embedding(np.asarray(positions, float), 8)[None].astype(np.float32)


def test_time_embed_is_the_sinusoids_between():
    np.testing.assert_allclose(resize_time_embed(table(range(5)), 9), table(np.arange(9) / 2), atol=1e-6)
    np.testing.assert_allclose(resize_time_embed(table(range(5)), 3), table([0, 2, 4]), atol=1e-6)
    assert resize_time_embed(table(range(5)), 1).shape == (1, 1, 8)
    with pytest.raises(UserError, match="not the sinusoidal table"):
        resize_time_embed(table(range(5)) + 0.1, 9)
