"""Sound beside written frames: the packets of the input, unchanged, at the right time, and no more than the frames."""

import os

import av
import numpy as np
import pytest
from helpers.videos import count_up

from vdt_jax.video import probe, read_frames, write_video

RATE = 48000


def with_sound(path, codec, seconds=2.0, num_frames=60, offset=0):
    """`count_up` at 30 frames per second with a rising tone, both `offset` thirtieths of a second late."""
    with av.open(os.fspath(path), "w") as container:
        film = container.add_stream("mpeg4", rate=30)
        film.height, film.width, film.pix_fmt = 32, 48, "yuv420p"
        sound = container.add_stream(codec, rate=RATE, layout="mono")
        for number, image in enumerate(count_up(num_frames)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number + offset
            container.mux(film.encode(frame))
        time = np.arange(int(seconds * RATE)) / RATE
        wave = (np.sin(2 * np.pi * 200 * time * time) * 2**14).astype(np.int16)
        for first in range(0, len(wave), 960):
            frame = av.AudioFrame.from_ndarray(wave[None, first : first + 960], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, first + offset * RATE // 30
            container.mux(sound.encode(frame))
        container.mux([*film.encode(), *sound.encode()])
    return path


def packets(path):
    """The bytes of each packet of the sound by its time in milliseconds, from the first frame on."""
    with av.open(os.fspath(path)) as container:
        first = next(container.decode(video=0)).time
    with av.open(os.fspath(path)) as container:
        (sound,) = container.streams.audio
        return {round(1000 * (float(p.pts * p.time_base) - first)): bytes(p) for p in container.demux(sound) if p.size}


@pytest.mark.parametrize(
    ("name", "codec", "offset"),
    [("a.mp4", "aac", 0), ("a.mkv", "libopus", 0), ("a.mkv", "aac", 21), ("a.avi", "mp2", 0), ("a.mov", "aac", 0)],
)
def test_sound_is_copied_packet_by_packet(tmp_path, name, codec, offset):
    source = with_sound(tmp_path / name, codec, offset=offset)
    write_video(tmp_path / "out.mp4", count_up(40), fps=60, sound_of=source)
    given, kept = packets(source), packets(tmp_path / "out.mp4")
    assert probe(tmp_path / "out.mp4").num_frames == 40
    within = {time: data for time, data in given.items() if 0 <= time < 1000 * 40 / 60}
    assert len(within) > 3
    for time, data in within.items():
        assert any(abs(time - other) <= 1 and data == copy for other, copy in kept.items()), time
    assert max(kept) < 1000 * 40 / 60


def test_sound_starts_with_the_first_frame_that_is_written(tmp_path):
    source = with_sound(tmp_path / "a.mp4", "aac")
    write_video(tmp_path / "out.mp4", count_up(15), fps=30, sound_of=source, sound_start=1.0)
    given, kept = packets(source), packets(tmp_path / "out.mp4")
    for time, data in given.items():
        if 1000 <= time < 1500:
            assert any(abs(time - 1000 - other) <= 1 and data == copy for other, copy in kept.items()), time
    assert max(kept) < 500


def test_sound_that_ends_early_or_is_missing_changes_no_frame(tmp_path, caplog):
    short = with_sound(tmp_path / "short.mp4", "aac", seconds=0.3)
    write_video(tmp_path / "silent.mp4", count_up(30), fps=30)
    write_video(tmp_path / "silent.gif", count_up(30), fps=30)
    frames = {}
    for name in ("short.mp4", "silent.mp4", "silent.gif"):
        write_video(tmp_path / "out.mp4", count_up(30), fps=30, sound_of=tmp_path / name)
        frames[name] = np.stack(list(read_frames(tmp_path / "out.mp4")))
        assert frames[name].shape == (30, 32, 48, 3)
    assert 0.2 < max(packets(short)) / 1000 < 0.5
    np.testing.assert_array_equal(frames["silent.gif"], frames["silent.mp4"])
    np.testing.assert_array_equal(frames["short.mp4"], frames["silent.mp4"])
    assert not caplog.messages
    write_video(tmp_path / "out.gif", count_up(30), fps=30, sound_of=short)  # has no sound


def test_sound_that_mp4_cannot_hold_is_named(tmp_path, caplog):
    source = with_sound(tmp_path / "a.avi", "pcm_mulaw")
    write_video(tmp_path / "out.mp4", count_up(30), fps=30, sound_of=source)
    assert caplog.messages == [f"the sound of {source} is not kept: an mp4 cannot hold pcm_mulaw"]
    assert probe(tmp_path / "out.mp4").num_frames == 30
