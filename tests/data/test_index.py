"""What the kept index holds of files that cannot be read, and what it looks at again."""

import functools
import os
import re

import pytest
from helpers.corpus import FRAGILE
from helpers.damaged_videos import pictures, video

from vdt_jax.data.clips import PassingFailure, UnreadableClip
from vdt_jax.data.decoders import Decoders
from vdt_jax.data.discover import find_videos
from vdt_jax.data.index import index_videos
from vdt_jax.video import VideoInfo

SLEEPY = functools.partial(Decoders, command=FRAGILE)


def index(folder, decoders):
    """What is known of each video, by name: the frames, or why it is bad."""
    root, found = find_videos(folder)
    known = index_videos(root, found, decoders)
    return {
        video.name: info.num_frames if isinstance(info, VideoInfo) else info
        for video, info in zip(found, known, strict=True)
    }


def test_what_limits_and_crashes_did_is_looked_at_again(tmp_path):
    names = ("hangs.mp4", "crashes.mp4", "takes_all_memory.mp4", "finds_a_mistake.mp4")
    for name in names:
        (tmp_path / name).write_bytes(video(5))
    reasons = index(tmp_path, SLEEPY(0.5, 1500))
    assert "takes more than" in reasons["hangs.mp4"] and "that decoded it died" in reasons["crashes.mp4"]
    assert reasons["takes_all_memory.mp4"] == "out of memory"
    assert re.search(r"mistake .* please report it: TypeError.* in .*\.py:\d+$", reasons["finds_a_mistake.mp4"])
    assert index(tmp_path, Decoders()) == dict.fromkeys(names, 5)


def test_a_folder_of_pictures_that_was_mended_in_place_is_seen(tmp_path):
    folder = pictures(tmp_path / "a", 4)
    picture, times = (folder / "0.png").read_bytes(), folder.stat()
    (folder / "0.png").write_bytes(b"\x89PNG\r\n")
    assert "cannot be decoded" in index(tmp_path, Decoders())["a"]
    (folder / "0.png").write_bytes(picture)
    assert folder.stat().st_mtime_ns == times.st_mtime_ns
    assert index(tmp_path, Decoders()) == {"a": 4}


def test_that_a_file_holds_no_video_is_kept(tmp_path, monkeypatch):
    for name, content in {"a.mp4": b"", "b.mp4": bytes(5000), "c.mp4": video(40)[:900], "d.mp4": video(3)}.items():
        (tmp_path / name).write_bytes(content)
    first = index(tmp_path, Decoders())
    assert [type(known) for known in first.values()] == [str, str, str, int]
    monkeypatch.setattr(Decoders, "probe", lambda *_: pytest.fail("looked at again"))
    assert index(tmp_path, Decoders()) == first


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file that cannot be read")  # noqa: PTH110
def test_a_disk_that_fails_is_not_the_file(tmp_path):
    """The first page of a process's memory is not there to be read: Input/output error."""
    with pytest.raises(PassingFailure, match="Input/output error"):
        Decoders().probe("/proc/self/mem")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UnreadableClip, match="Invalid data") as failure:
        Decoders().probe(str(tmp_path / "a.mp4"))
    assert not isinstance(failure.value, PassingFailure)


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(video(3))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert index(tmp_path / "videos", Decoders()) == {"a.mp4": 3}
    assert re.search(r"the index of .* is not kept \(.*: set XDG_CACHE_HOME to a writable folder\)", caplog.text)
