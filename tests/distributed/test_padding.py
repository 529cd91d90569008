"""Padding a last, smaller batch."""

import numpy as np

from vdt_jax.distributed.mesh import map_batches


def test_the_last_row_is_repeated():
    rows, batches = np.arange(6).reshape(3, 2), []
    map_batches(lambda batch: batches.append(batch.tolist()) or batch, 5, rows)
    assert batches == [[[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]]


def test_every_call_has_one_shape_and_padding_is_cut_off():
    shapes = []

    def total(a, b):
        shapes.append((a.shape, b.shape))
        return (a + b).sum(axis=1)

    rows = np.arange(14).reshape(7, 2)
    np.testing.assert_array_equal(map_batches(total, 3, rows, 2 * rows), 3 * rows.sum(axis=1))
    assert shapes == [((3, 2), (3, 2))] * 3
