"""The metrics of an evaluation: which can be measured, their scores for each clip, and the summary over clips."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vdt_jax.distributed.mesh import make_mesh
from vdt_jax.errors import UserError
from vdt_jax.evaluation.metrics.frames import motion, motion_error, psnr, psnr_of_frames, ssim
from vdt_jax.evaluation.metrics.frechet import frechet_distance
from vdt_jax.evaluation.metrics.i3d import MIN_FRAMES
from vdt_jax.evaluation.metrics.openstl import openstl
from vdt_jax.evaluation.metrics.perceptual import MIN_PIXELS, make_lpips, make_video_features
from vdt_jax.evaluation.metrics.weights import HOW_TO_GET, find
from vdt_jax.evaluation.options import METRICS, EvaluateOptions

logger = logging.getLogger(__name__)
MODEL, MEAN, TRUTH = "model", "mean of samples", "truth"
_LARGER_IS_BETTER = ("PSNR", "SSIM", "OpenSTL PSNR", "OpenSTL SSIM")

Arrays = dict[str, np.ndarray]


class Measures(NamedTuple):
    """The metrics asked for, with the networks that they need."""

    names: tuple[str, ...]
    lpips: Callable[..., np.ndarray] | None  # (sample, truth, mask) -> (B,)
    fvd: Callable[[np.ndarray], np.ndarray] | None  # videos -> features (B, width)
    psnr: Callable[..., Any] = psnr
    ssim_border: int = 0


def networks_of(lpips_network: str) -> dict[str, str]:
    """The network of each metric that needs one."""
    return {"lpips": lpips_network, "fvd": "i3d"}


def default_metrics(lpips_network: str, folder: str | None, shape: tuple[int, int, int, int]) -> tuple[str, ...]:
    """The metrics measured by default on clips (F, H, W, C); a log line says why others cannot be."""
    missing = {}
    for metric, network in networks_of(lpips_network).items():
        if find(network, folder) is None:
            missing[metric] = f"the weights are missing: {HOW_TO_GET}"
    if shape[0] < MIN_FRAMES:
        missing["fvd"] = f"at least {MIN_FRAMES} frames are needed, clips have {shape[0]}"
    if min(shape[1:3]) < MIN_PIXELS[lpips_network]:
        missing["lpips"] = f"{lpips_network} needs at least {MIN_PIXELS[lpips_network]} pixels, clips are {shape[1:3]}"
    for metric, reason in missing.items():
        logger.info("not measured: %s: %s", metric.upper(), reason)
    return tuple(name for name in METRICS if name not in missing and name != "openstl")


def make_measures(options: EvaluateOptions, size: tuple[int, int]) -> Measures:
    """Loads the networks of the metrics asked for, of frames of a size (H, W); PSNR is always measured."""
    names, mesh, folder = options.metrics or (), make_mesh(), options.metric_weights
    border = options.ssim_border or 0
    if 2 * border >= min(size):
        raise UserError(f"ssim_border must be < {(min(size) + 1) // 2} for frames of {size[0]}x{size[1]}, got {border}")
    lpips = make_lpips(options.lpips, mesh, folder) if "lpips" in names else None
    fvd = make_video_features(mesh, max(4, mesh.size), folder) if "fvd" in names else None
    return Measures(names, lpips, fvd, psnr_of_frames if options.psnr_of == "frames" else psnr, border)


def score(measures: Measures, sample: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> Arrays:
    """The scores (B,) of videos (B, F, H, W, C) in [-1, 1] where the mask (B, F, H, W, 1) is 1, by metric."""
    scores: dict[str, Any] = {"PSNR": measures.psnr(sample, truth, mask)}
    if "ssim" in measures.names:
        scores["SSIM"] = ssim(sample, truth, mask, measures.ssim_border)
    if "motion" in measures.names:
        scores["motion"], scores["motion error"] = motion(sample, mask), motion_error(sample, truth, mask)
    if "openstl" in measures.names:
        scores |= openstl(sample, truth, mask)
    if measures.lpips is not None:
        scores["LPIPS"] = measures.lpips(sample, truth, mask)
    return {name: np.asarray(values, np.float64) for name, values in scores.items()}


def summarise(arrays: Arrays) -> dict[str, dict[str, float]]:
    """candidate -> metric -> its mean over clips and samples, the mean of each clip's best sample, or FVD.

    FVD takes the first sample of each clip, as many as there are true clips, since it falls with their number; that of
    all samples is reported beside it. `arrays` holds "candidate/metric": scores (B, samples), or features
    (B, samples, width) of FVD; those of the truth have no axis of samples.
    """
    summary: dict[str, dict[str, float]] = {}
    for key, values in arrays.items():
        candidate, metric = key.split("/")
        if candidate == TRUTH:
            continue
        row = summary.setdefault(candidate, {})
        if metric == "FVD":
            truth = arrays[f"{TRUTH}/FVD"]
            if len(truth) > 1:
                row["FVD"] = frechet_distance(values[:, 0], truth)
            if len(truth) > 1 and values.shape[1] > 1:
                row["FVD of all samples"] = frechet_distance(values.reshape(-1, values.shape[-1]), truth)
        elif metric == "motion":
            row[metric] = float(values.mean() / max(arrays[f"{TRUTH}/motion"].mean(), 1e-12))
        else:
            row[metric] = float(values.mean())
            if values.shape[1] > 1:
                best = values.max(1) if metric in _LARGER_IS_BETTER else values.min(1)
                row[f"best {metric}"] = float(best.mean())
    return summary
