"""Inputs of sampling: which frames are taken, which videos are found, and what the numbers of an array mean."""

import logging
import re

import numpy as np
import pytest
from PIL import Image

from vdt_jax.data.windows import Window
from vdt_jax.errors import UserError
from vdt_jax.inference.inputs import open_mask, open_videos
from vdt_jax.video import to_float, to_uint8, write_video


def counted(num_frames=40, size=16):
    """Frame n is grey 6 n."""
    return np.broadcast_to(6 * np.arange(num_frames, dtype=np.uint8)[:, None, None, None], (num_frames, size, size, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos whose frame n is grey 6 n, at 30 and 60 frames per second."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a30.mp4", counted(), 30)
    write_video(folder / "more" / "b60.mp4", counted(), 60)
    return folder


@pytest.mark.parametrize(
    ("name", "window", "start", "numbers"),
    [
        ("a30.mp4", Window(4, fps=10, hop=1), 10, [10, 13, 16, 19]),
        ("more/b60.mp4", Window(4, fps=10, hop=1), 10, [10, 16, 22, 28]),
        ("a30.mp4", Window(4, fps=15, hop=1), 1, [1, 3, 5, 7]),
        ("more/b60.mp4", Window(3, fps=120, hop=1), 7, [7, 7, 8]),
        ("a30.mp4", Window(4, stride=3, hop=1), 10, [10, 13, 16, 19]),
        ("a30.mp4", Window(4, fps=10, hop=1), 33, [33, 36, 39]),
        ("a30.mp4", Window(4, stride=3, hop=1), 38, [38]),
    ],
)
def test_frames_are_chosen_as_in_training(folder, name, window, start, numbers):
    (video,) = open_videos(folder / name)
    assert video.numbers(window, start) == numbers
    frames = video.read(numbers, (16, 16, 1))
    np.testing.assert_allclose((frames[:, 8, 8, 0] + 1) * 127.5, 6 * np.array(numbers), atol=3)


def test_a_start_past_the_end_is_named(folder):
    (video,) = open_videos(folder / "a30.mp4")
    with pytest.raises(UserError, match=r"a30\.mp4 has no frame 40: choose a smaller start"):
        video.numbers(Window(4, fps=10), 40)


def test_a_folder_a_list_and_a_folder_of_frames(folder, tmp_path):
    found = open_videos(folder)
    assert [video.source for video in found] == [folder / "a30.mp4", folder / "more/b60.mp4"]
    assert [video.rate for video in found] == [30, 60]
    (tmp_path / "list.csv").write_text(f"path,split\n{folder}/more/b60.mp4,test\n{folder}/a30.mp4,train\n")
    listed = open_videos(tmp_path / "list.csv")
    assert {video.source.name for video in listed} == {"a30.mp4", "b60.mp4"}
    (tmp_path / "frames").mkdir()
    for number in range(3):
        Image.fromarray(counted()[number]).save(tmp_path / "frames" / f"{number}.png")
    (frames,) = open_videos(tmp_path / "frames")
    assert frames.info.num_frames == 3


def test_a_folder_with_a_damaged_video_is_refused_by_the_name_of_the_video(folder, tmp_path):
    (tmp_path / "a.mp4").symlink_to(folder / "a30.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(UserError, match=r"broken\.mp4 cannot be decoded"):
        open_videos(tmp_path)
    (tmp_path / "broken.mp4").unlink()
    (tmp_path / "broken.mp4").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"broken\.mp4 cannot be opened .*: repair it, or take it out of"):
        open_videos(tmp_path)


@pytest.mark.parametrize("suffix", ["npz", "NPZ", "npy", "NPY"])
def test_files_of_numpy(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    with path.open("wb") as file:
        np.save(file, counted(5)) if suffix.lower() == "npy" else np.savez(file, video=counted(5))
    (video,) = open_videos(path)
    np.testing.assert_array_equal(to_uint8(video.read([0, 4], (16, 16, 3))), counted(5)[[0, 4]])
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    with path.open("wb") as file:
        np.save(file, mask) if suffix.lower() == "npy" else np.savez(file, mask=mask)
    np.testing.assert_array_equal(open_mask(path).of_clip((3, 16, 16))[2, ..., 0], mask > 0)


def test_upper_case_suffixes_of_videos(folder, tmp_path):
    for name in ("A.MP4", "B.MOV"):
        (tmp_path / name).write_bytes((folder / "a30.mp4").read_bytes())
    assert [video.info.num_frames for video in open_videos(tmp_path)] == [40, 40]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.2, 0.9), (-0.02, 1)], ids=["all", "without black or white", "overshoot"]
)
def test_floats_from_0_to_1_are_recognised_and_said(caplog, dtype, low, high):
    array = np.linspace(low, high, 4 * 16 * 16).reshape(4, 16, 16, 1).astype(dtype)
    (video,) = open_videos(array)
    expected = np.round(np.clip(array.astype(np.float32), 0, 1) * 255)
    np.testing.assert_allclose(to_uint8(video.read(range(4), (16, 16, 1))), expected, atol=1)
    assert "read as [0, 1], where 0 is black" in caplog.text


def test_floats_from_minus_1_to_1_keep_every_digit(caplog):
    exact = np.linspace(-1, 1, 4 * 16 * 16, dtype=np.float32).reshape(4, 16, 16, 1)
    np.testing.assert_array_equal(open_videos(exact)[0].read(range(4), (16, 16, 1)), exact)
    np.testing.assert_array_equal(open_videos(counted(4))[0].read(range(4), (16, 16, 3)), to_float(counted(4)))
    assert not caplog.records


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (counted(4) / 1.0, r"holds numbers that are not in \[-1, 1\], nor in \[0, 1\]: scale them, or give uint8"),
        (np.full((4, 16, 16, 1), np.nan), r"not in \[-1, 1\]"),
        (counted(4).astype(np.int64), r"holds int64: give uint8, or floats in \[-1, 1\] or \[0, 1\]"),
        (counted(4) > 9, "holds bool: give uint8"),
        (counted(4)[..., 0], r"an array of shape \(4, 16, 16\): \(F, H, W, C\) or \(N, F, H, W, C\) with 1 or 3"),
        (np.moveaxis(counted(4), -1, 1), r"an array of shape \(4, 3, 16, 16\)"),
        (np.zeros((4, 16, 16, 4), np.uint8), r"an array of shape \(4, 16, 16, 4\)"),
        (counted(4)[:0], r"an array of shape \(0, 16, 16, 3\)"),
    ],
)
def test_arrays_that_could_be_misread_are_refused(array, message):
    with pytest.raises(UserError, match=message) as error:
        open_videos(array)
    assert "\n" not in str(error.value)


def test_uint8_that_holds_0_and_1_only_is_said(caplog):
    caplog.set_level(logging.WARNING)
    open_videos((counted(4) > 9).astype(np.uint8))
    assert "holds nothing but 0 and 1, of 255: it is black" in caplog.text
    caplog.clear()
    open_videos(np.zeros((4, 16, 16, 3), np.uint8))
    assert not caplog.records


def test_an_array_of_several_videos():
    videos = open_videos(np.stack([counted(4), 255 - counted(4)]))
    assert [video.name for video in videos] == [f"an array of shape (2, 4, 16, 16, 3), video {n}," for n in (0, 1)]
    assert videos[1].read([1], (16, 16, 3))[0, 0, 0, 0] == to_float(np.uint8(249))


def test_a_mask_is_fitted_as_the_video_that_it_is_for(folder):
    """A mask of the size of one video's frames, of which another video of the same batch may have another."""
    white = np.zeros((16, 16), bool)
    white[:8] = True
    mask, (video,) = open_mask(white), open_videos(folder / "a30.mp4")
    assert mask.of_clip((4, 8, 8), video)[:, :4].all() and not mask.of_clip((4, 8, 8), video)[:, 4:].any()
    (other,) = open_videos(np.zeros((4, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match=re.escape("is 16x16 (height x width): 8x8 or 32x32 is needed")):
        mask.of_clip((4, 8, 8), other)


def test_a_mask_for_each_frame_of_the_video_is_taken_at_the_same_frames(folder):
    (video,) = open_videos(folder / "a30.mp4")
    moving = np.arange(40)[:, None, None] == np.arange(16 * 16).reshape(16, 16)
    mask = open_mask(moving).of_clip((4, 16, 16), video, [10, 13, 16, 19])
    np.testing.assert_array_equal(mask[..., 0], moving[[10, 13, 16, 19]])
