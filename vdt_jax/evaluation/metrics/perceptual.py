"""Metrics by trained networks: LPIPS, and the features of FVD.

Videos are float (B, F, H, W, C) in [-1, 1], C = 3, or C = 1, which is repeated.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vdt_jax.distributed.mesh import batch_sharding, map_batches, replicated
from vdt_jax.errors import UserError
from vdt_jax.evaluation.metrics import i3d
from vdt_jax.evaluation.metrics.lpips import LPIPS
from vdt_jax.evaluation.metrics.weights import load_i3d, load_lpips

MIN_PIXELS = {"vgg16": 16, "alexnet": 31}  # with fewer, nothing is left for the last layer
_FRAMES_AT_ONCE = 64


def _rgb(video: np.ndarray) -> np.ndarray:
    return np.repeat(video, 3, axis=-1) if video.shape[-1] == 1 else video


def over_batches(
    function: Callable[..., jax.Array], params: Any, mesh: Mesh, batch_size: int
) -> Callable[..., np.ndarray]:
    """`function(params, *arrays)`, whose row i depends on row i of the arrays only, for any number of rows.

    `batch_size` rows at a time, rounded up to a multiple of the number of devices, are spread over them. Products are
    in full float32, so that devices agree.
    """
    batch_size = -(-batch_size // mesh.size) * mesh.size
    params, sharding = jax.device_put(params, replicated(mesh)), batch_sharding(mesh)
    jitted = jax.jit(function, out_shardings=sharding)

    def one_batch(*rows: np.ndarray) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return jitted(params, *jax.device_put(rows, sharding))

    return functools.partial(map_batches, one_batch, batch_size)


def make_video_features(
    mesh: Mesh, batch_size: int = 4, folder: str | Path | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The features of FVD (Unterthiner et al. 2018, arXiv 1812.01717): I3D's 400 logits, videos to (B, 400).

    Frames are resized to 224x224: bilinear, half-pixel centres, no antialiasing. Videos have at least `i3d.MIN_FRAMES`
    frames; `folder` has the weights, None for those of the installed package.
    """

    def features(params, video) -> Any:
        shape = (*video.shape[:2], i3d.SIZE, i3d.SIZE, video.shape[-1])
        return i3d.I3D().apply({"params": params}, jax.image.resize(video, shape, "linear", antialias=False))

    apply = over_batches(features, load_i3d(folder), mesh, batch_size)

    return lambda video: apply(_rgb(video))


def make_lpips(
    network: str, mesh: Mesh, folder: str | Path | None = None
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """LPIPS of videos: (sample, truth, mask (B, F, H, W, 1)) to (B,).

    The distance of whole frames at their own size, averaged over the frames with a generated position.
    """

    def distance(params, x, y) -> Any:
        return LPIPS(network).apply({"params": params}, x, y)

    apply = over_batches(distance, load_lpips(network, folder), mesh, _FRAMES_AT_ONCE)

    def over_videos(sample: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if min(sample.shape[2:4]) < MIN_PIXELS[network]:
            raise UserError(
                f"{network} needs frames of at least {MIN_PIXELS[network]} pixels, got {sample.shape[2:4]}: leave "
                "lpips out of metrics"
            )
        counted = np.asarray(mask).any((2, 3, 4))
        distances = np.zeros(counted.shape)
        distances[counted] = apply(_rgb(np.asarray(sample)[counted]), _rgb(np.asarray(truth)[counted]))
        return distances.sum(1) / counted.sum(1)

    return over_videos
