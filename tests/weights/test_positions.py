"""Position tables of another size, against torch's own resize."""

from pathlib import Path

import numpy as np
import pytest

from vdt_jax.errors import UserError
from vdt_jax.models.vdt import sincos_embedding
from vdt_jax.weights.positions import cubic_weights, resize_pos_embed, resize_time_embed

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "pos_embed_resize.npz")


@pytest.mark.parametrize(("source", "target", "side"), [("grid4", "grid4_to_8", 8), ("grid8", "grid8_to_4", 4)])
def test_bicubic_is_torchs(source, target, side):
    np.testing.assert_allclose(resize_pos_embed(GOLDEN[source], (side, side)), GOLDEN[target], atol=1e-5, rtol=0)


def test_same_size_is_the_same():
    np.testing.assert_array_equal(resize_pos_embed(GOLDEN["grid8"], (8, 8)), GOLDEN["grid8"])
    np.testing.assert_array_equal(cubic_weights(5, 5), np.eye(5))


def test_a_grid_that_is_not_square():
    """Rows are resized as in the square of as many rows, columns as in that of as many columns."""
    grid = GOLDEN["grid4"].reshape(4, 4, -1)
    resized = resize_pos_embed(GOLDEN["grid4"], (4, 8)).reshape(4, 8, -1)
    rows = np.einsum("Ww,hwd->hWd", cubic_weights(4, 8), grid)
    np.testing.assert_allclose(resized, rows, atol=1e-6)
    table = np.zeros((1, 28, 8), np.float32)
    assert resize_pos_embed(table, (4, 7)) is table
    with pytest.raises(UserError, match="pos_embed has 28 positions, which is neither a square grid nor 4x8"):
        resize_pos_embed(table, (4, 8))


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
