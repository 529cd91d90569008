"""A corpus of damaged videos, indexed and decoded: what became of each file."""

import collections
import contextlib
import functools
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.damaged_videos import BAD, GOOD, SHORT, make_corpus

from vdt_jax.data import decoders, make_source, video_folder
from vdt_jax.data.clips import UnreadableClip
from vdt_jax.data.discover import find_videos
from vdt_jax.data.index import index_videos
from vdt_jax.errors import printable

FRAGILE = (sys.executable, str(Path(__file__).parent / "fragile_worker.py"))
SHAPE = (16, 16, 16, 3)
LIMIT = 2.0
# A look ends after 11 times the limit on the clock in any case.
CLOCK_BOUND = 12 * LIMIT + 5
PROCESSOR_BOUND = 1.5 * LIMIT


class Outcome(NamedTuple):
    """What became of a corpus.

    Attributes:
      expected: of each kind, by name.
      source: of its clips.
      listed: the reasons of what was listed as bad, by name.
      served: the names of which a clip was served.
      looks: the most seconds on the clock and of a processor that a look at each file took, by path.
      short: frames of what is neither listed nor among the source's videos, by name.
    """

    expected: dict[str, str]
    source: video_folder.VideoFolder
    listed: dict[str, str]
    served: set[str]
    looks: dict[str, tuple[float, float]]
    short: dict[str, int]


def timer_seconds(worker):
    """CPU time of a decoding process by the clock of its own timer, which counts ticks; 0 after its end.

    Under load the ticks can exceed the exact time by a tenth or more.
    """
    try:
        return time.clock_gettime(~worker._process.pid << 3)  # the CPUCLOCK_PROF of Linux, as ITIMER_PROF has it
    except OSError:
        return 0.0


def torture(folder, count, seed):
    """Indexes a corpus and decodes each of its clips."""
    looks = collections.defaultdict(lambda: (0.0, 0.0))
    ask, exit_code = decoders._Worker.ask, decoders._Worker._exit_code
    at_exit = {}

    def timed(worker, request, content):
        start, before = time.monotonic(), timer_seconds(worker)
        try:
            return ask(worker, request, content)
        finally:
            clock, processor = looks[request["path"]]
            used = at_exit.get(worker, timer_seconds(worker)) - before
            looks[request["path"]] = max(clock, time.monotonic() - start), max(processor, used)

    def timed_exit(worker):
        os.waitid(os.P_PID, worker._process.pid, os.WEXITED | os.WNOWAIT)  # before its clock is gone
        at_exit[worker] = timer_seconds(worker)
        return exit_code(worker)

    def decode(number):
        with contextlib.suppress(UnreadableClip):
            assert source.clip(number)["video"].shape == SHAPE
            served.add(source._videos[source._clips[number][0]][0].name)

    served = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders._Worker, "ask", timed)
        patch.setattr(decoders._Worker, "_exit_code", timed_exit)
        patch.setattr(video_folder, "Decoders", functools.partial(decoders.Decoders, command=FRAGILE))
        expected = make_corpus(folder / "corpus", count, seed)
        options = {"path": str(folder / "corpus"), "max_bad": 1.0, "time_limit": LIMIT, "memory_limit": 1500}
        options |= {"name": "video_folder", "held_out": 0.0, "hop": 4}
        source = make_source(options, SHAPE, "train", folder / "bad.jsonl")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode, range(len(source))))
    entries = map(json.loads, (folder / "bad.jsonl").read_text().splitlines())
    listed = {entry["path"]: entry["reason"] for entry in entries}
    root, found = find_videos(folder / "corpus")
    known = {video.name for video, _ in source._videos}
    rest = [video for video in found if video.name not in known and printable(video.name) not in listed]
    infos = zip(rest, index_videos(root, rest, decoders.Decoders()), strict=True)
    short = {video.name: 0 if isinstance(info, str) else info.num_frames for video, info in infos}
    return Outcome(expected, source, listed, served, dict(looks), short)


def violations(outcome):
    """A line for each thing that did not end as it should, on a machine however busy."""
    expected, source, listed, served, looks, short = outcome
    for name, want in expected.items():
        inside = [other for other in served if other == name or other.startswith(f"{name}/")]
        bad = [other for other in listed if other == printable(name) or other.startswith(f"{printable(name)}/")]
        found = BAD if bad else GOOD if inside else SHORT
        if found != (want if want in (GOOD, BAD) else SHORT):
            yield f"{name} is {found}: {want} was expected"
    for entry, _ in source._videos:
        if entry.name not in served and printable(entry.name) not in listed:
            yield f"{entry.name} is neither served nor listed"
    for name, num_frames in short.items():
        if not 0 < num_frames < SHAPE[0]:
            yield f"{name} is left out with {num_frames} frames"
    for path, (clock, processor) in looks.items():
        if clock > CLOCK_BOUND or processor > PROCESSOR_BOUND:
            yield f"a look at {path} took {clock:.1f} s, {processor:.1f} s of a processor"
