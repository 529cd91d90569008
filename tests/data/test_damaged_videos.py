"""Damaged files: nothing crashes, nothing hangs, each is listed with its reason, and the rest is served."""

import contextlib
import functools
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.corpus import CLOCK_BOUND, FRAGILE, LIMIT, PROCESSOR_BOUND, SHAPE, torture, violations
from helpers.damaged_videos import video

from vdt_jax.data import decoders, make_source, take, video_folder
from vdt_jax.data.clips import SlowClip, UnreadableClip
from vdt_jax.data.pipeline import batches
from vdt_jax.errors import UserError


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return torture(tmp_path_factory.mktemp("damage"), 100, 0)


def test_every_file_is_served_listed_or_short_and_no_look_is_long(outcome):
    assert not list(violations(outcome))
    assert len(outcome.expected) >= 60


def test_what_does_not_end_is_ended_in_time(outcome):
    """What sleeps, by the clock; what computes, by its own CPU time."""
    looks = {os.path.basename(path): look for path, look in outcome.looks.items()}  # noqa: PTH119
    assert 0.9 * LIMIT < looks["hangs.mp4"][0] < LIMIT + 5
    assert 0.9 * LIMIT < looks["spins.mp4"][1] < 1.5 * LIMIT


def test_the_checks_see_what_went_wrong(outcome):
    name = sorted(outcome.served)[0]
    for changed, line in [
        (outcome._replace(served=set()), "is neither served nor listed"),
        (outcome._replace(listed={}), "hangs.mp4 is short: bad was expected"),
        (outcome._replace(short={name: 20}), f"{name} is left out with 20 frames"),
        (outcome._replace(looks={name: (CLOCK_BOUND + 1, 0.0)}), f"a look at {name} took"),
        (outcome._replace(looks={name: (0.0, PROCESSOR_BOUND + 1)}), f"a look at {name} took"),
    ]:
        assert any(line in violation for violation in violations(changed)), line


def test_reasons_are_lines_that_say_why(outcome):
    reasons = outcome.listed
    assert all(reason and "\n" not in reason and len(reason) < 300 for reason in reasons.values())
    for name, why in {
        "hangs.mp4": f"takes more than {LIMIT:g} s",
        "spins.mp4": f"takes more than {LIMIT:g} s",
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
    assert "file not found" in (tmp_path / "bad.jsonl").read_text()
    (tmp_path / "videos" / "c.mp4").unlink()
    with pytest.raises(UserError, match="2 of 4 videos cannot be read"):
        next(batches(source, batch_size=4, seed=0))


def test_of_a_file_that_was_too_slow_nothing_more_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(video_folder, "Decoders", functools.partial(decoders.Decoders, command=FRAGILE))
    (tmp_path / "slow_clip.mp4").write_bytes(video(40))
    (tmp_path / "good.mp4").write_bytes(video(16))
    options = {"name": "video_folder", "path": str(tmp_path), "held_out": 0.0, "max_bad": 0.5, "time_limit": 0.5}
    source = make_source(options, SHAPE, "train")
    assert len(source) == 1 + 7
    asked = []
    ask = decoders.Decoders._ask
    monkeypatch.setattr(decoders.Decoders, "_ask", lambda *arguments: asked.append(arguments) or ask(*arguments))
    with pytest.raises(SlowClip, match=r"takes more than 0\.5 s"):
        source.clip(1)
    for number in range(1, 8):
        with pytest.raises(UnreadableClip, match=r"another clip of slow_clip\.mp4 took longer than data\.time_limit"):
            source.clip(number)
    assert len(asked) == 1 and take(source, range(8))["video"].shape == (8, *SHAPE)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes cannot be kept on one core here")
def test_a_busy_machine_does_not_make_a_good_file_bad(tmp_path):
    """Half a second of computing in a thread is within a limit of 1 s on a core that three processes share."""
    (tmp_path / "computes_in_a_thread.mp4").write_bytes(video(16))
    path, decoder = str(tmp_path / "computes_in_a_thread.mp4"), decoders.Decoders(1.0, command=FRAGILE)
    info, core = decoder.probe(path), min(os.sched_getaffinity(0))
    busy = f"import os\nos.sched_setaffinity(0, [{core}])\nprint(flush=True)\nwhile True: pass"
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            other = subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE)
            stack.callback(other.communicate)
            stack.callback(other.kill)
            other.stdout.readline()
        start = time.monotonic()
        assert decoder.clip(path, range(4), info, (8, 8, 3)).shape == (4, 8, 8, 3)
        assert time.monotonic() - start > 1.0
