"""Baselines without a model: each position is copied or blended from the frames in which it is given.

Videos are (B, F, H, W, C), masks (B, F, H, W, 1) with 1 = generate. Positions given in no frame become 0 (grey).
"""

import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdt_jax.diffusion import blend
from vdt_jax.video import to_uint8

# OpenCV, of the extra `eval`.
cv2: Any = importlib.import_module("cv2") if importlib.util.find_spec("cv2") else None
FLOW = "optical flow"


def copy_nearest(video: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`blend.copy_nearest` of NumPy arrays."""
    return np.array(blend.copy_nearest(jnp.asarray(video, jnp.float32), jnp.asarray(mask)))


def linear_blend(video: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`blend.linear_blend` of NumPy arrays."""
    return np.array(blend.linear_blend(jnp.asarray(video, jnp.float32), jnp.asarray(mask)))


def opencv_version() -> str:
    """The version of OpenCV, on which the flow depends."""
    return cv2.__version__ if cv2 else "not installed"


def flow_blend(video: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Warps the fully given frames before and after each frame to its time, and blends them by distance.

    With a at time 0, b at time 1 and Farneback's flows F_ab and F_ba,

        frame(t, x) = (1 - t) a(x - t F_ab(x)) + t b(x - (1 - t) F_ba(x))

    which takes the flow at x as that of the point that moves to x. Frames before the first fully given one and after
    the last, and given regions of partly given frames, are as in `linear_blend`.
    Videos are in [-1, 1], with C = 1 or 3. Needs OpenCV.
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
    grey, other_grey = (to_uint8(x.mean(-1)) for x in (frame, other))
    window = min(15, *grey.shape)
    start = np.zeros((*grey.shape, 2), np.float32)
    return cv2.calcOpticalFlowFarneback(grey, other_grey, start, 0.5, 3, window, 3, 5, 1.2, 0)


def _warp(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """frame(x - flow(x)): bilinear, with the border repeated."""
    rows, columns = np.indices(frame.shape[:2], np.float32)
    x, y = columns - flow[..., 0].astype(np.float32), rows - flow[..., 1].astype(np.float32)
    warped = cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return warped.reshape(frame.shape)


# Of videos with any number of channels.
BASELINES = {"copy nearest": copy_nearest, "linear blending": linear_blend}


def baselines(channels: int) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """The baselines by name; optical flow where OpenCV is installed and videos are grey or RGB."""
    flow = {FLOW: flow_blend} if cv2 and channels in (1, 3) else {}
    return BASELINES | flow
