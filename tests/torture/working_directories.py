"""Damaged working directories, and a run that is disturbed: `make torture`.

    python tests/torture/working_directories.py            # all cases, or those whose names are given

A run ends with the bits of one that nothing happened to, or in one line; then, with the damage repaired, the same
command ends with these bits. Read-only and full folders need the right to mount; without it they are left out.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))
from torture import kills  # noqa: E402

STOPPED_AFTER = kills.STEPS // 2
PAUSE = 20  # seconds of SIGSTOP
MOUNTING = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0


class Case(NamedTuple):
    """What happens to a working directory."""

    name: str
    damage: Callable[[Path], object]
    line: str = ""  # what the one line says; without it the run ends as if nothing had happened
    running: bool = True  # whether the run is under way, or stopped and resumed
    repair: Callable[[Path], object] = lambda _: None


def newest(workdir: Path) -> Path:
    """The folder of the newest checkpoint."""
    return max((path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name))


def cut(name: str) -> Callable[[Path], object]:
    """Keeps half of a file; the whole is in NAME.whole."""

    def damage(workdir: Path) -> None:
        data = (workdir / name).read_bytes()
        (workdir / f"{name}.whole").write_bytes(data)
        os.truncate(workdir / name, len(data) // 2)

    return damage


def mended(name: str) -> Callable[[Path], object]:
    return lambda workdir: (workdir / f"{name}.whole").replace(workdir / name)


def written(name: str, content: bytes) -> Callable[[Path], object]:
    """Puts something in place of a file."""

    def damage(workdir: Path) -> None:
        if (workdir / name).exists():
            shutil.copy(workdir / name, workdir / f"{name}.whole")
        (workdir / name).write_bytes(content)

    return damage


def removed(name: str) -> Callable[[Path], object]:
    return lambda workdir: shutil.rmtree(workdir / name)


def aside(workdir: Path) -> None:
    """A file where the folder of checkpoints was."""
    (workdir / "checkpoints").rename(workdir / "aside")
    (workdir / "checkpoints").touch()


def back(workdir: Path) -> None:
    (workdir / "checkpoints").unlink()
    (workdir / "aside").rename(workdir / "checkpoints")


def mount(*arguments: Any) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def read_only(workdir: Path) -> None:
    mount("--bind", workdir / "checkpoints", workdir / "checkpoints")
    mount("-o", "remount,bind,ro", workdir / "checkpoints")


def unmounted(workdir: Path) -> None:
    subprocess.run(["umount", workdir / "checkpoints"], check=True)


def filled(workdir: Path, last: Callable[[], object] = lambda: None) -> None:
    """Fills the disk of checkpoints, anew until a save has failed: the run may be removing an old one."""
    fill(workdir)
    if os.fork():
        return
    with contextlib.suppress(OSError):
        for _ in range(600):  # a minute
            if "(1 of 5 in a row)" in (workdir.parent / "output.txt").read_text():
                break
            fill(workdir)
            time.sleep(0.1)
        last()
    os._exit(0)


def fill(workdir: Path) -> None:
    """Leaves a page of the disk."""
    with (workdir / "checkpoints" / "filler").open("ab") as file:
        file.write(bytes(max(shutil.disk_usage(workdir / "checkpoints").free - 4096, 0)))


def emptied(workdir: Path) -> None:
    (workdir / "checkpoints" / "filler").unlink()


def filled_for_a_time(workdir: Path) -> None:
    filled(workdir, lambda: emptied(workdir))


def nothing(_: Path) -> None:
    pass


LINE = b'{"step": 3, "loss": "\xff\xfe"}\n'
CASES = (
    Case("config.json cut", cut("config.json"), r"config.json cannot be read", False, mended("config.json")),
    Case(
        "config.json not UTF-8", written("config.json", b"\xff\xfe{}"), r"cannot be read", False, mended("config.json")
    ),
    Case(
        "config.json a list", written("config.json", b"[1]"), r"cannot be read \(a list", False, mended("config.json")
    ),
    Case("config.json empty", written("config.json", b""), r"cannot be read", False, mended("config.json")),
    Case("config.json missing", lambda workdir: (workdir / "config.json").unlink(), running=False),
    Case("metrics not UTF-8", written("metrics.jsonl", LINE), running=False),
    Case("metrics without steps", written("metrics.jsonl", b'3\n[]\n{}\n{"step": "x"}\nnull\n'), running=False),
    Case("metrics cut", cut("metrics.jsonl"), running=False),
    Case("checkpoints a file", aside, r"checkpoints cannot be written \(File exists\)", False, back),
    Case("newest checkpoint emptied", lambda workdir: removed(f"checkpoints/{newest(workdir).name}/training")(workdir)),
    Case("nothing", nothing),
    Case("config.json cut meanwhile", cut("config.json")),
    Case("metrics cut meanwhile", cut("metrics.jsonl")),
    Case("metrics removed meanwhile", lambda workdir: (workdir / "metrics.jsonl").unlink()),
    Case("newest checkpoint removed meanwhile", lambda workdir: shutil.rmtree(newest(workdir))),
    Case("checkpoints removed meanwhile", removed("checkpoints")),
    Case("events removed meanwhile", lambda workdir: [path.unlink() for path in workdir.glob("events*")]),
    Case("lock removed meanwhile", lambda workdir: (workdir / "run.lock").unlink()),
    Case("stopped for a time", lambda _: time.sleep(PAUSE)),
    Case("clock set back", nothing),
    Case("checkpoints a file meanwhile", aside, r"5 saves in a row failed", repair=back),
    Case("checkpoints read-only meanwhile", read_only, r"5 saves in a row failed", repair=unmounted),
    Case("checkpoints on a full disk meanwhile", filled, r"5 saves in a row failed", repair=emptied),
    Case("checkpoints on a disk full for a time", filled_for_a_time),
)


def run_until(workdir: Path, steps: int, main: Callable[[Any], None]) -> int:
    """Starts the run and stops it with SIGSTOP after its first checkpoint at or past `steps`; its process id."""
    from etils import epath

    child = start(workdir, main)
    while not any(step >= steps for step in kills.finished_steps(epath.Path(workdir / "checkpoints"))):
        code = kills.ended(child)
        assert code is None, (code, (workdir.parent / "output.txt").read_text()[-3000:])
        time.sleep(0.001)
    os.kill(child, signal.SIGSTOP)
    return child


def start(workdir: Path, main: Callable[[Any], None], *arguments: str) -> int:
    before, kills.train.main = kills.train.main, main
    try:
        return kills.start(workdir, LOGGED, *arguments)
    finally:
        kills.train.main = before


def with_the_clock_set_back(argv: Any) -> None:
    """The run, in which it is a day earlier after the first half second."""
    began, now, now_ns = time.monotonic(), time.time, time.time_ns
    time.time = lambda: now() - 86400 * (time.monotonic() > began + 0.5)
    time.time_ns = lambda: now_ns() - 86400 * 10**9 * (time.monotonic() > began + 0.5)
    TRAIN(argv)


LOGGED = "--config.log_every=1"
TRAIN = kills.train.main


def disturb(case: Case, workdir: Path) -> str:
    """Runs with what happens in a case; raises AssertionError where it ends in another way than expected."""
    main = with_the_clock_set_back if case.name == "clock set back" else TRAIN
    output = workdir.parent / "output.txt"
    output.unlink(missing_ok=True)
    if case.running:
        child = run_until(workdir, STOPPED_AFTER - 4, main)
        try:
            case.damage(workdir)
        finally:
            os.kill(child, signal.SIGCONT)
    else:
        assert kills.ended(start(workdir, main, f"--stop_after={STOPPED_AFTER}"), 600) == 0, output.read_text()[-3000:]
        case.damage(workdir)
        output.unlink()
        child = start(workdir, main)
    code, said = kills.ended(child, 600), output.read_text()
    last = said.strip().splitlines()[-1]
    assert "Traceback" not in said, said[-3000:]
    if not case.line:
        assert code == 0, (code, said[-3000:])
    else:
        assert code in (2, 3) and last.startswith("error: ") and re.search(case.line, last), (code, last)
        case.repair(workdir)
        kills.finish(workdir, LOGGED)
    return f"ended, {code}: {last[:160]}"


@contextlib.contextmanager
def room(case: Case, workdir: Path) -> Iterator[None]:
    """A small disk for the checkpoints where a case needs one."""
    if "disk" not in case.name:
        yield
        return
    (workdir / "checkpoints").mkdir(parents=True)
    mount("-t", "tmpfs", "-o", "size=8m", "none", workdir / "checkpoints")
    try:
        yield
    finally:
        unmounted(workdir)


def torture(names: list[str], folder: Path) -> int:
    """Each case, and the comparison with the run that nothing happened to; how many there were."""
    whole, count, wrong = folder / "whole", 0, []
    folder.mkdir(exist_ok=True)
    kills.finish(whole, LOGGED)
    for case in CASES:
        needs_mount = "disk" in case.name or "read-only" in case.name
        if (names and case.name not in names) or (needs_mount and not MOUNTING):
            continue
        began, workdir = time.monotonic(), folder / "run"
        try:
            with room(case, workdir):
                ended = disturb(case, workdir)
                kills.compare(whole, workdir)
                lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()[-3:]]
                assert [line["step"] for line in lines] == list(range(kills.STEPS - 2, kills.STEPS + 1)), lines
        except (AssertionError, OSError, ValueError) as error:
            wrong.append(f"{case.name}: {error}")
            ended = "WRONG"
        print(f"{case.name}: {ended} ({time.monotonic() - began:.0f} s)", flush=True)
        shutil.rmtree(workdir, ignore_errors=True)
        count += 1
    if wrong:
        raise SystemExit("\n\n".join(wrong))
    return count


if __name__ == "__main__":
    kills.run_on_cpu()
    with tempfile.TemporaryDirectory() as name:
        print(
            f"{torture(sys.argv[1:], Path(name))} working directories; every run ended with the bits of the whole one"
        )
