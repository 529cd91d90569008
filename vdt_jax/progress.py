"""What long work says of itself: metrics.jsonl, TensorBoard, and the terminal."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm


@contextlib.contextmanager
def progress(what: str, total: int, unit: str = "B") -> Iterator[Callable[[int], object]]:
    """Shows how far a piece of long work is: a bar on a terminal, a line every tenth elsewhere.

    Yields:
      A function that takes how much more is done.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=unit, unit_scale=True) as bar:
            yield bar.update
        return
    done, start = [0], time.monotonic()

    def update(size: int) -> None:
        before, done[0] = done[0], done[0] + size
        if total and before * 10 // total != done[0] * 10 // total:
            print(f"{what}: {done[0] * 100 // total} %, {time.monotonic() - start:.1f} s", flush=True)

    yield update


@contextlib.contextmanager
def steps_progress(what: str) -> Iterator[Callable[[int, int], object]]:
    """`progress` for work whose total is known only once it runs.

    Yields:
      A function that takes the steps done and the steps in all.
    """
    with contextlib.ExitStack() as stack:
        done, update = 0, None

        def report(now: int, total: int) -> None:
            nonlocal done, update
            update = update or stack.enter_context(progress(what, total, "step"))
            update(now - done)
            done = now

        yield report


class LogLines(logging.Handler):
    """Shows log records as lines of stdout that do not tear a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        prefix = "WARNING: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + record.getMessage(), file=sys.stdout)
        sys.stdout.flush()


class RunLog:
    """Writes metrics to a working directory, and progress to the terminal: a bar there, plain lines elsewhere.

    A run that resumes at step s forgets what was logged after s, which it is about to do again. Of several processes
    all but one are `quiet`, and write and say nothing. `utilisation` makes of steps a second the share of the devices'
    peak, or None where that is not known.
    """

    def __init__(
        self,
        workdir: str | Path,
        first_step: int,
        total_steps: int,
        quiet: bool = False,
        utilisation: Callable[[float], float | None] = lambda _: None,
    ):
        self._quiet = quiet
        self._utilisation = utilisation
        if quiet:
            return
        self._path = Path(workdir) / "metrics.jsonl"
        if self._path.is_file():
            kept = [line for line in self._path.read_text().splitlines() if _step(line) <= first_step]
            self._path.write_text("".join(line + "\n" for line in kept))
        self._file = self._path.open("a")
        self._events = SummaryWriter(str(workdir), purge_step=first_step + 1, write_to_disk=True)
        self._bar = tqdm(total=total_steps, initial=first_step, unit="step") if sys.stderr.isatty() else None
        self._total, self._last, self._time = total_steps, first_step, None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.close()
        self._events.close()
        self._file.close()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Logs the metrics of a step, with steps a second and the time left; the terminal shows those without a slash.

        The rate is that since the last call; the first call, which compilation precedes, has none. `mfu` goes with it
        where the devices' peak is known.
        """
        if self._quiet:
            return
        now, left = time.monotonic(), ""
        if self._time is not None:
            rate = (step - self._last) / max(now - self._time, 1e-9)
            values = values | {"steps_per_second": round(rate, 4)}
            if (share := self._utilisation(rate)) is not None:
                values["mfu"] = round(share, 4)
            left = f"  {(self._total - step) / max(rate, 1e-9) / 60:.0f} min left"
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if "/" not in name)
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
            self._bar.update(step - self._last)
        else:
            print(f"step {step}/{self._total}  {shown}{left}", flush=True)
        self._last, self._time = step, now


def _step(line: str) -> float:
    """The step of a line of metrics; infinity for one that a killed run left half-written."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
