"""Videos are shown as a player shows them: trims, shape of pixels, turns, cover pictures, transparency, rates.

files/: trim_a.* and trim_b.mp4 are grey videos that were cut without re-encoding; in trim_a.mp4, trim_a.mov and
trim_b.mp4 an edit list discards 15 frames from the keyframe on. trim_c.ogv and trim_d.mkv were cut likewise. cover.mp4
has a picture beside its film, song.m4a beside its sound; b_frames.avi has B-frames of H.264.
"""

import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.videos import count_up, numbers_of, open_folder, write

from vdt_jax.data.decoders import Decoders
from vdt_jax.errors import UserError
from vdt_jax.video import probe, read_frames, read_numbers

FILES = Path(__file__).parent / "files"


def check_found_as_counted(path):
    """Every third frame is found by its time, or by counting, as decoding from the beginning shows it."""
    info, every = probe(path), list(read_frames(path))
    assert info.num_frames == len(every)
    for number in range(0, len(every), 3):
        (found,) = read_numbers(path, [number], [info.pts[number]] if info.pts else None)
        np.testing.assert_array_equal(found, every[number])
    return every


@pytest.mark.parametrize(
    ("name", "num_frames", "first"),
    [
        ("trim_a.mp4", 60, 15),
        ("trim_a.mov", 60, 15),
        ("trim_a.mkv", 75, 0),
        ("trim_b.mp4", 51, 15),
        ("trim_c.ogv", 25, 0),
        ("trim_d.mkv", 30, 0),
    ],
)
def test_all_presented_frames_of_a_trimmed_file_are_counted_and_found(name, num_frames, first):
    frames = check_found_as_counted(FILES / name)
    assert len(frames) == num_frames
    if name.startswith(("trim_a", "trim_b")):  # frame n of the original was grey 2n, in luma from 16 to 235
        grey = np.array([frame.mean() for frame in frames]) * 219 / 255 + 16
        np.testing.assert_allclose(grey, np.maximum(2 * np.arange(first, first + num_frames), 16), atol=1)
    assert probe(FILES / name).fps == pytest.approx(30 if first or num_frames == 75 else 25)


def test_a_discarded_keyframe_starts_a_search(monkeypatch):
    """A clip of a trimmed file is decoded from its keyframe, not from the beginning of the file after four searches."""
    opened = []
    monkeypatch.setattr(
        av, "open", lambda *arguments, **options: opened.append(arguments) or real(*arguments, **options)
    )
    real = av.container.open
    info = probe(FILES / "trim_a.mp4")
    opened.clear()
    assert len(list(read_numbers(FILES / "trim_a.mp4", [3], [info.pts[3]]))) == len(opened) == 1


def test_a_recording_whose_clock_starts_again_has_all_frames(tmp_path):
    parts = [write(tmp_path / f"{n}.ts", count_up(40), range(200 - 100 * n, 240 - 100 * n)) for n in range(2)]
    (tmp_path / "a.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert len(check_found_as_counted(tmp_path / "a.ts")) == 80


def test_b_frames_in_avi_are_read_in_the_order_of_showing(tmp_path):
    frames = check_found_as_counted(FILES / "b_frames.avi")
    grey = np.array([frame.mean() for frame in frames]) * 219 / 255 + 16
    np.testing.assert_allclose(grey, 5 * np.arange(30) + 16, atol=1)
    (tmp_path / "a.avi").write_bytes((FILES / "b_frames.avi").read_bytes())
    np.testing.assert_array_equal(open_folder(tmp_path, shape=(4, 64, 64, 3)).clip(2)["video"], frames[8:12])


def disc(num=2, height=40, width=60, aspect=Fraction(1)):
    """A white disc that is round where pixels have this aspect."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) * float(aspect)) ** 2 + (y - height / 2) ** 2 < (0.4 * min(height, width * aspect)) ** 2
    return np.tile(255 * inside.astype(np.uint8)[None, ..., None], (num, 1, 1, 3))


@pytest.mark.parametrize("aspect", [Fraction(64, 45), Fraction(8, 9), Fraction(128, 117), Fraction(2), Fraction(1, 2)])
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.ts", "libx264")])
def test_pixels_are_square(tmp_path, aspect, name, codec):
    write(tmp_path / name, disc(12, aspect=aspect), codec=codec, aspect=aspect)
    frame, info = next(read_frames(tmp_path / name)), probe(tmp_path / name)
    assert frame.shape == (40, int(60 * aspect), 3) == (info.height, info.width, 3)
    rows, columns = np.nonzero(frame.mean(-1) > 128)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 2


def test_an_aspect_that_is_damage_is_not_applied(tmp_path):
    write(tmp_path / "a.mp4", disc(), aspect=Fraction(30000))
    assert next(read_frames(tmp_path / "a.mp4")).shape == (40, 60, 3)


TURNS = {  # the matrix [[a, b], [c, d]], and what it makes of a picture
    "quarter": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
    "half": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
    "three quarters": ((0, -1, 1, 0), lambda frame: np.rot90(frame)),
    "mirrored": ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda frame: frame[::-1]),
    "transposed": ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
    "other diagonal": ((0, -1, -1, 0), lambda frame: frame.swapaxes(0, 1)[::-1, ::-1]),
    "nothing": ((0, 0, 0, 0), lambda frame: frame),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(3, 2)])
def test_frames_are_turned_and_mirrored(tmp_path, turn, aspect):
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :16, :48] = 255
    data = bytearray(write(tmp_path / "flat.mp4", frames, aspect=aspect).read_bytes())
    (a, b, c, d), turned = TURNS[turn]
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    (tmp_path / "turned.mp4").write_bytes(data)
    shown, expected = next(read_frames(tmp_path / "turned.mp4")), turned(frames[0])
    width = expected.shape[1] * (aspect if expected.shape[1] == 64 else 1 / aspect)
    assert shown.shape == (expected.shape[0], int(width), 3)
    columns = (np.arange(shown.shape[1]) * expected.shape[1] / shown.shape[1]).astype(int)
    assert np.abs(shown.astype(int) - expected[:, columns]).mean() < 12


def test_a_cover_picture_is_no_film(tmp_path):
    data = (FILES / "cover.mp4").read_bytes()
    at = data.index(b"moov") + 4
    boxes, end = [], at - 8 + struct.unpack(">I", data[at - 8 : at - 4])[0]
    while at < end:
        size = struct.unpack(">I", data[at : at + 4])[0]
        boxes.append(data[at : at + size])
        at += size
    assert [box[4:8] for box in boxes] == [b"mvhd", b"trak", b"udta"]
    header, film, cover = boxes
    before = data[: end - sum(map(len, boxes))] + header + cover + film + data[end:]
    for name, content in {"after.mp4": data, "before.mp4": before}.items():
        (tmp_path / name).write_bytes(content)
        assert len(check_found_as_counted(tmp_path / name)) == 20
        assert probe(tmp_path / name).width == 64
    with av.open(os.fspath(tmp_path / "before.mp4")) as container:
        assert container.streams[0].codec_context.name == "png"
    with pytest.raises(UserError, match=r"song\.m4a has no video stream"):
        probe(FILES / "song.m4a")


CLEAR = {
    "qtrle.mov": ("qtrle", "argb"),
    "png.mov": ("png", "rgba"),
    "png.avi": ("png", "rgba"),
    "ffv1.mkv": ("ffv1", "bgra"),
    "raw.mov": ("rawvideo", "argb"),
    "vp9.webm": ("libvpx-vp9", "yuva420p"),
    "vp8.webm": ("libvpx", "yuva420p"),
}


@pytest.mark.parametrize("name", CLEAR)
def test_what_is_transparent_is_white(tmp_path, name):
    codec, pix_fmt = CLEAR[name]
    frames = np.zeros((6, 32, 64, 4), np.uint8)
    frames[:, :, :16] = (255, 0, 0, 255)
    frames[:, :, 16:32] = (0, 0, 0, 128)
    options = {"auto-alt-ref": "0", "g": "2", "crf": "4", "b": "1000000"} if codec.startswith("libvpx") else {}
    write(tmp_path / name, frames, codec=codec, pix_fmt=pix_fmt, options=options)
    frames = check_found_as_counted(tmp_path / name)
    assert len(frames) == 6
    for x, colour in {4: (255, 0, 0), 24: (127, 127, 127), 48: (255, 255, 255)}.items():
        np.testing.assert_allclose(frames[3][16, x], colour, atol=8)


def test_an_empty_fourth_channel_of_raw_video_is_no_transparency(tmp_path):
    frames = np.concatenate([count_up(3), np.zeros((3, 32, 48, 1), np.uint8)], axis=-1)
    write(tmp_path / "a.avi", frames, codec="rawvideo", pix_fmt="bgra")
    assert numbers_of(read_frames(tmp_path / "a.avi")) == [0, 1, 2]


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mov"])
def test_a_rate_that_is_a_guess_is_taken_from_the_times_of_the_frames(tmp_path, name):
    """A browser's recording counts milliseconds, and FFmpeg takes that for 1000 frames per second."""
    codec = "libvpx" if name == "a.webm" else "libx264"
    times = [round(1000 * n / 30) for n in range(30)]
    write(tmp_path / name, count_up(30), times, codec=codec, rate=1000)
    assert probe(tmp_path / name).fps == pytest.approx(30, rel=0.04)


def test_a_rate_that_is_a_guess_is_replaced_where_the_times_are_wrong_too(tmp_path):
    """Two frames with one time, as browsers write them, and a break, as in joined recordings."""
    times = [33 * n + n % 3 + 60_000 * (n > 40) for n in range(60)]
    times[8] = times[7]
    write(tmp_path / "a.webm", count_up(60), range(0, 1980, 33), codec="libvpx", rate=1000)
    with av.open(tmp_path / "a.webm") as given, av.open(tmp_path / "b.webm", "w") as wrong:
        stream = wrong.add_stream_from_template(given.streams.video[0])
        for packet, time in zip(given.demux(video=0), times, strict=False):
            packet.pts = packet.dts = time
            packet.stream = stream
            wrong.mux(packet)
    info = probe(tmp_path / "b.webm")
    assert (info.num_frames, info.pts) == (60, None) and info.fps == pytest.approx(30, rel=0.04)


def test_a_rate_that_fits_the_times_is_kept_to_the_digit(tmp_path):
    write(tmp_path / "a.mkv", count_up(30), rate=Fraction(30000, 1001))
    assert probe(tmp_path / "a.mkv").fps == 30000 / 1001


@pytest.mark.parametrize("start", [111, 3])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_videos_may_start_at_any_time(tmp_path, name, start):
    write(tmp_path / name, count_up(), range(start, start + 40), options={"bf": "2", "g": "8"})
    assert numbers_of(check_found_as_counted(tmp_path / name)) == list(range(40))
    np.testing.assert_allclose(probe(tmp_path / name).times(), np.arange(40) / 30, atol=2e-3)


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le", "gray10le"])
def test_ten_bits_are_brought_to_eight(tmp_path, pix_fmt):
    grey = np.tile(np.linspace(20, 235, 64).astype(np.uint8)[None, None, :, None], (2, 32, 1, 3))
    write(tmp_path / "a.mkv", grey, codec="ffv1", pix_fmt=pix_fmt)
    assert np.abs(next(read_frames(tmp_path / "a.mkv")).astype(int) - grey[0]).max() <= 2


def test_clips_of_turned_and_stretched_videos_have_the_shape_that_is_shown(tmp_path):
    write(tmp_path / "a.mp4", disc(8, aspect=Fraction(2)), aspect=Fraction(2))
    path, decoders = str(tmp_path / "a.mp4"), Decoders()
    info = decoders.probe(path)
    clip = decoders.clip(path, range(2), info, (40, 120, 3))
    rows, columns = np.nonzero(clip[0].mean(-1) > 128)
    assert (info.height, info.width) == (40, 120) and abs(np.ptp(rows) - np.ptp(columns)) <= 2
