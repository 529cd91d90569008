"""Progress of long work on the terminal, the package's log lines, and the metrics of a run."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar
from tqdm import tqdm

from vdt_jax.errors import printable
from vdt_jax.files import atomic_write, writing


@contextlib.contextmanager
def progress(what: str, total: int, unit: str = "B") -> Iterator[Callable[[int], object]]:
    """Shows progress, a bar on a terminal, a line every tenth elsewhere; yields a function of how much more is done."""
    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=unit, unit_scale=True) as bar:
            yield bar.update
        return
    done, start = [0], time.monotonic()

    def update(size: int) -> None:
        before, done[0] = done[0], done[0] + size
        if total and before * 10 // total != done[0] * 10 // total:
            taken = time.monotonic() - start
            left = taken * (total - done[0]) / done[0]
            print(f"{what}: {done[0] * 100 // total} %, {taken:.1f} s, about {left:.0f} s left", flush=True)

    yield update


@contextlib.contextmanager
def steps_progress(what: str, unit: str = "step") -> Iterator[Callable[[int, int], object]]:
    """`progress` for work whose total is known only once it runs; yields a function of steps done and steps in all."""
    with contextlib.ExitStack() as stack:
        done, update = 0, None

        def report(now: int, total: int) -> None:
            nonlocal done, update
            update = update or stack.enter_context(progress(what, total, unit))
            update(now - done)
            done = now

        yield report


def show_log() -> None:
    """Prints the package's log lines, from INFO up, to stdout; a progress bar stays whole."""
    logger = logging.getLogger("vdt_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_Lines())


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + printable(record.getMessage()), file=sys.stdout)
        sys.stdout.flush()


class RunLog:
    """Writes the metrics of a run to metrics.jsonl and TensorBoard, and shows its progress on the terminal.

    Args:
      first_step: step that the run resumes at; what was logged after it is deleted.
      utilisation: the share of the devices' peak at a number of steps a second, None where the peak is not known.
    """

    def __init__(
        self,
        workdir: str | Path,
        first_step: int,
        total_steps: int,
        utilisation: Callable[[float], float | None] = lambda _: None,
    ):
        self._path = Path(workdir) / "metrics.jsonl"
        if self._path.is_file():
            kept = [line for line in self._path.read_text(errors="replace").splitlines() if _step(line) <= first_step]
            atomic_write(self._path, "".join(line + "\n" for line in kept))
        with writing(self._path):
            self._file = self._path.open("a")
            self._events = EventsWriter(str(Path(workdir) / "events"))
            self._add_event(first_step + 1, session_log=SessionLog(status=SessionLog.START))  # later steps are dropped
        self._bar = tqdm(total=total_steps, initial=first_step, unit="step") if sys.stderr.isatty() else None
        self._total, self._last, self._time, self._utilisation = total_steps, first_step, None, utilisation

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        with writing(self._path):
            self._events.close()
            self._file.close()

    def _add_event(self, step: int, **content: Any) -> None:
        # SummaryWriter has a thread, which a full disk ends: the next event then waits for ever.
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))
        self._events.flush()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Logs the metrics of a step, with steps a second and `mfu`; the terminal shows those without a slash.

        The rate is measured since the last call; the first call, which compilation precedes, has none.
        """
        now, left = time.monotonic(), ""
        if self._time is not None:
            rate = (step - self._last) / max(now - self._time, 1e-9)
            values = values | {"steps_per_second": round(rate, 4)}
            if (share := self._utilisation(rate)) is not None:
                values["mfu"] = round(share, 4)
            left = f"  {(self._total - step) / max(rate, 1e-9) / 60:.0f} min left"
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            scalars = [scalar(name, value).value[0] for name, value in values.items()]
            self._add_event(step, summary=Summary(value=scalars))
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if "/" not in name)
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
            self._bar.update(step - self._last)
        else:
            print(f"step {step}/{self._total}  {shown}{left}", flush=True)
        self._last, self._time = step, now


def _step(line: str) -> float:
    """The step of a line of metrics; infinity for a truncated or damaged line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return float("inf")
