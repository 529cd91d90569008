"""Evaluation of finished videos: two folders, whoever made them, compared name by name.

    report = evaluate_folders("samples", "truth", output="runs/compared")

All videos must have one length and size. Nothing is cropped or resized, and every position counts.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vdt_jax.data.discover import find_videos
from vdt_jax.errors import UserError
from vdt_jax.evaluation.measures import TRUTH, Arrays, Measures, default_metrics, make_measures, score, summarise
from vdt_jax.evaluation.metrics.frames import motion
from vdt_jax.evaluation.metrics.i3d import MIN_FRAMES
from vdt_jax.evaluation.options import EvaluateOptions
from vdt_jax.evaluation.protocol import protocol_text, software
from vdt_jax.evaluation.report import Report
from vdt_jax.files import atomic_write, writing
from vdt_jax.options import build
from vdt_jax.video import VIDEO_SUFFIXES, read_frames, to_float

logger = logging.getLogger(__name__)
_OPTIONS = ("output", "batch_size", "metrics", "lpips", "metric_weights", "psnr_of", "ssim_border")
_SAMPLES = "samples"


def evaluate_folders(
    samples: str | os.PathLike | None,
    truth: str | os.PathLike | None,
    *,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Report:
    """Measures the videos of a folder against those of the same names in another, and writes report.json.

    Args:
      samples, truth: folders of videos, GIFs or folders of frames. Names are compared without extension; a GIF beside a
        video of its name, as sample.py writes it, is skipped.
      progress: called with the number of completed videos and the total.
      options: `output` (required), `batch_size`, `metrics`, `lpips`, `metric_weights`, `psnr_of` and `ssim_border` of
        `EvaluateOptions`.

    Returns:
      The report; `print` shows it as a table.

    Raises:
      UserError: other options, a video without its counterpart, or videos of several lengths or sizes.
    """
    if samples is None or truth is None:
        raise UserError(f"samples and truth must both name a folder, got samples={samples} and truth={truth}")
    given = _folder_options(options)
    pairs = VideoPairs(samples, truth)
    given = dataclasses.replace(given, metrics=_metrics(given, pairs), ssim_border=given.ssim_border or 0)
    measures = make_measures(given, pairs.shape[1:3])
    output = Path(given.output)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)

    batches: list[Arrays] = []
    done = 0
    for videos in pairs.batches(given.batch_size):
        batches.append(_measured(measures, *map(to_float, videos)))
        done += len(videos[0])
        if progress is not None:
            progress(done, len(pairs))

    protocol = {
        **pairs.protocol(),
        "positions": "all",
        **{name: getattr(given, name) for name in ("psnr_of", "ssim_border", "metrics")},
        **software(given),
    }
    logger.info("%s", protocol_text(protocol))
    arrays = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    report = Report(protocol, {"videos": summarise(arrays)}, {})
    atomic_write(output / "report.json", json.dumps(report.to_json(), indent=2) + "\n")
    return report


class VideoPairs:
    """The videos of two folders, paired by name, all of one length and size.

    Args:
      samples, truth: as for `evaluate_folders`.

    Attributes:
      paths: the sample and the true video of each pair, in natural order of the names.
      shape: (F, H, W, 3), that of the first true video.

    Raises:
      UserError: a video without its counterpart, or one that cannot be read.
    """

    def __init__(self, samples: str | os.PathLike, truth: str | os.PathLike):
        self.paths = match(samples, truth)
        self.shape = _read(self.paths[0][1]).shape
        self._folders = {_SAMPLES: str(samples), TRUTH: str(truth)}
        self._digests = {name: hashlib.sha256() for name in (_SAMPLES, TRUTH)}

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Samples and truth (B, F, H, W, 3) uint8 of up to `size` pairs at once.

        Raises:
          UserError: a video that cannot be read, or of a different shape than the first one.
        """
        first = self.paths[0][1]
        for start in range(0, len(self), size):
            batch = zip(*self.paths[start : start + size], strict=True)
            samples, truth = (np.stack([_read(path, self.shape, first) for path in paths]) for paths in batch)
            self._digests[_SAMPLES].update(samples.tobytes())
            self._digests[TRUTH].update(truth.tobytes())
            yield samples, truth

    def protocol(self) -> dict[str, Any]:
        """Folders, number and shape of the videos, and the hashes of what `batches` has read, 8 bits a value."""
        return {
            **self._folders,
            "clips": len(self),
            **{f"{name}_sha256": digest.hexdigest() for name, digest in self._digests.items()},
            **dict(zip(("frames", "height", "width", "channels"), self.shape, strict=True)),
        }


def only_for_a_model(name: str) -> str:
    """The message for an option that was given together with finished samples."""
    return f"{name} applies only if a model makes the samples: leave it out, or leave out samples and truth"


def _folder_options(options: Mapping[str, Any]) -> EvaluateOptions:
    """The options, checked. UserError: one that is only for the samples of a model."""
    given = build(EvaluateOptions, options)
    for field in dataclasses.fields(given):
        if field.name not in _OPTIONS and getattr(given, field.name) != field.default:
            raise UserError(only_for_a_model(field.name))
    return given


def _metrics(given: EvaluateOptions, pairs: VideoPairs) -> tuple[str, ...]:
    """The metrics asked for, or those that can be measured. UserError: FVD of fewer frames than it needs."""
    metrics = given.metrics or default_metrics(given.lpips, given.metric_weights, pairs.shape)
    num_frames = pairs.shape[0]
    if "fvd" in metrics and num_frames < MIN_FRAMES:
        first = pairs.paths[0][1]
        raise UserError(f"FVD needs at least {MIN_FRAMES} frames, {first} has {num_frames}: leave fvd out of metrics")
    return metrics


def _measured(measures: Measures, samples: np.ndarray, truth: np.ndarray) -> Arrays:
    """The results of a batch of videos (B, F, H, W, 3) in [-1, 1], as `summarise` takes them."""
    everywhere = np.ones((*truth.shape[:-1], 1), np.float32)
    scores = score(measures, samples, truth, everywhere)
    results = {f"{_SAMPLES}/{name}": values[:, None] for name, values in scores.items()}
    if "motion" in measures.names:
        results[f"{TRUTH}/motion"] = np.asarray(motion(truth, everywhere))
    if measures.fvd is not None:
        results |= {f"{_SAMPLES}/FVD": measures.fvd(samples)[:, None], f"{TRUTH}/FVD": measures.fvd(truth)}
    return results


def match(samples: str | os.PathLike, truth: str | os.PathLike) -> list[tuple[Path, Path]]:
    """The pairs of paths with the same name in two folders, in natural order."""
    ours, theirs = _by_name(samples), _by_name(truth)
    for folder, missing in ((truth, ours.keys() - theirs.keys()), (samples, theirs.keys() - ours.keys())):
        if missing:
            names = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
            raise UserError(
                f"{folder} has no video named {names} ({len(missing)} missing): samples and truth must have the same "
                "names, apart from extensions"
            )
    return [(path, theirs[name]) for name, path in ours.items()]


def _by_name(folder: str | os.PathLike) -> dict[str, Path]:
    """The videos of a folder by their path below it, without extension."""
    root, found = find_videos(folder)
    files: dict[str, list[Path]] = {}
    for video in found:
        path = root / video.name
        if video.reason:
            raise UserError(f"{path} {video.reason}")
        stem = path.with_suffix("") if path.suffix.lower() in (*VIDEO_SUFFIXES, ".webp") else path
        files.setdefault(str(stem.relative_to(root)), []).append(path)
    chosen = {}
    for name, paths in files.items():
        films = [path for path in paths if path.suffix.lower() != ".gif"] or paths
        if len(films) > 1:
            raise UserError(f"{films[0]} and {films[1]} have the same name: keep one of them")
        chosen[name] = films[0]
    return chosen


def _read(path: Path, shape: tuple[int, ...] | None = None, like: Path | None = None) -> np.ndarray:
    """All frames of a video (F, H, W, 3) uint8, which must have the shape of a given one."""
    frames = list(read_frames(path))
    if not frames:
        raise UserError(f"{path} has no frames: remove it, or write it again")
    other = next((frame for frame in frames if frame.shape != frames[0].shape), None)
    if other is not None:
        sizes = [f"{height}x{width}" for height, width, _ in (frames[0].shape, other.shape)]
        raise UserError(f"{path} has frames of {sizes[0]} and of {sizes[1]}: all frames must have one size")
    video = np.stack(frames)
    if shape is not None and video.shape != shape:
        sizes = ["{} frames of {}x{}".format(*x[:3]) for x in (video.shape, shape)]
        raise UserError(f"{path} has {sizes[0]}, {like} has {sizes[1]}: all videos must have one length and size")
    return video
