"""Baselines without a model: each position is copied or blended from the frames in which it is given.

Videos are (B, F, H, W, C), masks (B, F, H, W, 1) with 1 = generate. Positions given in no frame become 0 (grey).
"""

import numpy as np


def _neighbours(video: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """For each position the last given value before or at it, the next one after or at it, and their distances."""
    given = np.asarray(mask) < 0.5
    video = np.asarray(video, np.float32)

    def sweep(frames):
        value, distance = np.zeros_like(video), np.full(given.shape, np.inf, np.float32)
        held, age = np.zeros_like(video[:, 0]), np.full(given[:, 0].shape, np.inf, np.float32)
        for f in frames:
            held, age = np.where(given[:, f], video[:, f], held), np.where(given[:, f], 0, age + 1)
            value[:, f], distance[:, f] = held, age
        return value, distance

    num_frames = video.shape[1]
    return *sweep(range(num_frames)), *sweep(reversed(range(num_frames)))


def copy_nearest(video: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Copies each position from the nearest frame in which it is given; of two, from the earlier one."""
    before, distance_before, after, distance_after = _neighbours(video, mask)
    return np.where(distance_before <= distance_after, before, after)


def linear_blend(video: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Interpolates each position linearly between its given values; before the first and after the last it copies."""
    before, distance_before, after, distance_after = _neighbours(video, mask)
    between = np.isfinite(distance_before) & np.isfinite(distance_after)
    total = np.where(between, distance_before + distance_after, 1)
    share = np.divide(distance_before, total, out=np.zeros_like(total), where=between & (total > 0))
    return np.where(between, before + share * (after - before), copy_nearest(video, mask))


BASELINES = {"copy nearest": copy_nearest, "linear blending": linear_blend}
