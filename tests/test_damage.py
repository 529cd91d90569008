"""Damaged files: nothing crashes, nothing hangs, each is listed with its reason, and the rest is served."""

import collections
import contextlib
import functools
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from damaged_videos import BAD, GOOD, SHORT, make_corpus, video

from vdt_jax.data import decoders, make_source, video_folder
from vdt_jax.data.clips import UnreadableClip
from vdt_jax.data.pipeline import batches
from vdt_jax.errors import UserError

FRAGILE = (sys.executable, str(Path(__file__).parent / "fragile_worker.py"))
SHAPE = (16, 16, 16, 3)
LIMIT = 3.0


def torture(folder, count, seed):
    """Indexes a corpus and decodes each of its clips.

    Returns:
      What was expected of each kind, the source, what was listed as bad by name, the names of which a clip was served,
      and the seconds that the slowest look at each file took, by path.
    """
    seconds = collections.Counter()

    class Timed(decoders.Decoders):
        def _ask(self, request, content):
            start = time.monotonic()
            try:
                return super()._ask(request, content)
            finally:
                seconds[request["path"]] = max(seconds[request["path"]], time.monotonic() - start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_folder, "Decoders", functools.partial(Timed, command=FRAGILE))
        expected = make_corpus(folder / "corpus", count, seed)
        options = {"path": str(folder / "corpus"), "max_bad": 1.0, "time_limit": LIMIT, "memory_limit": 1500}
        options |= {"name": "video_folder", "held_out": 0.0, "hop": 4}
        source = make_source(options, SHAPE, "train", folder / "bad.jsonl")

    def decode(number):
        with contextlib.suppress(UnreadableClip):
            assert source.clip(number)["video"].shape == SHAPE
            served.add(source._videos[source._clips[number][0]][0].name)

    served = set()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(decode, range(len(source))))
    listed = map(json.loads, (folder / "bad.jsonl").read_text().splitlines())
    return expected, source, {entry["path"]: entry["reason"] for entry in listed}, served, seconds


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return torture(tmp_path_factory.mktemp("damage"), 100, 0)


def test_every_kind_ends_as_it_should(outcome):
    expected, source, listed, served, _ = outcome
    known = {video.name for video, _ in source._videos}
    found = {}
    for name in expected:
        shown = os.fsencode(name).decode(errors="replace")
        inside = [other for other in served if other == name or other.startswith(f"{name}/")]
        bad = [other for other in listed if other == shown or other.startswith(f"{shown}/")]
        found[name] = BAD if bad else GOOD if inside else "known, not served" if name in known else SHORT
    wrong = {
        name: (found[name], want) for name, want in expected.items() if found[name] != want and want in (GOOD, BAD)
    }
    assert not wrong
    assert all(found[name] == SHORT for name, want in expected.items() if want not in (GOOD, BAD))
    assert len(expected) >= 60


def test_reasons_are_lines_that_say_why(outcome):
    reasons = outcome[2]
    assert all(reason and "\n" not in reason and len(reason) < 300 for reason in reasons.values())
    for name, why in {
        "hangs.mp4": "takes more than 3 s",
        "spins.mp4": "takes more than 3 s",
        "crashes.mp4": "signal 6",
        "takes_all_memory.mp4": "out of memory",
        "sound_only.mp4": "no video stream",
        "playlist.mp4": "is a playlist",
        "pipe.mp4": "neither a file nor a folder",
        "loop.mp4": "Too many levels of symbolic links",
        "points_nowhere.mp4": "No such file",
    }.items():
        assert why in reasons[name], reasons[name]


def test_a_file_that_goes_away_during_the_run_is_replaced(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in "abcd":
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(video(16))
    options = {"name": "video_folder", "path": str(tmp_path / "videos"), "held_out": 0.0, "max_bad": 0.3}
    source = make_source(options, SHAPE, "train", tmp_path / "bad.jsonl")
    assert len(source) == 4
    (tmp_path / "videos" / "b.mp4").unlink()
    first = [next(batches(source, batch_size=4, seed=0))["video"] for _ in range(2)]
    np.testing.assert_array_equal(*first)
    assert "no file" in (tmp_path / "bad.jsonl").read_text()
    (tmp_path / "videos" / "c.mp4").unlink()
    with pytest.raises(UserError, match="2 of 4 videos cannot be read"):
        next(batches(source, batch_size=4, seed=0))
