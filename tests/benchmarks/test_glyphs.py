"""benchmarks/glyphs.py finds which digit a frame shows."""

import glyphs
import jax.numpy as jnp
import numpy as np

from vdt_jax.data import make_source, take

CLIPS = take(make_source({"name": "moving_digits", "num_digits": 1}, (16, 32, 32, 1), "held_out"), range(8))


def test_each_frame_shows_its_digit():
    for video, label in zip(CLIPS["video"], CLIPS["labels"], strict=True):
        np.testing.assert_array_equal(glyphs.digits_shown(jnp.asarray(video)), label)


def test_a_digit_that_changes_is_noticed():
    first, second = np.unique(CLIPS["labels"], return_index=True)[1][:2]
    halves = np.concatenate([CLIPS["video"][first, :8], CLIPS["video"][second, 8:]])
    one, changed = glyphs.consistency(CLIPS["video"]), glyphs.consistency(halves[None])
    assert list(one.values()) == ["100.0%", "100.0%", "0.0%"]
    assert list(changed.values()) == ["50.0%", "0.0%", "0.0%"]


def test_an_empty_frame_shows_nothing():
    gone = np.concatenate([CLIPS["video"][0, :12], np.full((4, 32, 32, 1), -0.98, np.float32)])
    assert list(glyphs.consistency(gone[None]).values()) == ["75.0%", "0.0%", "25.0%"]
