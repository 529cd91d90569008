"""Evaluation, task by task: the samples of a model beside methods without a model.

    pipe = vdt_jax.Pipeline.load("demo")
    report = evaluate(pipe, output="runs/evaluation", tasks=["predict"], num_clips=16)

The unit of work is one batch of clips of one task. Its results are kept in a file, so that an evaluation resumes; they
depend on the numbers of the clips and the seed only, so that a resumed evaluation gives the same report.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vdt_jax.data import Source, take
from vdt_jax.errors import UserError
from vdt_jax.evaluation.measures import (
    MEAN,
    MODEL,
    TRUTH,
    Arrays,
    Measures,
    default_metrics,
    make_measures,
    score,
    summarise,
)
from vdt_jax.evaluation.metrics.baselines import baselines
from vdt_jax.evaluation.metrics.frames import motion
from vdt_jax.evaluation.metrics.frechet import frechet_distance
from vdt_jax.evaluation.metrics.i3d import MIN_FRAMES
from vdt_jax.evaluation.options import EvaluateOptions, apply_preset
from vdt_jax.evaluation.protocol import Protocol, clip_numbers, keep_protocol, make_protocol, protocol_text
from vdt_jax.evaluation.report import Report, Row, write_pictures, write_report
from vdt_jax.files import atomic, writing
from vdt_jax.inference.functional import sample_keys
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.options import build

logger = logging.getLogger(__name__)


def evaluate(
    pipeline: Pipeline,
    *,
    checkpoint: str | None = None,
    vae: str | None = None,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Report:
    """Measures a model, and writes report.json and index.html, a page that grows task by task.

    The same call resumes an evaluation that was interrupted.

    Args:
      pipeline: the model.
      checkpoint, vae: names of the model and of its autoencoder, for the protocol and the commands on the page.
      progress: called with the number of completed clips and the total, over all tasks together.
      options: of `EvaluateOptions`; `output` is required.

    Returns:
      The report; `print` shows it as a table.

    Raises:
      UserError: options that are not allowed, missing weights of a metric, or an output folder with an evaluation of
        a different protocol.
    """
    given = build(EvaluateOptions, options)
    evaluation = _start(pipeline, given, checkpoint, vae)
    protocol = evaluation.protocol
    done, total = 0, protocol["clips"] * len(protocol["tasks"])

    def update(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    update(0)
    tasks, pictures = {}, {}
    for task in protocol["tasks"]:
        tasks[task], ranking = evaluation.task(task, update)
        pictures[task] = write_pictures(evaluation.sample, protocol, given, task, ranking)
        write_report(Report(protocol, tasks, {}), given, pictures, finished=False)
    report = Report(protocol, tasks, evaluation.floor())
    write_report(report, given, pictures)
    return report


def _start(pipeline: Pipeline, given: EvaluateOptions, checkpoint: str | None, vae: str | None) -> "Evaluation":
    """An evaluation with these options. Writes protocol.json, or checks that the one of an earlier call agrees."""
    chosen, preset = apply_preset(given, pipeline.shape)
    metrics = chosen.metrics or default_metrics(chosen.lpips, chosen.metric_weights, pipeline.shape)
    chosen = dataclasses.replace(chosen, metrics=metrics)
    data = _data(chosen, pipeline)
    source = pipeline.source(chosen.split or "held_out", data)
    if chosen.told_labels and not 1 < pipeline.model.num_classes == source.num_classes:
        counts = f"{pipeline.model.num_classes} in the model and {source.num_classes} in the data"
        raise UserError(f"told_labels needs a model and data with the same classes, got {counts}: leave it out")
    measures = make_measures(chosen, pipeline.shape[1:3])
    protocol = make_protocol(pipeline, source, data, chosen, preset=preset, checkpoint=checkpoint, vae=vae)

    output = Path(chosen.output)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    logger.info("%s", protocol_text(protocol))
    keep_protocol(protocol, output / "protocol.json")
    evaluation = Evaluation(pipeline, protocol, source, measures, output / "parts", chosen.batch_size)
    for task in protocol["tasks"]:
        evaluation.fvd_frames(task)  # its errors end the evaluation before any work
    return evaluation


def _data(options: EvaluateOptions, pipeline: Pipeline) -> dict[str, Any]:
    """The `data` section: the model's own, a section from Python, or all of a folder or list of videos.

    Frames of these videos are chosen as the model was trained, unless `stride` or `fps` says otherwise.
    """
    if options.data is None:
        section = dict(pipeline.data)
    elif isinstance(options.data, Mapping):
        section = dict(options.data)
    else:
        section = {"name": "video_folder", "path": str(options.data), "held_out": 0.0}
        trained_on = pipeline.config["data"]
        section |= {key: trained_on[key] for key in ("stride", "fps", "labels", "crop") if trained_on.get(key)}
    if options.stride is not None:
        section |= {"stride": options.stride, "fps": None}
    elif options.fps is not None:
        section |= {"stride": None, "fps": options.fps}
    return section


class Evaluation:
    """Samples and scores of the clips of `protocol`, `batch_size` at once; `folder` keeps finished batches."""

    def __init__(
        self, pipeline: Pipeline, protocol: Protocol, source: Source, measures: Measures, folder: Path, batch_size: int
    ):
        self._pipeline, self.protocol, self._source, self._measures = pipeline, protocol, source, measures
        self._diffusion = pipeline.diffusion(protocol["steps"])
        self._folder, self._batch_size = folder, min(batch_size, protocol["clips"])
        self._numbers, self._all_frames = clip_numbers(protocol), tuple(range(protocol["frames"]))
        folder.mkdir(parents=True, exist_ok=True)

    def task(self, task: str, update: Callable[[int], object]) -> tuple[dict[str, Row], np.ndarray]:
        """Measures all clips of a task; `update` is called with the number of clips of each finished batch.

        Returns:
          The summary of each candidate, and the PSNR of the model's first sample of each clip (clips,).
        """
        batches = []
        for first in self._firsts():
            count = len(self._wanted(first))
            name = f"{task}_{first}_{count}"  # a different batch size has different files
            batches.append(self._kept(name, functools.partial(self._measure, task, first)))
            update(count)
        arrays = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        return summarise(arrays), arrays[f"{MODEL}/PSNR"][:, 0]

    def floor(self) -> dict[str, Row]:
        """FVD of the true clips, all frames, from as many other true clips, if the split has them, and from themselves.

        The other clips are half-way between the clips, or behind them if the clips are consecutive. Their distance is
        a bound for samples from nothing; samples with given frames share those with the truth and may be nearer.
        """
        floor: dict[str, Row] = {"truth against other truth": {}, "truth against itself": {}}
        if len(self._numbers) < 2 or self._measures.fvd is None:
            return floor

        def features(shift: int) -> Arrays:
            return {"FVD": np.concatenate([self._true_features(n, self._all_frames, shift) for n in self._firsts()])}

        shift = self._numbers.step // 2 or len(self._numbers)
        truth = self._kept("truth", lambda: features(0))["FVD"]
        floor["truth against itself"]["FVD"] = frechet_distance(truth, truth)
        if self._numbers[-1] + shift < len(self._source):
            others = self._kept("other_truth", lambda: features(shift))["FVD"]
            floor["truth against other truth"]["FVD"] = frechet_distance(truth, others)
        return floor

    def sample(self, numbers: Any, task: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples of the clips of these numbers; the seed is that of the noise.

        Returns:
          Samples and truth (B, F, H, W, C) in [-1, 1], and the mask over pixels (B, F, H, W, 1), 1 = generate.
        """
        p = self.protocol
        batch, keys = take(self._source, numbers), sample_keys(seed, numbers)
        options: dict[str, Any] = {"diffusion": self._diffusion, "sampler": p["sampler"]}
        if task in p["told_labels"]:
            options |= {"labels": batch["labels"], "guidance": p["guidance"]}
            options["guidance_interval"] = p["guidance_interval"]
        samples, mask = self._pipeline.complete(batch["video"], self._mask(numbers, task), keys, **options)
        return samples, batch["video"], mask

    @functools.cache  # noqa: B019 -- an evaluation lives as long as its process needs it
    def fvd_frames(self, task: str) -> tuple[int, ...] | None:
        """The frames of a task that FVD compares; None without FVD, or if clips differ in which frames are generated.

        Raises:
          UserError: fewer frames than FVD needs.
        """
        if self._measures.fvd is None:
            return None
        if self.protocol["fvd_frames"] == "all":
            return self._all_frames
        generated = set()
        for first in self._firsts():
            mask = np.asarray(self._mask(self._batch(first), task))
            generated |= {tuple(np.flatnonzero(frames).tolist()) for frames in np.max(mask, axis=(2, 3, 4)) > 0.5}
        if len(generated) > 1:
            logger.info("not measured: FVD of %s: its clips differ in which frames are generated", task)
            return None
        frames = generated.pop()
        if len(frames) < MIN_FRAMES:
            raise UserError(
                f"FVD needs at least {MIN_FRAMES} frames, {task} generates {len(frames)}: compare all frames "
                "(fvd_frames=all), or leave fvd out of metrics"
            )
        return frames

    def _firsts(self) -> range:
        """The places of the first clip of each batch."""
        return range(0, len(self._numbers), self._batch_size)

    def _batch(self, first: int) -> range:
        """The clip numbers of a batch; all batches have the same size, the last one with further clips."""
        start, every = self._numbers.start, self._numbers.step
        return range(start + first * every, start + (first + self._batch_size) * every, every)

    def _wanted(self, first: int) -> range:
        """The clip numbers of a batch that are measured."""
        return self._numbers[first : first + self._batch_size]

    def _mask(self, numbers: Any, task: str) -> Any:
        """Masks (B, F, h, w, 1) over what the model denoises."""
        num_given = self.protocol["num_given"] if task in ("predict", "backward") else None
        return self._pipeline.task_masks(task, numbers, self.protocol["seed"], num_given)

    def _kept(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of `make`, from the file of an earlier call if there is one."""
        path = self._folder / f"{name}.npz"
        if path.is_file():
            with np.load(path) as file:
                return dict(file)
        results = make()
        with atomic(path) as unfinished:
            np.savez(unfinished, **results)  # pyright: ignore[reportArgumentType]
        return results

    def _measure(self, task: str, first: int) -> Arrays:
        """The results of one batch, as `summarise` takes them."""
        p, count = self.protocol, len(self._wanted(first))
        drawn = [self.sample(self._batch(first), task, p["seed"] + j) for j in range(p["samples_per_clip"])]
        truth, mask = drawn[0][1][:count], drawn[0][2][:count]
        candidates = {MODEL: [samples[:count] for samples, _, _ in drawn]}
        if len(drawn) > 1:  # what models that minimise the squared error predict
            candidates[MEAN] = [np.mean(candidates[MODEL], axis=0)]
        if task != "unconditional":  # there is nothing to copy
            candidates |= {name: [np.asarray(make(truth, mask))] for name, make in baselines(truth.shape[-1]).items()}
        counted = mask if p["positions"] == "generated" else np.ones_like(mask)
        frames = self.fvd_frames(task)

        results: Arrays = {}
        measured: list[tuple[np.ndarray, Arrays]] = []  # a baseline that equals another is not measured again
        for name, videos in candidates.items():
            parts = []
            for video in videos:
                part = next((found for other, found in measured if np.array_equal(other, video)), None)
                if part is None:
                    part = score(self._measures, video, truth, counted)
                    if frames is not None:
                        part["FVD"] = self._features(video, frames)
                    measured.append((video, part))
                parts.append(part)
            results |= {f"{name}/{metric}": np.stack([part[metric] for part in parts], axis=1) for metric in parts[0]}
        if "motion" in self._measures.names:
            results[f"{TRUTH}/motion"] = np.asarray(motion(truth, counted))
        if frames is not None:
            results[f"{TRUTH}/FVD"] = self._true_features(first, frames)
        return results

    @functools.cache  # noqa: B019
    def _true_features(self, first: int, frames: tuple[int, ...], shift: int = 0) -> np.ndarray:
        """Features of the clips of a batch, or of those whose numbers are larger by `shift`."""
        return self._features(take(self._source, [number + shift for number in self._wanted(first)])["video"], frames)

    def _features(self, video: np.ndarray, frames: tuple[int, ...]) -> np.ndarray:
        """The features of FVD of some frames of videos (B, F, H, W, C)."""
        assert self._measures.fvd is not None
        return self._measures.fvd(video[:, list(frames)])
