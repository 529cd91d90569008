"""Clips, and the protocol of their sources. Unreadable clips are replaced; too many unreadable files are an error."""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vdt_jax.errors import UserError, printable
from vdt_jax.video import to_float

MAX_REPLACEMENTS = 1000  # clips that are tried in place of one that cannot be read
CENTRED = "centre, then bicubic with antialiasing"
Clip = dict[str, Any]  # "video": uint8 (F, H, W, C), or moments of latents, float16 (F, h, w, 2 C); "label": int


class UnreadableClip(Exception):
    """A clip that cannot be read; the message says why."""


class PassingFailure(UnreadableClip):
    """A clip that cannot be read now, because of a limit, a permission or a disk; a later run tries it again."""


class SlowClip(PassingFailure):
    """A clip that took longer than the time limit."""


class Source(Protocol):
    """Numbered clips. The constructor takes `(shape, split, **options)`: docs/data.md.

    Attributes:
      num_classes: labels are 0 to num_classes - 1; 1 for clips without classes, whose label is 0.
      generated: whether clips are computed, and not read from files.
      crop: how clips were cropped and resized, for the protocol of an evaluation.
      identity: optional; a text that identifies its clips, wherever they are stored, see `identity_of`.
    """

    num_classes: int
    generated: bool
    crop: str

    def __len__(self) -> int: ...

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """The clip of a number, the same for the same number and the same draws.

        Args:
          number: from 0 to len - 1.
          rng: draws what is random in a clip (crop, flip); None for evaluation: centre crop, no flip.

        Raises:
          UnreadableClip: another clip takes its place.
        """
        ...


class Computed:
    """The attributes of sources that compute 2^20 clips without classes."""

    num_classes = 1
    generated = True
    crop = "none: made at this size"

    def __len__(self) -> int:
        return 2**20


def identity_of(entries: Sequence[Any]) -> str:
    """A text that identifies data: how many entries it has, and their hash. A file's name and size are one."""
    return f"{len(entries)} entries, SHA-256 {hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]}"


def readable_example(source: Source, candidates: Iterable[tuple[int, np.random.Generator | None]]) -> dict[str, Any]:
    """The first readable one of some clips: "video" (F, H, W, C) float32 in [-1, 1] or moments, "labels" () int32.

    Args:
      source: of the clips.
      candidates: arguments of `source.clip`: those of the wanted clip, then those of its replacements in order.

    Raises:
      UserError: none of them can be read.
    """
    count, reason = 0, None
    for number, rng in candidates:
        try:
            clip = source.clip(number, rng)
        except UnreadableClip as error:
            count, reason = count + 1, error
        else:
            video = clip["video"]
            return {"video": to_float(video) if video.dtype == np.uint8 else video, "labels": np.int32(clip["label"])}
    raise UserError(
        f"{count} clips in a row cannot be read; the last: {reason}: repair the data, or remove what is corrupt"
    )


def take(source: Source, numbers: Iterable[int]) -> dict[str, np.ndarray]:
    """The clips of these numbers as a batch; a clip that cannot be read is replaced by the next one.

    Args:
      source: of the clips.
      numbers: from 0; past the end of the source they start again.

    Returns:
      "video": (B, F, H, W, C) float32, in [-1, 1] unless the source has latents; "labels": (B,) int32.

    Raises:
      UserError: none can be read.
    """
    tries, examples = min(len(source), MAX_REPLACEMENTS), []
    for number in numbers:
        candidates = ((n % len(source), None) for n in range(number, number + tries))
        examples.append(readable_example(source, candidates))
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


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

    def add(self, path: str, reason: str) -> None:
        """Adds a file; call `check` afterwards."""
        with self._lock:
            if path in self._known:
                return
            self._known[path] = reason
            if self._report is not None:
                self._report.parent.mkdir(parents=True, exist_ok=True)
                with self._report.open("a") as file:
                    file.write(json.dumps({"path": printable(path), "reason": reason}) + "\n")

    def check(self) -> None:
        """Raises UserError if there are too many."""
        if len(self._known) > self._max_share * self._total:
            listed = "" if self._report is None else f"; {self._report} lists them"
            path, reason = list(self._known.items())[-1]
            raise UserError(
                f"{len(self._known)} of {self._total} videos cannot be read, more than data.max_bad={self._max_share} "
                f"of them{listed}; the last: {printable(path)}: {reason}; repair or remove them, or allow more"
            )

    @contextlib.contextmanager
    def noted(self, path: str) -> Iterator[None]:
        """Adds a file that raises UnreadableClip inside, checks, and passes the exception on."""
        try:
            yield
        except UnreadableClip as error:
            self.add(path, str(error))
            self.check()
            raise
