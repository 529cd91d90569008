"""Two processes train together, and one of them is killed or stopped in each phase of a run: `make torture`.

    python tests/torture/hosts.py 40 deaths.jsonl       # how many, and the file of results; resumes from it

The other one must end with exit code 3 and one line that names the lost process, within LIMIT seconds, and must leave
no damaged checkpoint. Prints the seconds by phase.
"""

import contextlib
import functools
import itertools
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
from etils import epath

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))
from helpers import forked  # noqa: E402
from torture.kills import TINY, ended, run_on_cpu  # noqa: E402

import train  # noqa: E402
from benchmarks.json_lines import append_line, read_lines  # noqa: E402
from vdt_jax.checkpoints.manager import Checkpoints  # noqa: E402
from vdt_jax.checkpoints.manifest import damage, finished_steps  # noqa: E402
from vdt_jax.distributed import processes  # noqa: E402
from vdt_jax.distributed.gather import COORDINATOR  # noqa: E402
from vdt_jax.distributed.processes import Interruption  # noqa: E402
from vdt_jax.distributed.watch import Watch  # noqa: E402
from vdt_jax.errors import STOPPED  # noqa: E402
from vdt_jax.training.validation import Validation  # noqa: E402

LIMIT = 60.0
CONFIG = TINY | {"total_steps": 100000, "checkpoint_every": 1000}
CONFIG |= {
    f"{part}.{key}": value for part in ("validation", "preview") for key, value in (("num_clips", 1), ("num_steps", 2))
}
EVERY = {"saving": "checkpoint_every", "validating": "validation.every", "previewing": "preview.every"}
# phase: the call after which the process is lost (the owner of a function, its name, the number of the call), and the
# least and most seconds from there.
PHASES: dict[str, tuple[Any, str, int, tuple[float, float]]] = {
    "waiting": (processes, "gather", 1, (3.0, 3.0)),  # for a third process, which never comes
    "joining": (jax.distributed, "initialize", 1, (0.0, 0.3)),
    "opening": (train, "Run", 1, (0.0, 0.3)),
    "compiling": (Watch, "reading", 1, (0.2, 2.0)),
    "training": (Interruption, "requested", 6, (0.0, 0.1)),
    "saving": (Checkpoints, "save", 2, (0.0, 0.2)),
    "validating": (Validation, "__call__", 1, (0.0, 1.0)),
    "previewing": (Validation, "__call__", 1, (0.0, 1.0)),
}


def cases() -> list[tuple[str, int, str]]:
    """(phase, process, signal) of 40 deaths: kills of each process in each phase, and stops for two in five of them."""
    kills = [(phase, lost, "SIGKILL") for phase in PHASES for lost in (0, 1)]
    stops = [(phase, number % 2, "SIGSTOP") for number, phase in enumerate(list(PHASES)[1:])]  # others may come late
    return 2 * kills + stops + [("training", 0, "SIGSTOP")]


def start(phase: str, number: int, port: int, folder: Path, count: int, doom: tuple | None) -> int:
    """Starts train.py as one of several processes, in a child; its process id."""
    command = ["train.py", f"--config={ROOT}/configs/moving_digits.py", f"--workdir={folder}/run"]
    command += [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={number}"]
    config = CONFIG | ({EVERY[phase]: 2} if phase in EVERY else {})
    command += [f"--config.{key}={value}" for key, value in config.items()]
    output = os.open(folder / f"{number}.txt", os.O_WRONLY | os.O_CREAT)
    try:
        return forked.start(train.main if doom is None else functools.partial(doomed, doom), command, output, output)
    finally:
        os.close(output)


def doomed(doom: tuple, arguments: Any) -> None:
    """train.main in a process that sends itself a signal."""
    owner, name, call, seconds, sent = doom
    real, calls = getattr(owner, name), itertools.count(1)

    def lost(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            threading.Timer(seconds, os.kill, [os.getpid(), sent]).start()
        return real(*args, **kwargs)

    setattr(owner, name, lost)
    train.main(arguments)


def lose(phase: str, lost: int, name: str, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Loses a process; how the other one ended."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    *where, (least, most) = PHASES[phase]
    doom, count = (*where, rng.uniform(least, most), getattr(signal, name)), 3 if phase == "waiting" else 2
    jax.config.update("jax_enable_compilation_cache", phase != "compiling")
    jax.config.update("jax_disable_most_optimizations", phase != "compiling")  # process 1 finds nothing in the cache
    children = [start(phase, number, port, folder, count, doom if number == lost else None) for number in (0, 1)]
    survivor = 1 - lost
    try:
        _, status = os.waitpid(children[lost], os.WUNTRACED)
        began = time.monotonic()
        assert os.WIFSTOPPED(status) or os.WIFSIGNALED(status), (folder / f"{lost}.txt").read_text()[-3000:]
        code = ended(children[survivor], 2 * LIMIT)
        seconds = time.monotonic() - began
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    if os.WIFSTOPPED(status):
        ended(children[lost], LIMIT)
    lines = (folder / f"{survivor}.txt").read_text().strip().splitlines()
    checkpoints = epath.Path(folder) / "run" / "checkpoints"
    steps = finished_steps(checkpoints)
    return {
        "case": [phase, lost, name],
        "seconds": round(seconds, 2),
        "code": code,
        "line": lines[-1],
        "steps": steps,
        "damaged": [step for step in steps if damage(checkpoints / str(step), step)],
        "jax_report": any("Terminating process because" in line for line in lines),
    }


def problem(result: dict[str, Any]) -> str | None:
    """What is wrong with the end of the other process, if anything."""
    _, lost, _ = result["case"]
    line = f"error: {f'process {lost}' if lost else COORDINATOR} has "
    if result["code"] != STOPPED or not result["line"].startswith(line):
        return f"exit code {result['code']}, {result['line']}"
    if result["seconds"] > LIMIT or result["damaged"]:
        return f"after {result['seconds']} s, damaged checkpoints: {result['damaged']}"
    return None


def table(results: list[dict[str, Any]]) -> str:
    """Seconds to the end of the other process, by phase, lost process and signal."""
    rows = defaultdict(list)
    for result in results:
        rows[tuple(result["case"])].append(result)
    shown = ["phase       lost  signal   seconds, and + where jax's report stands above the line"]
    for (phase, lost, name), found in sorted(rows.items(), key=lambda row: (row[0][2], list(PHASES).index(row[0][0]))):
        seconds = ", ".join(f"{one['seconds']:.2f}{'+' if one['jax_report'] else ''}" for one in found)
        shown.append(f"{phase:12s}{lost:<6d}{name:9s}{seconds}")
    return "\n".join(shown)


def torture(count: int, log: Path) -> list[dict[str, Any]]:
    """Loses `count` processes; results are appended to a file, and those that it has are not repeated."""
    results = read_lines(log)
    for number, case in list(enumerate(itertools.islice(itertools.cycle(cases()), count)))[len(results) :]:
        with tempfile.TemporaryDirectory() as folder:
            results.append(lose(*case, random.Random(number), Path(folder)))
        append_line(log, results[-1])
        print(number + 1, *case, problem(results[-1]) or f"{results[-1]['seconds']} s", flush=True)
    return results


if __name__ == "__main__":
    run_on_cpu()
    results = torture(int(sys.argv[1]), Path(sys.argv[2]))
    wrong = [f"{result['case']}: {found}" for result in results if (found := problem(result))]
    print("\n".join([table(results), *wrong, f"{len(results)} processes lost, {len(wrong)} times not as it should be"]))
    sys.exit(bool(wrong))
