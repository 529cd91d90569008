"""Outputs that cannot be written: one line, nothing half-written, nothing older lost."""

import contextlib
import resource

import numpy as np
import pytest

from vdt_jax.errors import UserError
from vdt_jax.inference.clip import Clip, write_gallery
from vdt_jax.inference.outputs import check_output, write_videos
from vdt_jax.video import write_video

NOISE = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
REFUSED = r"cannot be written \(.*\): free some space, or choose another path"


@contextlib.contextmanager
def full_disk(size=2000):
    """No file may grow beyond this size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", ["mp4", "gif", "png", "npz"])
def test_a_full_disk(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_video(path, NOISE[:2, :8, :8])
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"a\.{suffix} {REFUSED}"), full_disk():
        write_video(path, NOISE)
    assert contents(tmp_path) == before
    with pytest.raises(UserError, match=rf"a\.{suffix} {REFUSED}"), full_disk():
        write_videos([path], [NOISE[None, i : i + 1] for i in range(16)], [8])
    assert contents(tmp_path) == before


def test_a_full_disk_for_the_page(tmp_path):
    clip = Clip(NOISE[:2, :4, :4], np.ones((2, 4, 4, 1), np.uint8), 8, NOISE[:2, :4, :4])
    page = write_gallery(tmp_path / "a.npz", [clip], "first")
    before = page.read_text()
    with pytest.raises(UserError, match=REFUSED), full_disk():
        write_gallery(tmp_path / "a.npz", [clip], "second" * 1000)
    assert page.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "a.png", "index.html"]


def test_a_folder_that_cannot_be_written_to_is_named_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"would be below .*/file, but that is a file: write to another folder"):
        check_output(tmp_path / "file" / "new" / "a.mp4")
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(UserError, match=r"output .*a\.mp4 is a folder: name a file in it"):
        check_output(tmp_path / "a.mp4")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=rf"would be below {tmp_path}, but you may not write there"):
        check_output(tmp_path / "new" / "b.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "file"]
