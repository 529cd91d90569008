"""Metrics by trained networks: LPIPS, the features of FVD, and features of single frames.

Videos are float (B, F, H, W, C) in [-1, 1], C = 3, or C = 1, which is repeated.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdt_jax.errors import UserError
from vdt_jax.evaluation.metrics import i3d
from vdt_jax.evaluation.metrics.batches import over_batches
from vdt_jax.evaluation.metrics.lpips import LPIPS
from vdt_jax.evaluation.metrics.weights import load_i3d, load_lpips

MIN_PIXELS = {"vgg16": 16, "alexnet": 31}  # with fewer, nothing is left for the last layer
_FRAMES_AT_ONCE = 64


def _rgb(video: np.ndarray) -> np.ndarray:
    return np.repeat(video, 3, axis=-1) if video.shape[-1] == 1 else video


def make_video_features(
    mesh: Mesh, batch_size: int = 4, folder: str | Path | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The features of FVD (Unterthiner et al. 2018, arXiv 1812.01717): I3D's 400 logits, videos to (B, 400).

    Frames are resized to 224x224: bilinear, half-pixel centres, no antialiasing.

    Args:
      mesh: the devices.
      batch_size: videos at once, of at least `i3d.MIN_FRAMES` frames.
      folder: of the weights; None for the installed package.

    Raises:
      UserError: missing weights.
    """

    def features(params, video) -> Any:
        shape = (*video.shape[:2], i3d.SIZE, i3d.SIZE, video.shape[-1])
        return i3d.I3D().apply({"params": params}, jax.image.resize(video, shape, "linear", antialias=False))

    apply = over_batches(features, load_i3d(folder).params, mesh, batch_size)

    return lambda video: apply(_rgb(video))


def make_lpips(
    network: str, mesh: Mesh, folder: str | Path | None = None
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """LPIPS of videos: (sample, truth, mask (B, F, H, W, 1)) to (B,).

    The distance of whole frames at their own size, averaged over the frames with a generated position.

    Raises:
      UserError: missing weights or an unknown network; when called, frames too small for the network.
    """
    if network not in MIN_PIXELS:
        raise UserError(f"lpips must be one of {', '.join(MIN_PIXELS)}, got {network!r}")

    def distance(params, x, y) -> Any:
        return LPIPS(network).apply({"params": params}, x, y)

    apply = over_batches(distance, load_lpips(network, folder).params, mesh, _FRAMES_AT_ONCE)

    def over_videos(sample: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
        _check_size(network, sample)
        counted = np.asarray(mask).any((2, 3, 4))
        distances = np.zeros(counted.shape)
        distances[counted] = apply(_rgb(np.asarray(sample)[counted]), _rgb(np.asarray(truth)[counted]))
        return distances.sum(1) / counted.sum(1)

    return over_videos


def make_frame_features(mesh: Mesh, folder: str | Path | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Features of each frame for a Frechet distance of single frames: videos to (B * F, 512).

    The last layer of VGG16, averaged over the frame. This is not FID, whose network is Inception v3.

    Raises:
      UserError: missing weights; when called, frames too small for the network.
    """

    def features(params, x):
        layers: Any = LPIPS("vgg16").apply({"params": params}, x, method="describe")
        return jnp.mean(layers[-1], (1, 2))

    apply = over_batches(features, load_lpips("vgg16", folder).params, mesh, _FRAMES_AT_ONCE)

    def over_videos(video: np.ndarray) -> np.ndarray:
        _check_size("vgg16", video)
        return apply(_rgb(video).reshape(-1, *video.shape[2:4], 3))

    return over_videos


def _check_size(network: str, video: np.ndarray) -> None:
    if min(video.shape[2:4]) < MIN_PIXELS[network]:
        raise UserError(f"{network} needs frames of at least {MIN_PIXELS[network]} pixels, got {video.shape[2:4]}")
