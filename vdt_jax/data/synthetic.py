"""Random numbers in the shape of video, for measuring throughput."""

import numpy as np

from vdt_jax.data.clips import Clip, Computed


class Synthetic(Computed):
    """Clips of uniform noise, (F, H, W, C) uint8; they repeat after eight."""

    def __init__(self, shape: tuple[int, int, int, int], split: str):
        rng = np.random.default_rng([len(split), *shape])
        self._clips = rng.integers(0, 256, (8, *shape), np.uint8)

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`; `rng` is not used."""
        return {"video": self._clips[number % len(self._clips)], "label": 0}
