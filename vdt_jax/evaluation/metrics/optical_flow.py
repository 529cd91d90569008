"""Blending along the optical flow, the classical frame interpolation. Needs OpenCV."""

import importlib.util
import itertools

import numpy as np

from vdt_jax.evaluation.metrics.baselines import linear_blend
from vdt_jax.video import to_uint8


def is_available() -> bool:
    """Whether OpenCV is installed."""
    return importlib.util.find_spec("cv2") is not None


def version() -> str:
    """The version of OpenCV, on which the flow depends."""
    if not is_available():
        return "not installed"
    import cv2  # pyright: ignore[reportMissingImports]

    return cv2.__version__


def flow_blend(video: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Warps the fully given frames before and after each frame to its time, and blends them by distance.

    With a at time 0, b at time 1 and Farneback's flows F_ab and F_ba,

        frame(t, x) = (1 - t) a(x - t F_ab(x)) + t b(x - (1 - t) F_ba(x))

    which takes the flow at x as that of the point that moves to x. Frames before the first fully given one and after
    the last, and given regions of partly given frames, are as in `linear_blend`.

    Args:
      video: (B, F, H, W, C) in [-1, 1], C = 1 or 3.
      mask: (B, F, H, W, 1), 1 = generate, 0 = given.
    """
    out = linear_blend(video, mask)
    for clip, filled, clip_mask in zip(np.asarray(video, np.float32), out, np.asarray(mask), strict=True):
        given = np.flatnonzero((clip_mask < 0.5).all((1, 2, 3)))
        for first, last in itertools.pairwise(given):
            if last - first < 2:
                continue
            forward, backward = _flow(clip[first], clip[last]), _flow(clip[last], clip[first])
            for f in range(first + 1, last):
                t = (f - first) / (last - first)
                blend = (1 - t) * _warp(clip[first], t * forward) + t * _warp(clip[last], (1 - t) * backward)
                filled[f] = np.where(clip_mask[f] > 0.5, blend, clip[f])
    return out


def _flow(frame: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The displacement (H, W, 2), in pixels (x, y), of each point of a frame in the other."""
    import cv2  # pyright: ignore[reportMissingImports]

    grey, other_grey = (to_uint8(x.mean(-1)) for x in (frame, other))
    window = min(15, *grey.shape)
    start = np.zeros((*grey.shape, 2), np.float32)
    return cv2.calcOpticalFlowFarneback(grey, other_grey, start, 0.5, 3, window, 3, 5, 1.2, 0)


def _warp(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """frame(x - flow(x)): bilinear, with the border repeated."""
    import cv2  # pyright: ignore[reportMissingImports]

    rows, columns = np.indices(frame.shape[:2], np.float32)
    x, y = columns - flow[..., 0].astype(np.float32), rows - flow[..., 1].astype(np.float32)
    warped = cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return warped.reshape(frame.shape)
