"""The list of unreadable files, with a limit of their share."""

import json
import os
import threading
from pathlib import Path

from vdt_jax.errors import UserError


class BadFiles:
    """Unreadable files, each once, with the reason; thread-safe.

    Args:
      total: number of all files.
      max_share: share of them that may be unreadable.
      report: a JSON-lines file of {"path", "reason"} to write, None for none; an old one is deleted.
    """

    def __init__(self, total: int, max_share: float, report: str | os.PathLike | None = None):
        self._total, self._max_share = total, max_share
        self._report = None if report is None else Path(report)
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()
        if self._report is not None:
            self._report.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, path: str, reason: str) -> None:
        """Adds a file; call `check` afterwards."""
        with self._lock:
            if path in self._known:
                return
            self._known[path] = reason
            if self._report is not None:
                self._report.parent.mkdir(parents=True, exist_ok=True)
                with self._report.open("a") as file:
                    file.write(json.dumps({"path": _shown(path), "reason": reason}) + "\n")

    def check(self) -> None:
        """Raises UserError if there are too many."""
        if len(self) > self._max_share * self._total:
            listed = "" if self._report is None else f"; {self._report} lists them"
            path, reason = list(self._known.items())[-1]
            raise UserError(
                f"{len(self)} of {self._total} videos cannot be read, more than data.max_bad={self._max_share} of "
                f"them{listed}; the last: {_shown(path)}: {reason}"
            )


def _shown(path: str) -> str:
    return os.fsencode(path).decode(errors="replace")
