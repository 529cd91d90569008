"""What the terminal shows: progress of long work, tables, the package's log lines."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from vdt_jax.errors import printable


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
    """`progress` for work whose total is known only once it runs; yields a function of steps done and their total."""
    with contextlib.ExitStack() as stack:
        done, update = 0, None

        def report(now: int, total: int) -> None:
            nonlocal done, update
            update = update or stack.enter_context(progress(what, total, unit))
            update(now - done)
            done = now

        yield report


def table_text(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text, the first column left, the others right."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = []
    for row in [columns, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


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
