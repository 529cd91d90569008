"""Reading and writing video: colours, order, sizes."""

import numpy as np
import pytest
from helpers.videos import read_clip
from PIL import Image

from vdt_jax.errors import UserError
from vdt_jax.video import (
    CENTRE_AS_DIT,
    enlarge,
    fit_frame,
    frame_grid,
    hide,
    probe,
    read_frames,
    side_by_side,
    to_float,
    to_uint8,
    write_video,
)


def frames(num=6, height=20, width=30):
    """Red grows from frame to frame, green from left to right, blue from top to bottom."""
    video = np.zeros((num, height, width, 3), np.uint8)
    video[..., 0] = (np.arange(num) * 40)[:, None, None]
    video[..., 1] = (np.arange(width) * 4)[None, None, :]
    video[..., 2] = (np.arange(height) * 12)[None, :, None]
    return video


def test_floats_and_bytes_are_inverse():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_uint8(to_float(every)), every)
    assert to_float(every).min() == -1 and to_float(every).max() == 1
    np.testing.assert_array_equal(to_uint8(np.array([-7.0, 7.0])), [0, 255])


def test_mp4_comes_back_nearly_as_it_was(tmp_path):
    write_video(tmp_path / "a.mp4", frames(), fps=12)
    back = np.stack(list(read_frames(tmp_path / "a.mp4")))
    assert back.shape == frames().shape and probe(tmp_path / "a.mp4").fps == 12
    assert np.abs(back.astype(int) - frames()).mean() < 4


def test_odd_sizes_are_padded_for_mp4(tmp_path):
    write_video(tmp_path / "a.mp4", frames(height=21, width=31))
    assert next(read_frames(tmp_path / "a.mp4")).shape == (22, 32, 3)


def test_gif_png_and_npz(tmp_path):
    for suffix in ("gif", "png", "npz"):
        write_video(tmp_path / f"a.{suffix}", frames(), fps=10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (6, 100, 0)
        gif.seek(5)
        assert abs(int(np.asarray(gif.convert("RGB"))[10, 10, 0]) - 200) < 16
    assert np.asarray(Image.open(tmp_path / "a.png")).shape == (24, 6 * 34, 3)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["video"], frames())
    with pytest.raises(UserError, match=r"\.webp"):
        write_video(tmp_path / "a.webp", frames())


@pytest.mark.parametrize(("height", "width"), [(36, 64), (64, 37), (150, 91), (20, 16), (16, 16), (9, 30)])
def test_the_crop_of_dit_has_whole_pixels(height, width):
    """center_crop_arr(image, 16), step by step."""
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(frame)
    while min(image.size) >= 32:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), Image.Resampling.BOX)
    scale = 16 / min(image.size)
    array = np.asarray(image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC))
    y, x = (array.shape[0] - 16) // 2, (array.shape[1] - 16) // 2
    np.testing.assert_array_equal(fit_frame(frame, (16, 16), crop=CENTRE_AS_DIT), array[y : y + 16, x : x + 16])
    assert fit_frame(frame, (16, 8), 1, CENTRE_AS_DIT).shape == (16, 8, 1)
    assert fit_frame(frame, (8, 24), 3, CENTRE_AS_DIT).shape == (8, 24, 3)


def test_fit_frame_crops_the_centre_and_keeps_axes():
    wide = frames(1, 20, 60)[0]
    out = fit_frame(wide, (10, 10))
    assert out.shape == (10, 10, 3)
    assert abs(int(out[0, 0, 1]) - 4 * 20.5) < 4 and abs(int(out[0, -1, 1]) - 4 * 38.5) < 4  # columns 20 to 40
    assert out[-1, 0, 2] > out[0, 0, 2] + 100
    assert fit_frame(wide, (10, 10), channels=1).shape == (10, 10, 1)


def test_frames_are_read_from_a_start_at_a_stride(tmp_path):
    write_video(tmp_path / "a.mp4", frames(9))
    every = read_clip(tmp_path / "a.mp4", (9, 20, 30, 3))
    np.testing.assert_array_equal(read_clip(tmp_path / "a.mp4", (3, 20, 30, 3), start=2, stride=3), every[2::3])


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video at all" * 100)
    for path, message in [(tmp_path / "a.mp4", "cannot be decoded"), (tmp_path / "b.mp4", "file not found")]:
        with pytest.raises(UserError, match=message):
            list(read_frames(path))


def test_views_put_videos_where_they_belong():
    video = frames(2, 4, 6)
    hidden = hide(video, np.ones((2, 4, 6, 1)) * np.array([0, 1])[:, None, None, None])
    np.testing.assert_array_equal(hidden[0], video[0])
    assert (hidden[1] == hidden[1, 0, 0]).all()
    row = side_by_side(video, hidden, gap=3)
    assert row.shape == (2, 4, 15, 3) and (row[:, :, 6:9] == 255).all()
    np.testing.assert_array_equal(row[:, :, 9:], hidden)
    grid = frame_grid(video, hidden, gap=1)
    assert grid.shape == (12, 16, 3)
    np.testing.assert_array_equal(grid[1:5, 9:15], video[1])
    np.testing.assert_array_equal(enlarge(video, 8)[:, ::2, ::2], video)


def delays(path):
    """Milliseconds that each frame of a GIF is shown, and how red it is."""
    with Image.open(path) as gif:
        shown = []
        for number in range(gif.n_frames):
            gif.seek(number)
            shown.append((gif.info["duration"], int(np.asarray(gif.convert("RGB"))[10, 10, 0])))
    return zip(*shown, strict=True)


@pytest.mark.parametrize("fps", [8, 24, 30, 33.3, 50, 59.94, 60, 120, 1000])
def test_a_gif_plays_at_its_rate_without_delays_that_browsers_do_not_keep(tmp_path, fps):
    video = np.zeros((60, 20, 30, 3), np.uint8)
    video[..., 0] = (4 * np.arange(60))[:, None, None]
    write_video(tmp_path / "a.gif", video, fps)
    times, red = delays(tmp_path / "a.gif")
    assert min(times) >= 20 and abs(sum(times) - 60_000 / fps) <= 20
    assert len(times) == 60 or fps > 50
    shown_at = np.cumsum([0, *times[:-1]]) / 1000  # each frame is shown when it is due
    assert np.abs(np.array(red) / 4 - shown_at * fps).max() <= 1 + 0.006 * fps


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_a_gif_of_few_fast_frames_has_one_at_least(tmp_path, num_frames):
    write_video(tmp_path / "a.gif", frames(num_frames), fps=1000)
    assert len(list(read_frames(tmp_path / "a.gif"))) == 1


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
@pytest.mark.parametrize("fps", [0, -8, 0.09, 1001, 90000, float("nan"), float("inf")])
def test_rates_that_players_do_not_show_are_refused_and_nothing_is_written(tmp_path, suffix, fps):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"older")
    with pytest.raises(UserError, match=rf"cannot write .*a\.{suffix}: fps must be from 0\.1 to 1000, got {fps:g}"):
        write_video(path, frames(), fps)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fps", [0.1, 1, 23.976, 24000 / 1001, 30000 / 1001, 59.94, 240, 1000])
def test_an_mp4_has_its_rate(tmp_path, fps):
    write_video(tmp_path / "a.mp4", frames(), fps)
    assert abs(probe(tmp_path / "a.mp4").fps / fps - 1) < 1e-5
