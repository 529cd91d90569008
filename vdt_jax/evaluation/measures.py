"""The metrics of an evaluation: which can be measured, their scores for each clip, and the summary over clips."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from vdt_jax.evaluation.metrics import optical_flow
from vdt_jax.evaluation.metrics.baselines import BASELINES
from vdt_jax.evaluation.metrics.frames import psnr, ssim
from vdt_jax.evaluation.metrics.frechet import frechet_distance
from vdt_jax.evaluation.metrics.i3d import MIN_FRAMES
from vdt_jax.evaluation.metrics.motion import motion, motion_error
from vdt_jax.evaluation.metrics.openstl import openstl
from vdt_jax.evaluation.metrics.perceptual import MIN_PIXELS, make_frame_features, make_lpips, make_video_features
from vdt_jax.evaluation.metrics.weights import HOW_TO_GET, find
from vdt_jax.evaluation.options import METRICS

logger = logging.getLogger(__name__)
MODEL, MEAN, TRUTH, FLOW = "model", "mean of samples", "truth", "optical flow"
_LARGER_IS_BETTER = ("PSNR", "SSIM", "OpenSTL PSNR", "OpenSTL SSIM")

Arrays = dict[str, np.ndarray]


class Measures(NamedTuple):
    """The metrics asked for, with the networks that they need."""

    names: tuple[str, ...]
    lpips: Callable[..., np.ndarray] | None  # (sample, truth, mask) -> (B,)
    features: Mapping[str, Callable[[np.ndarray], np.ndarray]]  # "FVD", "frame Frechet": videos -> (rows, width)


def default_metrics(lpips_network: str, folder: str | None, shape: tuple[int, int, int, int]) -> tuple[str, ...]:
    """The metrics measured by default on clips (F, H, W, C); a log line says why others cannot be."""
    missing = {}
    for metric, network in (("lpips", lpips_network), ("fvd", "i3d")):
        if find(network, folder) is None:
            missing[metric] = f"the weights are missing: {HOW_TO_GET}"
    if shape[0] < MIN_FRAMES:
        missing["fvd"] = f"at least {MIN_FRAMES} frames are needed, clips have {shape[0]}"
    if min(shape[1:3]) < MIN_PIXELS[lpips_network]:
        missing["lpips"] = f"{lpips_network} needs at least {MIN_PIXELS[lpips_network]} pixels, clips are {shape[1:3]}"
    for metric, reason in missing.items():
        logger.info("not measured: %s: %s", metric.upper(), reason)
    return tuple(name for name in METRICS if name not in missing and name not in ("frame_frechet", "openstl"))


def networks_of(metrics: Iterable[str], lpips_network: str) -> list[str]:
    """The networks that these metrics need."""
    needed = {"lpips": lpips_network, "fvd": "i3d", "frame_frechet": "vgg16"}
    return sorted({needed[name] for name in metrics if name in needed})


def make_measures(names: Sequence[str], lpips_network: str, mesh: Mesh, folder: str | None = None) -> Measures:
    """Loads the networks of metrics; PSNR is measured even if it is not among them.

    Raises:
      UserError: missing weights.
    """
    features = {}
    if "fvd" in names:
        features["FVD"] = make_video_features(mesh, max(4, mesh.size), folder)
    if "frame_frechet" in names:
        features["frame Frechet"] = make_frame_features(mesh, folder)
    lpips = make_lpips(lpips_network, mesh, folder) if "lpips" in names else None
    return Measures(tuple(names), lpips, features)


def score(measures: Measures, sample: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> Arrays:
    """The scores (B,) of videos (B, F, H, W, C) in [-1, 1] where the mask (B, F, H, W, 1) is 1, by metric."""
    scores: dict[str, Any] = {"PSNR": psnr(sample, truth, mask)}
    if "ssim" in measures.names:
        scores["SSIM"] = ssim(sample, truth, mask)
    if "motion" in measures.names:
        scores["motion"], scores["motion error"] = motion(sample, mask), motion_error(sample, truth, mask)
    if "openstl" in measures.names:
        scores |= openstl(sample, truth, mask)
    if measures.lpips is not None:
        scores["LPIPS"] = measures.lpips(sample, truth, mask)
    return {name: np.asarray(values, np.float64) for name, values in scores.items()}


def baselines(channels: int) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """The methods without a model, by name; optical flow where OpenCV is installed and videos are grey or RGB."""
    flow = {FLOW: optical_flow.flow_blend} if optical_flow.is_available() and channels in (1, 3) else {}
    return BASELINES | flow


def summarise(arrays: Arrays, measures: Measures) -> dict[str, dict[str, float]]:
    """The mean of each metric over clips and samples, the mean of each clip's best sample, and Frechet distances.

    A Frechet distance takes the first sample of each clip, as many as there are true clips, since it falls with their
    number; the distance of all samples is reported beside it.

    Args:
      arrays: "candidate/metric": scores (B, samples) or features (rows, samples, width); of the truth without samples.
      measures: see `make_measures`.

    Returns:
      candidate -> metric -> value.
    """
    summary: dict[str, dict[str, float]] = {}
    for key, values in arrays.items():
        candidate, metric = key.split("/")
        if candidate == TRUTH:
            continue
        row = summary.setdefault(candidate, {})
        if metric in measures.features:
            truth = arrays[f"{TRUTH}/{metric}"]
            if len(truth) > 1:
                row[metric] = frechet_distance(values[:, 0], truth)
            if len(truth) > 1 and values.shape[1] > 1:
                row[f"{metric} of all samples"] = frechet_distance(values.reshape(-1, values.shape[-1]), truth)
        elif metric == "motion":
            row[metric] = float(values.mean() / max(arrays[f"{TRUTH}/motion"].mean(), 1e-12))
        else:
            row[metric] = float(values.mean())
            if values.shape[1] > 1:
                best = values.max(1) if metric in _LARGER_IS_BETTER else values.min(1)
                row[f"best {metric}"] = float(best.mean())
    return summary
