"""Validation during training: losses, metrics and pictures of held-out clips.

The training loss averages over tasks and noise levels that differ by orders of magnitude, with new draws at each step.
Here clips, masks, noise and timesteps are the same each time, so that only the model changes.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.data import Source, take
from vdt_jax.diffusion.gaussian import GaussianDiffusion, make_diffusion
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.evaluation.metrics.frames import psnr, ssim
from vdt_jax.inference.generation import sample_keys
from vdt_jax.inference.outputs import write_comparison
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.latents.space import Space, batch_encoder
from vdt_jax.models.vdt import VDT
from vdt_jax.training.config import TrainConfig

QUARTILES = 4


class Validation:
    """Measures and shows parameters on the first held-out clips.

    Args:
      config: of the run; its sections `validation` and `preview` say how many clips and sampling steps.
      model: the network.
      space: pixels, or the latents of an autoencoder.
      source: the held-out clips, as they are looked at.
      stop: asked before the samples of each task; True leaves out the rest.
    """

    def __init__(
        self, config: TrainConfig, model: VDT, space: Space, source: Source, stop: Callable[[], bool] = lambda: False
    ):
        self._config, self._model, self._space, self._source, self._stop = config, model, space, source, stop
        self._losses = _make_losses(model, make_diffusion(**vars(config.diffusion), learn_sigma=model.learn_sigma))

    def metrics_due(self, step: int) -> bool:
        """Whether a step is validated."""
        every = self._config.validation.every
        return every > 0 and step % every == 0

    def pictures_due(self, step: int, last_step: int) -> bool:
        """Whether the samples of a step are written as pictures; those of the last step always are."""
        every = self._config.preview.every
        return every > 0 and (step % every == 0 or step == last_step)

    def __call__(self, params: Any, metrics: bool = True, folder: Path | None = None) -> dict[str, float]:
        """Samples every task once, for metrics, for pictures, or for both.

        Args:
          params: of the network, on one device.
          metrics: whether losses and metrics are wanted.
          folder: where the pictures go, one GIF and one PNG a task and clip; None for no pictures.

        Returns:
          With `metrics`, and if `stop` did not interrupt: `validation/TASK` and `validation/quartile Q`, `normalised`
          losses, each averaged over the other (quartile 1 has the least noise), and `evaluation/TASK PSNR` (dB) and
          `SSIM` on the generated positions. Otherwise nothing.
        """
        values = self._losses_of(params) if metrics else {}
        num_measured, num_shown = self._config.validation.num_clips, self._config.preview.num_clips
        num_clips = max(num_measured if metrics else 0, num_shown if folder else 0)
        num_steps = (self._config.validation if metrics else self._config.preview).num_steps
        clips = self._clips(num_clips)
        done = 0
        for task, samples, mask in self._sample(params, clips, num_steps):
            truth, done = clips["video"], done + 1
            if metrics:
                measured = [array[:num_measured] for array in (samples, truth, mask)]
                values[f"evaluation/{task} PSNR"] = float(psnr(*measured).mean())
                values[f"evaluation/{task} SSIM"] = float(ssim(*measured).mean())
            if folder is not None:
                for n in range(num_shown):
                    write_comparison(folder / f"{task}_{n}", truth[n], mask[n], [samples[n]])
        return values if done == len(TASKS) else {}

    def _sample(self, params: Any, clips: dict, num_steps: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """The samples (B, F, H, W, C) of each task and the mask over them (B, F, H, W, 1)."""
        pipeline = Pipeline(self._model, params, self._config.as_json(), self._space)
        diffusion, numbers = pipeline.diffusion(num_steps), range(len(clips["video"]))
        for task in TASKS:
            if self._stop():
                return
            mask = pipeline.task_masks(task, numbers, seed=self._config.seed)
            keys = sample_keys(self._config.seed, numbers)
            yield task, *pipeline.complete(clips["video"], mask, keys, diffusion=diffusion, labels=clips["labels"])

    def _losses_of(self, params: Any) -> dict[str, float]:
        labels = self._clips(self._config.validation.num_clips)["labels"]
        x_start, masks, keys = self._loss_inputs
        by_task = np.asarray(self._losses(params, x_start, labels, masks, keys))
        values = {f"validation/{task}": loss for task, loss in zip(TASKS, by_task.mean(1), strict=True)}
        values |= {f"validation/quartile {i}": loss for i, loss in enumerate(by_task.mean(0), 1)}
        return {name: float(value) for name, value in values.items()}

    @functools.cache  # noqa: B019  a run has one validation
    def _clips(self, count: int) -> dict[str, np.ndarray]:
        return take(self._source, range(count))

    @functools.cached_property
    def _loss_inputs(self) -> tuple[Any, np.ndarray, jax.Array]:
        """What the network learns to denoise, the masks (tasks, B, F, h, w, 1), and a key for each clip."""
        count, seed = self._config.validation.num_clips, self._config.seed
        x_start, encoder = self._clips(count)["video"], batch_encoder(self._space, self._source)
        if encoder is not None:
            encode = jax.jit(functools.partial(encoder.encode, key=None))
            x_start = encode(encoder.weights, x_start)
        pipeline = Pipeline(self._model, None, {}, self._space)
        masks = [np.asarray(pipeline.task_masks(task, range(count), seed=seed)) for task in TASKS]
        return x_start, np.stack(masks), sample_keys(seed, range(count))


def _make_losses(model: VDT, diffusion: GaussianDiffusion) -> Callable[..., jax.Array]:
    """The losses (tasks, quartiles) of clips (B, F, H, W, C) under masks (tasks, B, F, h, w, 1)."""
    length = len(diffusion.schedule)
    edges = np.linspace(0, length, QUARTILES + 1).astype(int)

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

        firsts = jnp.tile(jnp.asarray(edges[:-1]), len(masks))
        lasts = jnp.tile(jnp.asarray(edges[1:]), len(masks))
        return jax.lax.map(one, (masks.repeat(QUARTILES, 0), firsts, lasts)).reshape(len(masks), QUARTILES)

    return losses
