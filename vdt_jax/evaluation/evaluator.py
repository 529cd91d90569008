"""Measuring videos task by task: a model's samples beside what needs no model.

The unit of work is one batch of clips of one task. What comes of it is kept in a file, so that work that was killed
goes on where it was; and it depends on the clips' numbers and the seed alone, so that it comes out the same.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from vdt_jax.data import Source, take
from vdt_jax.diffusion.gaussian import GaussianDiffusion
from vdt_jax.errors import UserError
from vdt_jax.evaluation.metrics import optical_flow
from vdt_jax.evaluation.metrics.baselines import BASELINES
from vdt_jax.evaluation.metrics.frames import psnr, ssim
from vdt_jax.evaluation.metrics.frechet import frechet_distance
from vdt_jax.evaluation.metrics.i3d import MIN_FRAMES
from vdt_jax.evaluation.metrics.motion import motion, motion_error
from vdt_jax.evaluation.metrics.perceptual import MIN_PIXELS, make_frame_features, make_lpips, make_video_features
from vdt_jax.evaluation.metrics.weights import find
from vdt_jax.evaluation.protocol import METRICS, Protocol
from vdt_jax.inference.functional import LoadedAutoencoder, LoadedModel, generate_clips, sample_keys, task_masks
from vdt_jax.video import to_uint8

MODEL = "model"
FLOW = "optical flow"
HOW_TO_GET = "pip install -e '.[eval]' -c constraints.txt, or --metric_weights=FOLDER"
LARGER_IS_BETTER = ("PSNR", "SSIM")

Arrays = dict[str, np.ndarray]


class Measures(NamedTuple):
    """What videos are measured with; None for what is not asked for."""

    names: tuple[str, ...]
    lpips: Callable[..., np.ndarray] | None
    features: Mapping[str, Callable[[np.ndarray], np.ndarray]]  # "FVD", "frame Frechet": videos to rows of features


def available_metrics(
    lpips_network: str, folder: str | None, shape: tuple[int, int, int, int]
) -> tuple[list[str], dict[str, str]]:
    """The metrics that can be measured by default on clips (F, H, W, C), and why the others cannot."""
    missing = {
        metric: f"the weights are not here: {HOW_TO_GET}"
        for metric, network in {"lpips": lpips_network, "fvd": "i3d"}.items()
        if find(network, folder) is None
    }
    if shape[0] < MIN_FRAMES:
        missing["fvd"] = f"it needs at least {MIN_FRAMES} frames"
    if min(shape[1:3]) < MIN_PIXELS[lpips_network]:
        missing["lpips"] = f"{lpips_network} needs at least {MIN_PIXELS[lpips_network]} pixels"
    return [name for name in METRICS if name not in missing and name != "frame_frechet"], missing


def make_measures(names: list[str], lpips_network: str, mesh: Mesh, folder: str | None = None) -> Measures:
    """Loads what the metrics of these names need; PSNR is always among them.

    Raises:
      UserError: an unknown name, or weights that are not there.
    """
    if unknown := set(names) - set(METRICS):
        raise UserError(f"no metric '{min(unknown)}': choose from {', '.join(METRICS)}")
    features = {}
    if "fvd" in names:
        features["FVD"] = make_video_features(mesh, max(4, mesh.size), folder)
    if "frame_frechet" in names:
        features["frame Frechet"] = make_frame_features(mesh, folder)
    lpips = make_lpips(lpips_network, mesh, folder) if "lpips" in names else None
    return Measures(tuple(names), lpips, features)


def score(measures: Measures, sample: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> Arrays:
    """The scores of each clip: a name and (B,) each."""
    scores: dict[str, Any] = {"PSNR": psnr(sample, truth, mask)}
    if "ssim" in measures.names:
        scores["SSIM"] = ssim(sample, truth, mask)
    if "motion" in measures.names:
        scores["motion"], scores["motion error"] = motion(sample, mask), motion_error(sample, truth, mask)
    if measures.lpips is not None:
        scores["LPIPS"] = measures.lpips(sample, truth, mask)
    return {name: np.asarray(values, np.float64) for name, values in scores.items()}


def clips_hash(source: Source, numbers: range) -> str:
    """SHA-256 of these clips, 8 bits a value."""
    digest = hashlib.sha256()
    for number in numbers:
        digest.update(to_uint8(take(source, range(number, number + 1))["video"]).tobytes())
    return digest.hexdigest()


class Evaluation:
    """One evaluation: a model, clips, and what they are measured with.

    Args:
      protocol: what is measured, and how.
      loaded: the model.
      diffusion: its process, respaced.
      source: of the clips.
      measures: see `make_measures`.
      folder: for the files of finished batches.
      batch_size: clips at once.
      vae: the autoencoder of a model of latents.
    """

    def __init__(
        self,
        protocol: Protocol,
        loaded: LoadedModel,
        diffusion: GaussianDiffusion,
        source: Source,
        measures: Measures,
        folder: Path,
        batch_size: int,
        vae: LoadedAutoencoder | None = None,
    ):
        self._protocol, self._loaded, self._diffusion, self._source = protocol, loaded, diffusion, source
        self._measures, self._folder, self._vae = measures, folder, vae
        self._batch_size, self._all_frames = batch_size, tuple(range(protocol.frames))
        folder.mkdir(parents=True, exist_ok=True)

    def _numbers(self, first: int) -> range:
        """The clip numbers of the batch that begins with the clip in this place; past the last, it goes on."""
        p = self._protocol
        return range(p.first_clip + first * p.every, p.first_clip + (first + self._batch_size) * p.every, p.every)

    def sample(self, numbers: Any, task: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples of the clips of these numbers: (samples, truth, mask over pixels), (B, F, H, W, C or 1) each."""
        p = self._protocol
        batch = take(self._source, numbers)
        told = {"labels": batch["labels"], "guidance": p.guidance} if task in p.told_labels else {}
        samples, mask = generate_clips(
            *self._loaded[:2],
            self._diffusion,
            batch["video"],
            self._mask(numbers, task),
            sample_keys(seed, numbers),
            vae=self._vae,
            sampler=p.sampler,
            **told,
        )
        return np.asarray(samples), batch["video"], np.asarray(mask)

    def _kept(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """What `make` gives, from its file if it was made before."""
        path = self._folder / f"{name}.npz"
        if path.is_file():
            with np.load(path) as file:
                return dict(file)
        results = make()
        unfinished = path.with_suffix(".tmp.npz")
        np.savez(unfinished, **results)  # pyright: ignore[reportArgumentType]
        unfinished.replace(path)
        return results

    def _measure(self, task: str, first: int) -> Arrays:
        """One batch: "candidate/metric" -> scores (B, samples), or features (rows, samples, width).

        Of "truth/metric" there is one of each clip: (B,), or (rows, width).
        """
        p = self._protocol
        numbers, count = self._numbers(first), min(self._batch_size, p.clips - first)
        drawn = [self.sample(numbers, task, p.seed + j) for j in range(p.samples_per_clip)]
        truth, mask = drawn[0][1][:count], drawn[0][2][:count]
        candidates = {MODEL: [samples[:count] for samples, _, _ in drawn]}
        if not mask.all():  # where nothing is given there is nothing to copy
            candidates |= {name: [np.asarray(make(truth, mask))] for name, make in baselines(truth.shape).items()}
        counted = mask if p.positions == "generated" else np.ones_like(mask)

        results: dict[str, np.ndarray] = {}
        frames = self.fvd_frames(task)
        seen: list[tuple[np.ndarray, Arrays]] = []  # a baseline that equals another is not measured again
        for name, videos in candidates.items():
            parts = []
            for video in videos:
                known = next((found for other, found in seen if np.array_equal(other, video)), None)
                if known is None:
                    known = score(self._measures, video, truth, counted) | self._features(video, frames)
                    seen.append((video, known))
                parts.append(known)
            for metric in parts[0]:
                results[f"{name}/{metric}"] = np.stack([part[metric] for part in parts], axis=1)
        if "motion" in self._measures.names:
            results["truth/motion"] = np.asarray(motion(truth, counted))
        return results | {f"truth/{name}": rows for name, rows in self._true_features(first, frames).items()}

    @functools.cache  # noqa: B019 -- as long as its evaluation lives
    def _true_features(self, first: int, frames: tuple[int, ...] | None, shift: int = 0) -> Arrays:
        """Features of the clips of a batch, or of those whose numbers are so much larger."""
        numbers = self._numbers(first)[: self._protocol.clips - first]
        numbers = range(numbers.start + shift, numbers.stop + shift, numbers.step)
        return self._features(take(self._source, numbers)["video"], frames)

    @functools.cache  # noqa: B019
    def fvd_frames(self, task: str) -> tuple[int, ...] | None:
        """The frames of a task that features are taken of; None where its clips differ in which are generated.

        Raises:
          UserError: fewer than FVD takes.
        """
        if self._protocol.fvd_frames == "all" or not self._measures.features:
            return self._all_frames
        wanted = set()
        for first in range(0, self._protocol.clips, self._batch_size):
            mask = np.asarray(self._mask(self._numbers(first), task))
            wanted |= {tuple(np.flatnonzero(frames).tolist()) for frames in np.max(mask, axis=(2, 3, 4)) > 0.5}
        if len(wanted) > 1:
            return None
        frames = wanted.pop()
        if "FVD" in self._measures.features and len(frames) < MIN_FRAMES:
            raise UserError(
                f"FVD needs at least {MIN_FRAMES} frames, {task} generates {len(frames)}: count all frames "
                "(--fvd_frames=all), or leave it out of --metrics"
            )
        return frames

    def _mask(self, numbers: Any, task: str) -> Any:
        """Over what the model denoises, (B, F, h, w, 1)."""
        p = self._protocol
        num_given = p.num_given if _takes_num_given(task) else None
        return task_masks(p.seed, numbers, task, self._loaded.model, num_given)

    def _features(self, video: np.ndarray, frames: tuple[int, ...] | None) -> Arrays:
        if frames is None:
            return {}
        return {name: features(video[:, list(frames)]) for name, features in self._measures.features.items()}

    def task(self, task: str, update: Callable[[int], object]) -> tuple[dict[str, dict[str, float]], np.ndarray]:
        """All batches of a task.

        Args:
          update: is told how many clips more are done.

        Returns:
          The summary of each candidate, and the PSNR of the model's first sample of each clip.
        """
        batches = []
        for first in range(0, self._protocol.clips, self._batch_size):
            count = min(self._batch_size, self._protocol.clips - first)
            name = f"{task}_{first}_{count}"  # not what other batches have left
            batches.append(self._kept(name, functools.partial(self._measure, task, first)))
            update(count)
        arrays = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        return summarise(arrays, self._measures), arrays[f"{MODEL}/PSNR"][:, 0]

    def floor(self) -> tuple[dict[str, float], dict[str, float]]:
        """Frechet distances of the true clips, all frames of them, from as many others, and from themselves.

        The others stand half-way between the clips, or behind them where the clips follow each other. Their distance is
        what samples from nothing can be asked for at most; those of tasks with given frames, which they share with the
        truth, may come nearer. Empty where there are too few clips: for the first, twice as many are needed.
        """
        p = self._protocol
        shift = p.every // 2 or p.clips
        if p.clips < 2 or not self._measures.features:
            return {}, {}

        def features_of_all(shift: int) -> Arrays:
            firsts = range(0, p.clips, self._batch_size)
            batches = [self._true_features(first, self._all_frames, shift) for first in firsts]
            return {name: np.concatenate([batch[name] for batch in batches]) for name in self._measures.features}

        truth = self._kept("truth", lambda: features_of_all(0))
        itself = {name: frechet_distance(rows, rows) for name, rows in truth.items()}
        if p.first_clip + (p.clips - 1) * p.every + shift >= len(self._source):
            return {}, itself
        others = self._kept("other_truth", lambda: features_of_all(shift))
        return {name: frechet_distance(truth[name], rows) for name, rows in others.items()}, itself


def _takes_num_given(task: str) -> bool:
    return task in ("predict", "backward")


def baselines(shape: tuple[int, ...]) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """What needs no model, by name; optical flow where OpenCV is there, and the videos are pictures."""
    flow = {FLOW: optical_flow.flow_blend} if optical_flow.is_available() and shape[-1] in (1, 3) else {}
    return BASELINES | flow


def summarise(arrays: Arrays, measures: Measures) -> dict[str, dict[str, float]]:
    """Means over clips (and samples), the best of each clip's samples, and Frechet distances; by candidate.

    The distance takes the first sample of each clip, as many as there are true clips, since it falls with their number;
    that of all samples stands beside it.
    """
    summary: dict[str, dict[str, float]] = {}
    for key, values in arrays.items():
        candidate, metric = key.split("/")
        if candidate == "truth":
            continue
        row = summary.setdefault(candidate, {})
        if metric in measures.features:
            truth = arrays[f"truth/{metric}"]
            if len(truth) > 1:
                row[metric] = frechet_distance(values[:, 0], truth)
            if len(truth) > 1 and values.shape[1] > 1:
                row[f"{metric} of all samples"] = frechet_distance(values.reshape(-1, values.shape[-1]), truth)
            continue
        row[metric] = float(values.mean())
        if metric != "motion" and values.shape[1] > 1:
            best = values.max(1) if metric in LARGER_IS_BETTER else values.min(1)
            row[f"best {metric}"] = float(best.mean())
        if metric == "motion":
            row["motion"] = float(values.mean() / max(arrays["truth/motion"].mean(), 1e-12))
    return summary


def best_and_worst(ranking: np.ndarray, count: int) -> list[tuple[int, str]]:
    """The places of the worst and the best clips, up to `count` of each, with what they are; no clip twice."""
    order = np.argsort(ranking, kind="stable")
    worst = [(int(place), "worst") for place in order[: min(count, (len(order) + 1) // 2)]]
    best = [(int(place), "best") for place in order[::-1][: min(count, len(order) // 2)]]
    return worst + best
