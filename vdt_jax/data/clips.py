"""Clips and sources: the protocol between a data source and what reads it, and replacing clips that cannot be read."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from vdt_jax.errors import UserError
from vdt_jax.video import to_float

MAX_REPLACEMENTS = 1000  # clips that are tried in place of one that cannot be read
MADE = "none: made at this size"
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
      crop: how a clip came to its size, for the protocol of an evaluation.
      identity: optional; what tells its clips from others, wherever they are stored, see `identity_of`.
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


def identity_of(entries: Sequence[Any]) -> str:
    """What tells some data from other data: the number of entries, e.g. names and sizes of files, and their hash."""
    return f"{len(entries)} entries, SHA-256 {hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]}"


def readable_example(source: Source, candidates: Iterable[tuple[int, np.random.Generator | None]]) -> dict[str, Any]:
    """The first of some clips that can be read, as an example.

    Args:
      source: of the clips.
      candidates: arguments of `source.clip`: those of the wanted clip, then those of its replacements in order.

    Returns:
      "video": (F, H, W, C) float32 in [-1, 1], or moments as they are; "labels": () int32.

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
    raise UserError(f"{count} clips in a row cannot be read; the last: {reason}")


def take(source: Source, numbers: Iterable[int]) -> dict[str, np.ndarray]:
    """The clips of these numbers as a batch; a clip that cannot be read is replaced by the next one.

    Args:
      source: of the clips.
      numbers: from 0; past the end of the source they start again.

    Returns:
      "video": (B, F, H, W, C) float32 in [-1, 1]; "labels": (B,) int32.

    Raises:
      UserError: none can be read.
    """
    tries = min(len(source), MAX_REPLACEMENTS)
    examples = [
        readable_example(source, ((n % len(source), None) for n in range(number, number + tries))) for number in numbers
    ]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
