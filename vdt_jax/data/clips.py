"""What sources and the pipeline say to each other."""

from typing import Any, Protocol

import numpy as np

from vdt_jax.video import to_float

MAX_REPLACEMENTS = 1000  # clips that are tried in place of one that cannot be read
Clip = dict[str, Any]  # "video": uint8 (F, H, W, C), or moments of latents, float16 (F, h, w, 2 C); "label": int


class UnreadableClip(Exception):
    """This clip cannot be had, now or ever; the message says why."""


class PassingFailure(UnreadableClip):
    """This clip cannot be had here and now: a limit, a permission, a disk. Another day it may be."""


class SlowClip(PassingFailure):
    """This clip took too long."""


class Source(Protocol):
    """Clips by number; labels are 0 to num_classes - 1, and 0 where there are no classes (num_classes = 1)."""

    num_classes: int

    def __len__(self) -> int: ...

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """The clip of a number from 0 to len - 1.

        Args:
          number: which.
          rng: draws what is random in a clip (crop, flip); None for the clip as it is looked at: centre crop, no flip.

        Raises:
          UnreadableClip: another has to take its place.
        """
        ...


def as_example(clip: Clip) -> dict[str, Any]:
    """A clip without the batch axis: "video", pixels float32 in [-1, 1], moments as they are; "labels" int32."""
    video = clip["video"]
    return {"video": to_float(video) if video.dtype == np.uint8 else video, "labels": np.int32(clip["label"])}
