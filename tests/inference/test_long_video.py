"""Long videos from windows: every given frame where it belongs, every new one from the right window."""

import itertools

import numpy as np
import pytest

from vdt_jax.errors import UserError
from vdt_jax.inference.long_video import extend, raise_frame_rate


def ramp(numbers):
    """Frames (1, 1, 1) that hold their own time."""
    return np.array(list(numbers), np.float32)[:, None, None, None]


def go_on_as_before(clips, mask, numbers):
    """Completes windows of a video that grows evenly, from what is given; where two frames must be given."""
    out = clips.copy()
    for clip, filled, hidden in zip(clips, out, mask, strict=True):
        given = np.flatnonzero(hidden < 0.5)
        slope, begin = np.polyfit(given, clip[given, 0, 0, 0], 1)
        filled[hidden > 0.5, 0, 0, 0] = begin + slope * np.flatnonzero(hidden > 0.5)
    return out


@pytest.mark.parametrize(("num_new", "backward"), [(5, False), (6, False), (23, False), (5, True), (23, True)])
def test_extend_goes_on_evenly(num_new, backward):
    given = np.stack([ramp([0, 1]), ramp([10, 8])])
    blocks = list(extend(go_on_as_before, given, num_new, num_frames=8, backward=backward))
    new = np.concatenate(blocks[::-1] if backward else blocks, axis=1)
    times = np.arange(-num_new, 0) if backward else np.arange(2, 2 + num_new)
    assert all(block.shape[1] <= 6 for block in blocks)
    np.testing.assert_allclose(new[..., 0, 0, 0], [times, 10 - 2.0 * times], atol=1e-3)


@pytest.mark.parametrize("num_given", [2, 4, 5, 6, 13, 24])
@pytest.mark.parametrize(
    ("factor", "overlap", "batch_size"), [(4, 1, 1), (4, 1, 3), (4, 2, 3), (4, 3, 1), (7, 1, 2), (15, 1, 1)]
)
def test_frame_rate_of_an_even_video(num_given, factor, overlap, batch_size):
    given = ramp(range(0, num_given * factor, factor))
    seen = []

    def fill(clips, mask, numbers):
        seen.extend(numbers)
        assert len(clips) == len(mask) == len(numbers) <= batch_size
        return go_on_as_before(clips, mask, numbers)

    out = np.stack(list(raise_frame_rate(fill, given, factor, 16, overlap, batch_size)))
    np.testing.assert_allclose(out[:, 0, 0, 0], np.arange((num_given - 1) * factor + 1), atol=1e-3)
    np.testing.assert_array_equal(out[::factor], given)
    assert seen == list(range(len(seen)))


def test_windows_know_what_was_made_before_where_they_overlap():
    masks, contexts = [], []

    def fill(clips, mask, numbers):
        masks.append(mask[0])
        contexts.append(clips[0, :, 0, 0, 0])
        return np.where(mask[..., None, None, None] > 0.5, 100.0 + numbers[0], clips)

    list(raise_frame_rate(fill, ramp(range(7)), 2, 6, overlap=2))
    np.testing.assert_array_equal(masks[0], [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(masks[1], [0, 0, 0, 1, 0, 1])
    np.testing.assert_array_equal(contexts[1][:3], [1, 100, 2])
    np.testing.assert_array_equal(contexts[2][:3], [2, 101, 3])


def test_an_endless_video_is_read_only_as_far_as_it_is_looked_at():
    read = itertools.count()
    frames = (np.full((1, 1, 1), float(next(read)), np.float32) for _ in itertools.count())
    out = list(itertools.islice(raise_frame_rate(go_on_as_before, frames, 4, 16, batch_size=2), 1000))
    assert len(out) == 1000 and next(read) < 265


def test_what_cannot_be():
    def fail(message, *arguments, **options):
        with pytest.raises(UserError, match=message):
            list(raise_frame_rate(go_on_as_before, *arguments, **options))

    fail("fps_factor must be from 2 to 15 with this model, got 1", ramp(range(9)), 1, 16)
    fail("fps_factor must be from 2 to 15 with this model, got 16", ramp(range(9)), 16, 16)
    fail("overlap must be from 1 to 3, since a window has 4 given frames; got 4", ramp(range(9)), 4, 16, overlap=4)
    fail("overlap must be from 1 to 3.* got 0", ramp(range(9)), 4, 16, overlap=0)
    fail(r"1 frame\(s\)", ramp([0]), 4, 16)
