"""What sources and the pipeline say to each other."""

from typing import Protocol

import numpy as np


class UnreadableClip(Exception):
    """This clip cannot be had, now or ever; the message says why."""


class Source(Protocol):
    """A sequence of clips."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...
