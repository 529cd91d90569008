"""Sources and the pipeline: a position is a number."""

import json
import time

import numpy as np
import pytest
from helpers.videos import moving_square

from vdt_jax.data import make_source, take
from vdt_jax.data.clips import UnreadableClip
from vdt_jax.data.pipeline import batches, clip_numbers
from vdt_jax.errors import UserError
from vdt_jax.video import write_video

SHAPE = (16, 32, 32, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for i in range(3):
        write_video(path / "deep" / f"{i}.mp4", moving_square(20 + i))
    (path / "notes.txt").write_text("not a video")
    return path


def test_digits_are_the_same_for_the_same_index_and_held_out_apart():
    train, held_out = (make_source({"name": "moving_digits"}, SHAPE, split) for split in ("train", "held_out"))
    clip = train.clip(5)["video"]
    assert len(train) >= 1_000_000 and clip.shape == SHAPE and clip.dtype == np.uint8
    np.testing.assert_array_equal(train.clip(5)["video"], clip)
    assert not any(
        np.array_equal(train.clip(i)["video"], held_out.clip(j)["video"]) for i in range(5) for j in range(5)
    )


def test_digits_move_at_the_speed_asked_for_and_stay_inside():
    source = make_source({"name": "moving_digits", "num_digits": 1}, (16, 64, 64, 1), "train")
    grid = np.arange(64)
    for index in range(20):
        clip = source.clip(index)["video"][..., 0].astype(float)
        mass = clip.sum((1, 2))
        np.testing.assert_allclose(mass, mass[0], rtol=0.03)  # anti-aliasing keeps the ink, nothing leaves the frame
        y, x = (clip.sum(2) * grid).sum(1) / mass, (clip.sum(1) * grid).sum(1) / mass
        speed = np.median(np.hypot(np.diff(y), np.diff(x)))
        assert 1.4 < speed < 3.1
        rows = np.flatnonzero(clip[0].max(1) > 40)
        assert rows[-1] - rows[0] + 1 >= 10


def test_digits_stand_between_pixels():
    source = make_source({"name": "moving_digits"}, SHAPE, "train")
    assert len(np.unique(source.clip(0)["video"])) > 30


def test_one_digit_is_its_own_label():
    one = make_source({"name": "moving_digits", "num_digits": 1}, (1, 32, 32, 1), "train")
    ink = [[one.clip(i)["video"].astype(int).sum() for i in range(200) if one.clip(i)["label"] == d] for d in (1, 8)]
    assert one.num_classes == 10 and max(ink[0]) < min(ink[1])  # an 8 has more of it than a 1
    two = make_source({"name": "moving_digits"}, SHAPE, "train")
    assert two.num_classes == 1 and two.clip(0)["label"] == 0


def test_take_makes_a_batch_and_begins_again():
    batch = take(Numbers(3), range(2, 5))
    np.testing.assert_array_equal(np.round((batch["video"].ravel() + 1) * 127.5), [2, 0, 1])
    assert batch["labels"].tolist() == [2, 0, 1] and batch["labels"].dtype == np.int32


def test_take_puts_the_next_readable_clip_in_the_place_of_one_that_is_not():
    assert take(Numbers(4, bad=[1, 2]), range(4))["labels"].tolist() == [0, 3, 3, 3]
    assert take(Numbers(4, bad=[3]), range(3, 5))["labels"].tolist() == [0, 0]
    with pytest.raises(UserError, match="3 clips in a row cannot be read; the last: clip 0"):
        take(Numbers(3, range(3)), range(1, 2))


def test_digits_refuse_frames_that_are_too_small():
    with pytest.raises(UserError, match="at least 16x16"):
        make_source({"name": "moving_digits"}, (4, 8, 8, 1), "train")


def test_video_folder_crops_resizes_and_keeps_colours(folder):
    source = make_source({"name": "video_folder", "path": str(folder), "hop": 1}, (16, 24, 24, 3), "train")
    assert len(source) == 6 + 7  # videos 1 and 2, with 21 and 22 frames; video 0 is held out
    clip = source.clip(0)["video"]
    assert clip.shape == (16, 24, 24, 3)
    red, blue = clip[0, 12, 3], clip[0, 1, 1]  # the square's left part survives the crop of 48x64 to 48x48
    assert red[0] > 150 and red[2] < 90 and blue[2] > 150 and blue[0] < 60
    assert np.abs(clip[0].astype(int) - clip[5]).max() > 100
    np.testing.assert_array_equal(source.clip(1)["video"][:15], clip[1:])  # one hop later
    assert (
        make_source({"name": "video_folder", "path": str(folder)}, (16, 24, 24, 1), "train").clip(0)["video"].shape[-1]
        == 1
    )


def test_video_folder_stride_skips_frames(folder):
    dense = make_source({"name": "video_folder", "path": str(folder)}, (7, 24, 24, 3), "held_out")
    strided = make_source({"name": "video_folder", "path": str(folder), "stride": 3}, (3, 24, 24, 3), "held_out")
    np.testing.assert_array_equal(strided.clip(0)["video"], dense.clip(0)["video"][::3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "config.data.path=FOLDER"),
        ({"path": "/nowhere"}, "folder not found: /nowhere"),
        ({"stride": 30}, "the longest has"),
        ({"hop": 0}, "data.hop must be >= 1, got 0"),
    ],
)
def test_video_folder_says_what_is_wrong(folder, options, message):
    with pytest.raises(UserError, match=message):
        make_source({"name": "video_folder", "path": str(folder)} | options, (16, 24, 24, 3), "train")


def test_empty_folder_and_unknown_source(tmp_path):
    with pytest.raises(UserError, match="no videos in"):
        make_source({"name": "video_folder", "path": str(tmp_path)}, (4, 8, 8, 3), "train")
    with pytest.raises(UserError, match=r"moving_digits takes no path, speed: it takes \['num_digits'\]"):
        make_source({"name": "moving_digits", "path": "x", "speed": 1}, (4, 16, 16, 1), "train")
    with pytest.raises(UserError, match="'imagenet'"):
        make_source({"name": "imagenet"}, (4, 8, 8, 3), "train")


def test_a_file_that_breaks_later_is_an_unreadable_clip(tmp_path):
    for name in "ab":
        write_video(tmp_path / f"{name}.mp4", moving_square())
    options = {"name": "video_folder", "path": str(tmp_path), "max_bad": 1.0}
    source = make_source(options, (4, 8, 8, 3), "train", tmp_path / "run" / "bad_files.jsonl")
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(b"no longer a video")
    with pytest.raises(UnreadableClip, match="cannot be decoded"):
        source.clip(0)
    (line,) = (tmp_path / "run" / "bad_files.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] in ("a.mp4", "b.mp4") and "cannot be decoded" in json.loads(line)["reason"]
    with pytest.raises(UserError, match=r"2 of 2 videos cannot be read, more than data\.max_bad=0\.1"):
        make_source(options | {"max_bad": 0.1}, (4, 8, 8, 3), "train")


class Numbers:
    """Clip i is the number i; some cannot be read."""

    num_classes = 256

    def __init__(self, length, bad=()):
        self.length, self.bad = length, set(bad)

    def __len__(self):
        return self.length

    def clip(self, number, rng=None):
        if number in self.bad:
            raise UnreadableClip(f"clip {number}")
        return {"video": np.full((1, 1, 1, 1), number, np.uint8), "label": number}


def numbers(stream, steps):
    return np.concatenate([np.round((next(stream)["video"].ravel() + 1) * 127.5).astype(int) for _ in range(steps)])


def test_every_epoch_is_a_new_order_of_everything():
    order = numbers(batches(Numbers(30), batch_size=10, seed=0), 6)
    assert sorted(order[:30]) == sorted(order[30:]) == list(range(30))
    assert order[:30].tolist() != order[30:].tolist() and order[:30].tolist() != list(range(30))
    assert numbers(batches(Numbers(30), batch_size=10, seed=1), 3).tolist() != order[:30].tolist()


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_run_goes_on_anywhere_on_any_number_of_threads(num_threads):
    whole = numbers(batches(Numbers(30), batch_size=8, seed=0), 10)
    resumed = numbers(batches(Numbers(30), batch_size=8, seed=0, first_step=7, num_threads=num_threads), 3)
    np.testing.assert_array_equal(resumed, whole[56:])


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_share_each_batch_completely(num_hosts):
    options = dict(batch_size=8, seed=0, first_step=2)
    whole = numbers(batches(Numbers(30), **options), 3).reshape(3, 8)
    streams = [batches(Numbers(30), **options, host=host, num_hosts=num_hosts) for host in range(num_hosts)]
    parts = [numbers(stream, 3).reshape(3, -1) for stream in streams]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    with pytest.raises(UserError, match="batch_size must be a multiple of the number of hosts, 3; got 8"):
        batches(Numbers(30), batch_size=8, seed=0, num_hosts=3)
    with pytest.raises(UserError, match="seed must be >= 0, got -1"):
        batches(Numbers(30), batch_size=8, seed=-1)


def test_bad_clips_are_replaced_by_the_next_in_the_order():
    good = numbers(batches(Numbers(20), batch_size=20, seed=0), 1)
    bad = good[4]
    replaced = numbers(batches(Numbers(20, [bad]), batch_size=20, seed=0), 1)
    np.testing.assert_array_equal(np.delete(replaced, 4), np.delete(good, 4))
    assert replaced[4] == good[5]


def test_nothing_but_bad_clips_ends_the_run():
    with pytest.raises(UserError, match="in a row cannot be read"):
        next(batches(Numbers(3, range(3)), batch_size=1, seed=0))


def test_the_clips_of_a_step_can_be_named():
    class Numbered:
        num_classes = 10

        def __len__(self):
            return 10

        def clip(self, index, rng=None):
            return {"video": np.zeros((1, 2, 2, 1), np.uint8), "label": index}

    stream = batches(Numbered(), batch_size=4, seed=3)
    for step in (1, 2, 3):
        named = clip_numbers(10, 3, range((step - 1) * 4, step * 4))
        assert named == next(stream)["labels"].tolist() and (step > 2 or len(set(named)) == 4)


def test_no_more_is_read_ahead_than_is_of_use():
    asked = []

    class Counting:
        num_classes = 1

        def __len__(self):
            return 10**6

        def clip(self, number, rng=None):
            asked.append(number)
            return {"video": np.zeros((1, 2, 2, 1), np.uint8), "label": 0}

    stream = batches(Counting(), batch_size=200, seed=0, num_threads=2)
    next(stream)
    time.sleep(1)
    assert 200 <= len(asked) <= 4 * 200 + 2 * 16  # the batch, two that are ready, one that waits for them
