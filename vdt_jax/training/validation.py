"""What a run is worth while it trains, on held-out clips: losses by task and by noise level, and a small evaluation.

The training loss averages over tasks and noise levels that differ by orders of magnitude, and over other draws at each
step. Here clips, masks, noise and timesteps are the same each time, so that what changes is the model.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdt_jax.data import Source, take
from vdt_jax.diffusion.gaussian import GaussianDiffusion, make_diffusion
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.evaluation.metrics.frames import psnr, ssim
from vdt_jax.inference.functional import LoadedAutoencoder, generate_clips, respaced, sample_keys, task_masks
from vdt_jax.latents.codec import encode_batch
from vdt_jax.models.vdt import VDT

QUARTILES = 4


def make_validation(
    model: VDT,
    diffusion_options: Mapping[str, Any],
    source: Source,
    *,
    num_clips: int,
    num_steps: int,
    seed: int = 0,
    vae: LoadedAutoencoder | None = None,
) -> Callable[[Any], dict[str, float]]:
    """A function of parameters that gives named numbers, for TensorBoard and metrics.jsonl.

    `validation/TASK` and `validation/quartile Q` are `normalised` losses, averaged over the other; quartile 1 has the
    least noise. `evaluation/TASK PSNR` (dB) and `SSIM` are those of samples, on the generated positions.

    Args:
      model, diffusion_options: as the run's config has them.
      source: of the held-out clips.
      num_clips: the first so many clips.
      num_steps: sampling steps of the small evaluation.
      seed: of everything that is drawn.
      vae: the autoencoder of a model of latents.
    """
    losses = _make_losses(model, make_diffusion(**diffusion_options, learn_sigma=model.learn_sigma))
    respaced_diffusion = respaced(diffusion_options, num_steps, model.learn_sigma)
    numbers = range(num_clips)

    @functools.cache
    def draw() -> tuple:
        clips, keys = take(source, numbers), sample_keys(seed, numbers)
        masks = {task: np.asarray(task_masks(seed, numbers, task, model)) for task in TASKS}
        if vae is None:
            return clips, clips["video"], masks, keys
        return clips, jax.jit(encode_batch, static_argnums=0)(vae.model, vae.params, clips["video"], None), masks, keys

    def validate(params: Any) -> dict[str, float]:
        clips, x_start, masks, keys = draw()
        by_task = np.asarray(losses(params, x_start, clips["labels"], np.stack(list(masks.values())), keys))
        values = {f"validation/{task}": loss for task, loss in zip(TASKS, by_task.mean(1), strict=True)}
        values |= {f"validation/quartile {i}": loss for i, loss in enumerate(by_task.mean(0), 1)}
        for task, drawn in masks.items():
            samples, mask = generate_clips(
                model,
                params,
                respaced_diffusion,
                clips["video"],
                drawn,
                keys,
                vae=vae,
                labels=clips["labels"],
            )
            values[f"evaluation/{task} PSNR"] = psnr(samples, clips["video"], mask).mean()
            values[f"evaluation/{task} SSIM"] = ssim(samples, clips["video"], mask).mean()
        return {name: float(value) for name, value in values.items()}

    return validate


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
