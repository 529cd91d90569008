"""Validation during training: losses, metrics and previews of held-out clips.

The training loss averages over tasks and noise levels that differ by orders of magnitude, with new draws at each step.
Here clips, masks, noise and timesteps are the same each time, so that only the model changes.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.data import take
from vdt_jax.diffusion.gaussian import GaussianDiffusion
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.distributed.mesh import on_one_device
from vdt_jax.evaluation.metrics.frames import psnr, ssim
from vdt_jax.inference.functional import sample_keys
from vdt_jax.inference.outputs import write_comparison
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.latents.space import batch_encoder
from vdt_jax.models.vdt import VDT
from vdt_jax.training.log import RunLog
from vdt_jax.training.run import Run

logger = logging.getLogger(__name__)
QUARTILES = 4


class Validation:
    """Measures and shows parameters on the first held-out clips.

    Args:
      run: its config says when, and on how many clips with how many sampling steps.
      folder: previews are written to `step_NNNNNNN` in it.
      log: logs the previews, those of the tasks before an interruption too; None in all processes but the first.
      stop: asked before each task is sampled; True skips this task and the rest.
    """

    def __init__(self, run: Run, folder: Path, log: RunLog | None = None, stop: Callable[[], bool] = lambda: False):
        self._measured, self._shown, self._seed = run.config.validation, run.config.preview, run.config.seed
        self._pipeline = Pipeline(run.model, None, run.config.as_json(), run.space)
        self._source, self._mesh, self._stop = run.held_out, run.mesh, stop
        self._folder, self._log = folder, log
        self._losses = _make_losses(run.model, run.diffusion)

    def metrics_due(self, step: int) -> bool:
        """Whether the losses and metrics of a step are wanted."""
        return self._measured.every > 0 and step % self._measured.every == 0

    def pictures_due(self, step: int, last_step: int) -> bool:
        """Whether the previews of a step are wanted; those of the last step are."""
        return self._shown.every > 0 and (step % self._shown.every == 0 or step == last_step)

    def __call__(self, params: Any, step: int, *, metrics: bool = True, pictures: bool = False) -> dict[str, float]:
        """Samples every task once, for metrics, previews (a GIF and a PNG per task and clip), or both.

        Every process must call it. With metrics, the sampling steps are those of `validation`.

        Returns:
          With `metrics`, in the first process, if `stop` did not interrupt: `validation/TASK` and
          `validation/quartile Q`, `normalised` losses, each averaged over the other (quartile 1 has the least noise),
          and `evaluation/TASK PSNR` (dB) and `SSIM` on the generated positions. Otherwise nothing.
        """
        params = on_one_device(params, self._mesh)
        if jax.process_index() > 0:
            return {}
        values: dict[str, Any] = self._measure_losses(params) if metrics else {}
        measured, shown = self._measured.num_clips if metrics else 0, self._shown.num_clips if pictures else 0
        clips = {name: array[: max(measured, shown)] for name, array in self._clips.items()}
        truth, folder, sampled = clips["video"], self._folder / f"step_{step:07d}", []
        for task, samples, mask in self._sample(params, clips, (self._measured if metrics else self._shown).num_steps):
            sampled.append(task)
            if metrics:
                arrays = samples[:measured], truth[:measured], mask[:measured]
                values[f"evaluation/{task} PSNR"] = psnr(*arrays).mean()
                values[f"evaluation/{task} SSIM"] = ssim(*arrays).mean()
            for n in range(shown):
                write_comparison(folder / f"{task}_{n}", truth[n], mask[n], [samples[n]])
        if sampled and pictures and self._log is not None:
            self._log.pictures(step, folder)
        if len(sampled) < len(TASKS):
            return {}
        if pictures:
            logger.info(f"samples of every task: {folder}")
        return {name: float(value) for name, value in values.items()}

    def _sample(self, params: Any, clips: dict, num_steps: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """The samples (B, F, H, W, C) of each task, and the mask over them (B, F, H, W, 1)."""
        pipeline = dataclasses.replace(self._pipeline, params=params)
        diffusion, numbers = pipeline.diffusion(num_steps), range(len(clips["video"]))
        for task in TASKS:
            if self._stop():
                return
            mask, keys = pipeline.task_masks(task, numbers, self._seed), sample_keys(self._seed, numbers)
            yield task, *pipeline.complete(clips["video"], mask, keys, diffusion=diffusion, labels=clips["labels"])

    def _measure_losses(self, params: Any) -> dict[str, float]:
        by_task = np.asarray(self._losses(params, *self._loss_inputs))
        values = {f"validation/{task}": loss for task, loss in zip(TASKS, by_task.mean(1), strict=True)}
        return values | {f"validation/quartile {i}": loss for i, loss in enumerate(by_task.mean(0), 1)}

    @functools.cached_property
    def _clips(self) -> dict[str, np.ndarray]:
        """All clips that are measured or shown."""
        return take(self._source, range(max(part.num_clips for part in (self._measured, self._shown) if part.every)))

    @functools.cached_property
    def _loss_inputs(self) -> tuple[Any, np.ndarray, np.ndarray, jax.Array]:
        """What the network learns to denoise, labels, masks (tasks, B, F, h, w, 1), and a key for each clip."""
        numbers, space = range(self._measured.num_clips), self._pipeline.space
        x_start, labels = (self._clips[name][: len(numbers)] for name in ("video", "labels"))
        encoder = batch_encoder(space, self._source)
        if encoder is not None:
            x_start = jax.jit(encoder.encode)(encoder.weights, x_start, None)  # the mode
        masks = [np.asarray(self._pipeline.task_masks(task, numbers, self._seed)) for task in TASKS]
        return x_start, labels, np.stack(masks), sample_keys(self._seed, numbers)


def _make_losses(model: VDT, diffusion: GaussianDiffusion) -> Callable[..., jax.Array]:
    """The losses (tasks, quartiles) of clips (B, F, H, W, C) under masks (tasks, B, F, h, w, 1)."""
    edges = np.linspace(0, len(diffusion.schedule), QUARTILES + 1).astype(int)

    @jax.jit
    def losses(params, x_start, labels, masks, keys):
        def denoise_fn(x_t: jax.Array, timesteps: jax.Array) -> Any:
            return model.apply({"params": params}, x_t, timesteps, labels if model.num_classes > 1 else 0 * labels)

        def steps_and_noise(key, first, last):
            step_key, noise_key = jax.random.split(jax.random.fold_in(key, first))
            return jax.random.randint(step_key, (), first, last), jax.random.normal(noise_key, x_start.shape[1:])

        def one(case):
            mask, first, last = case
            steps, noise = jax.vmap(lambda key: steps_and_noise(key, first, last))(keys)
            return diffusion.training_losses(denoise_fn, x_start, mask, steps, noise)["loss"].mean()

        firsts, lasts = (jnp.tile(jnp.asarray(limits), len(masks)) for limits in (edges[:-1], edges[1:]))
        return jax.lax.map(one, (masks.repeat(QUARTILES, 0), firsts, lasts)).reshape(len(masks), QUARTILES)

    return losses
