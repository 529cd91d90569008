"""Reading video: every kind of input by one door, frames by number, what is no video."""

import json
import os

import numpy as np
import pytest
from helpers.videos import count_up, numbers_of, read_clip, write
from PIL import Image

from vdt_jax.errors import UserError
from vdt_jax.video import VideoInfo, probe, read_frames, read_numbers, write_video


def frame_folder(path, frames):
    path.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"frame_{number}.png")
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The same 40 frames in every form."""
    folder, frames = tmp_path_factory.mktemp("inputs"), count_up()
    images = [Image.fromarray(frame) for frame in frames]
    for name in ("a.gif", "a.webp"):
        images[0].save(folder / name, save_all=True, append_images=images[1:], duration=50)
    return {
        "b_frames.mp4": write(folder / "b_frames.mp4", frames, options={"g": "12", "bf": "3"}),
        "gaps.mkv": write(folder / "gaps.mkv", frames, [n * n // 4 + n for n in range(40)], options={"g": "9"}),
        "mpeg4.avi": write(folder / "mpeg4.avi", frames, codec="mpeg4", options={"g": "10", "q": "1"}),
        "mpeg1.mpg": write(folder / "mpeg1.mpg", frames, codec="mpeg1video", options={"g": "10", "q": "1"}),
        "vp9.webm": write(folder / "vp9.webm", frames, codec="libvpx-vp9", options={"g": "10", "cpu-used": "8"}),
        "mpeg2.ts": write(folder / "mpeg2.ts", frames, codec="mpeg2video", options={"g": "100", "q": "1"}),
        "h264.flv": write(folder / "h264.flv", frames, options={"g": "12", "bf": "2"}),
        "raw.mjpeg": write(folder / "raw.mjpeg", frames, codec="mjpeg", pix_fmt="yuvj420p", format="mjpeg"),
        "raw.h264": write(folder / "raw.h264", frames, format="h264"),
        "a.gif": folder / "a.gif",
        "a.webp": folder / "a.webp",
        "frames": frame_folder(folder / "frames", frames),
    }


KINDS = ["b_frames.mp4", "gaps.mkv", "mpeg4.avi", "mpeg1.mpg", "vp9.webm", "mpeg2.ts", "h264.flv", "raw.h264"]
KINDS += ["raw.mjpeg", "a.gif", "a.webp", "frames"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_frames_in_order(inputs, kind):
    info = probe(inputs[kind])
    assert (info.num_frames, info.height, info.width) == (40, 32, 48)
    assert numbers_of(read_frames(inputs[kind])) == list(range(40))
    assert numbers_of(read_frames(inputs[kind], start=5, stride=7)) == [5, 12, 19, 26, 33]


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_finds_the_frames_that_counting_finds(inputs, kind):
    info = probe(inputs[kind])
    assert (info.pts is None) == (kind in ("frames", "raw.h264", "mpeg1.mpg"))
    assert VideoInfo.from_json(json.loads(json.dumps(info.to_json()))) == info
    every = list(read_frames(inputs[kind]))
    for start in range(0, 35, 3):
        numbers = [start, start + 1, start + 4]
        found = list(read_numbers(inputs[kind], numbers, [info.pts[n] for n in numbers] if info.pts else None))
        np.testing.assert_array_equal(found, [every[start], every[start + 1], every[start + 4]])


LONG = {  # 300 frames, and more of them from keyframe to keyframe than a seek goes back at first
    "h264.ts": {"options": {"g": "250", "sc_threshold": "0", "preset": "ultrafast"}},
    "h264.flv": {"options": {"g": "50", "bf": "2", "preset": "ultrafast"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"g": "250", "sc_threshold": "1000000000", "bf": "2"}},
    "mpeg1.mpg": {"codec": "mpeg1video", "options": {"g": "100", "sc_threshold": "1000000000", "bf": "2"}},
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("num_frames", [1, 2])
def test_streams_without_an_index_have_every_frame(tmp_path, kind, num_frames):
    path = write(tmp_path / kind, np.tile(count_up(50), (6, 1, 1, 1)), **LONG[kind])
    info = probe(path)
    assert info.num_frames == 300
    for start in (0, 1, 49, 103, 110, 239, 251, 260, 298):
        numbers = range(start, start + num_frames)
        found = read_numbers(path, numbers, [info.pts[n] for n in numbers] if info.pts else None)
        assert numbers_of(found) == [number % 50 for number in numbers]


@pytest.mark.parametrize(("suffix", "unit"), [("ts", 188), ("mpg", 2048)])
def test_a_recording_whose_head_is_cut_off_begins_with_what_can_be_decoded(tmp_path, suffix, unit):
    noise = np.random.default_rng(0).integers(0, 60, (60, 64, 96, 3)).astype(np.uint8)
    options = {"g": "20", "sc_threshold": "1000000000", "bf": "2"}
    data = write(tmp_path / f"a.{suffix}", noise, codec="mpeg2video", options=options).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[unit * (len(data) // 5 // unit) :])
    info, every = probe(path), list(read_frames(path))
    assert 30 < info.num_frames == len(every) < 48
    for number in (0, 1, len(every) - 1):
        (found,) = read_numbers(path, [number], [info.pts[number]] if info.pts else None)
        np.testing.assert_array_equal(found, every[number])


def test_times_of_frames_are_the_files_own(inputs):
    np.testing.assert_allclose(probe(inputs["gaps.mkv"]).times() * 30, [n * n // 4 + n for n in range(40)], atol=0.02)
    np.testing.assert_allclose(probe(inputs["a.gif"]).times(), np.arange(40) * 0.05)
    assert probe(inputs["a.webp"]).fps == 20 and probe(inputs["b_frames.mp4"]).fps == 30


def test_first_bytes_say_what_a_file_is(inputs, tmp_path):
    (tmp_path / "gif.mp4").write_bytes(inputs["a.gif"].read_bytes())
    (tmp_path / "mp4.gif").write_bytes(inputs["b_frames.mp4"].read_bytes())
    assert probe(tmp_path / "gif.mp4").num_frames == probe(tmp_path / "mp4.gif").num_frames == 40


def test_a_name_that_is_not_utf8(inputs, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe:.mp4")
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(inputs["b_frames.mp4"].read_bytes())
    assert numbers_of(read_numbers(path, [3, 30], [probe(path).pts[n] for n in (3, 30)])) == [3, 30]


def test_a_picture_is_a_video_of_one_frame(tmp_path):
    grey = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
    Image.fromarray(grey).save(tmp_path / "deep.png")
    (frame,) = read_frames(tmp_path / "deep.png")
    np.testing.assert_allclose(frame[0, :, 0], np.linspace(0, 255, 64), atol=1)
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:, :4] = (255, 0, 0, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    (frame,) = read_frames(tmp_path / "clear.png")
    assert frame[0, 0].tolist() == [255, 0, 0] and frame[0, 7].tolist() == [255, 255, 255]


def test_pictures_stand_upright(tmp_path):
    frame = np.zeros((16, 24, 3), np.uint8)
    frame[:, :12] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(frame).save(tmp_path / "a.jpg", exif=exif)
    (upright,) = read_frames(tmp_path / "a.jpg")
    assert upright.shape == (24, 16, 3) and upright[0].min() > 200 and upright[-1].max() < 50


def test_phone_videos_stand_upright(tmp_path):
    frames = np.zeros((3, 32, 64, 3), np.uint8)
    frames[:, :, :32] = 255
    write(tmp_path / "flat.mp4", frames)
    data = bytearray((tmp_path / "flat.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the track's matrix: 90 degrees clockwise
    data[at : at + 36] = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30], ">i4").tobytes()
    (tmp_path / "turned.mp4").write_bytes(data)
    upright = next(read_frames(tmp_path / "turned.mp4"))
    assert upright.shape == (64, 32, 3) and upright[0].min() > 200 and upright[-1].max() < 50
    assert probe(tmp_path / "turned.mp4").height == 64


def test_what_a_playlist_names_is_not_opened(inputs, tmp_path):
    for name, text in [
        ("a.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n{inputs['mpeg1.mpg']}\n"),
        ("a.mp4", "ffconcat version 1.0\nfile http://127.0.0.1:9/a.mp4\n"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="is a playlist"):
            probe(tmp_path / name)


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        probe(tmp_path / "pipe.mp4")


def test_a_clip_of_a_folder_of_frames(inputs):
    clip = read_clip(inputs["frames"], (4, 8, 12, 1), start=9, stride=2)
    assert clip.shape == (4, 8, 12, 1) and numbers_of(clip) == [9, 11, 13, 15]


def test_dot_files_beside_the_frames_of_a_folder_are_no_frames(tmp_path):
    folder = frame_folder(tmp_path / "frames", count_up(5))
    for number in range(5):
        (folder / f"._frame_{number}.png").write_bytes(b"\0\5\x16\7")
    assert probe(folder).num_frames == 5 and numbers_of(read_frames(folder)) == list(range(5))


def test_mp4_written_here_is_searchable(tmp_path):
    write_video(tmp_path / "a.mp4", count_up())
    assert probe(tmp_path / "a.mp4").pts is not None


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_that_ends_anywhere_is_read_or_gets_one_line(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    frames = [Image.fromarray(frame) for frame in count_up(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    whole, refused = path.read_bytes(), 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            assert 1 <= sum(1 for _ in read_frames(path)) <= 3
        except UserError as error:
            refused += "\n" not in str(error)
    assert refused > len(whole) // 2
