"""What sources and the pipeline say to each other."""

from typing import Any, Protocol

import numpy as np

from vdt_jax.video import to_float

Clip = dict[str, Any]  # "video": uint8 (F, H, W, C), "label": int


class UnreadableClip(Exception):
    """This clip cannot be had, now or ever; the message says why."""


class Source(Protocol):
    """A sequence of clips; labels are 0 to num_classes - 1, and 0 where there are no classes (num_classes = 1)."""

    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Clip: ...


def as_example(clip: Clip) -> dict[str, Any]:
    """A clip as the network takes it: {"video": float32 in [-1, 1], "labels": int32}, without the batch axis."""
    return {"video": to_float(clip["video"]), "labels": np.int32(clip["label"])}
