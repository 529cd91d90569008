"""The arms of the study (study.py): models of digits that differ in one thing, trained in one program, and measured."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdt_jax.data import make_source, take
from vdt_jax.diffusion import make_diffusion
from vdt_jax.generation import generate_clips, respaced, sample_keys, task_masks
from vdt_jax.masks import TASKS, draw_masks, varied_mask
from vdt_jax.metrics.frames import psnr, ssim
from vdt_jax.models import VDT
from vdt_jax.training import make_learning_rate, make_optimizer

QUESTIONS = ("tasks", "mixture", "masks", "pretraining")
MODEL = dict(
    input_size=(32, 32),
    num_frames=16,
    in_channels=1,
    patch_size=8,
    hidden_size=64,
    depth=4,
    num_heads=4,
    learn_sigma=False,
    unroll=4,
)
SMOKE_MODEL = MODEL | dict(hidden_size=16, depth=1, num_heads=2, unroll=1)
DATA = {"name": "moving_digits", "num_digits": 2}
DIFFUSION = dict(noise_schedule="cosine", prediction="x_start", loss_on="v", min_snr_gamma=5.0, clip_denoised=True)
BATCH_SIZE, POOL, SAMPLING_STEPS, RESAMPLINGS, PEAK, EMA_DECAY = 8, 4096, 16, 4, 1e-3, 0.995

# Two-sided 95 % points of Student's t, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
MAX_SEEDS = len(_T) + 1

MaskFn = Callable[[jax.Array, jax.Array, int, tuple[int, int, int]], jax.Array]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to spend the steps.

    Attributes:
      masks: (key, index of the task, batch size, (F, h, w)) -> (B, F, h, w, 1).
      models: the tasks that each have a model of their own; (None,) is one for all.
      loss: see GaussianDiffusion.training_losses.
      frames_first: share of the steps on single frames, whose model the other steps begin with.
      repaint: whether given positions enter while sampling alone.
    """

    masks: MaskFn
    models: tuple[str | None, ...] = (None,)
    loss: str = "normalised"
    frames_first: float = 0.0
    repaint: bool = False


def our_mixture(key: jax.Array, index: jax.Array, batch_size: int, shape: tuple[int, int, int]) -> jax.Array:
    return draw_masks(key, batch_size, shape, "varied")


def official_mixture(key: jax.Array, index: jax.Array, batch_size: int, shape: tuple[int, int, int]) -> jax.Array:
    return draw_masks(key, batch_size, shape, "official")


def one_task(key: jax.Array, index: jax.Array, batch_size: int, shape: tuple[int, int, int]) -> jax.Array:
    return jax.vmap(lambda key: varied_mask(key, index, shape))(jax.random.split(key, batch_size))


def nothing_given(key: jax.Array, index: jax.Array, batch_size: int, shape: tuple[int, int, int]) -> jax.Array:
    return jnp.ones((batch_size, *shape, 1))


def arms(question: str) -> dict[str, Arm]:
    """The two arms of a question, by name; the second is subtracted from the first."""
    ours = Arm(our_mixture)
    return {
        "tasks": {"one model": ours, "one for each task": Arm(one_task, models=TASKS)},
        "mixture": {"ours": ours, "official": Arm(official_mixture, loss="parity")},
        "masks": {"with masks": ours, "without, RePaint": Arm(nothing_given, repaint=True)},
        "pretraining": {"frames first": dataclasses.replace(ours, frames_first=0.5), "joint": ours},
    }[question]


# ---------------------------------------------------------------------- training


@functools.cache
def pool(model: VDT, num_clips: int) -> jax.Array:
    """Training clips (N, F, H, W, 1) in uint8, on the device."""
    source = make_source(DATA, model.video_shape, "train")
    return jnp.asarray(np.stack([source[i]["video"] for i in range(num_clips)]))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def train(
    model: VDT, masks: MaskFn, loss: str, steps: int, clips: jax.Array, params: Any, index: jax.Array, key: jax.Array
) -> Any:
    """EMA parameters after so many steps on clips (N, F, H, W, C) uint8, or on their single frames; one program."""
    diffusion = make_diffusion(**DIFFUSION, learn_sigma=False)
    learning_rate = make_learning_rate(PEAK, max(steps // 20, 1), steps, "cosine")
    optimizer = make_optimizer(learning_rate, b2=0.99)

    def step(carry, number):
        params, ema, opt_state = carry
        clip_key, step_key, noise_key, mask_key = jax.random.split(jax.random.fold_in(key, number), 4)
        x = clips[jax.random.randint(clip_key, (BATCH_SIZE,), 0, len(clips))].astype(jnp.float32) / 127.5 - 1
        if model.num_frames == 1:  # as many frames as a batch of clips has, each on its own
            x = x.reshape(-1, 1, *x.shape[2:])
        steps_drawn = jax.random.randint(step_key, (len(x),), 0, len(diffusion.schedule))
        mask = masks(mask_key, index, len(x), model.video_shape[:3])

        def loss_of(params):
            def denoise_fn(x_t, timesteps):
                return model.apply({"params": params}, x_t, timesteps)

            noise = jax.random.normal(noise_key, x.shape)
            return diffusion.training_losses(denoise_fn, x, mask, steps_drawn, noise, loss)["loss"].mean()

        updates, opt_state = optimizer.update(jax.grad(loss_of)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(EMA_DECAY, (1 + number) / (10 + number))
        return (params, optax.incremental_update(params, ema, 1 - decay), opt_state), None

    carry = (params, params, optimizer.init(params))
    return jax.lax.scan(step, carry, jnp.arange(steps))[0][1]


@functools.partial(jax.jit, static_argnums=0)
def init(model: VDT, key: jax.Array) -> Any:
    """Fresh parameters."""
    return model.init(key, jnp.zeros((1, *model.video_shape)), jnp.zeros(1))["params"]


def train_arm(arm: Arm, sizes: dict[str, Any], steps: int, num_clips: int, seed: int) -> list[Any]:
    """The parameters of each of an arm's models; its steps are shared among them."""
    model, params = VDT(**sizes), []
    clips, share = pool(model, num_clips), steps // len(arm.models)
    first = int(share * arm.frames_first)
    for number, task in enumerate(arm.models):
        init_key, first_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), 3)
        start, index = init(model, init_key), jnp.array(TASKS.index(task) if task else 0)
        if first:
            still = VDT(**(sizes | {"num_frames": 1}))
            fresh = init(still, init_key)
            start = start_on_clips(start, train(still, nothing_given, arm.loss, first, clips, fresh, index, first_key))
        params.append(train(model, arm.masks, arm.loss, share - first, clips, start, index, key))
    return params


def start_on_clips(fresh: Any, learned: Any) -> Any:
    """What was learned on frames, with fresh temporal layers whose last map is 0: they begin by adding nothing."""
    blocks = learned["blocks"] | {
        name: fresh["blocks"][name] for name in fresh["blocks"] if name.startswith("temporal")
    }
    blocks["temporal_fc"] = jax.tree.map(jnp.zeros_like, fresh["blocks"]["temporal_fc"])
    return learned | {"blocks": blocks, "time_embed": fresh["time_embed"]}


# ---------------------------------------------------------------------- measuring


def measure(arm: Arm, sizes: dict[str, Any], params: list[Any], num_clips: int) -> dict[str, float]:
    """PSNR and SSIM of each task on the generated positions of held-out clips: "TASK PSNR" and "TASK SSIM"."""
    model, numbers, values = VDT(**sizes), range(num_clips), {}
    source = make_source(DATA, model.video_shape, "held_out")
    clean, keys = take(source, numbers)["video"], sample_keys(0, numbers)
    diffusion = respaced(DIFFUSION, SAMPLING_STEPS, False)
    for task in TASKS:
        own = params[arm.models.index(task) if task in arm.models else 0]
        mask = task_masks(0, numbers, task, model)
        options = {"sampler": "repaint", "resamples": RESAMPLINGS} if arm.repaint else {}
        samples, _ = generate_clips(model, own, diffusion, clean, mask, keys, **options)
        values[f"{task} PSNR"] = float(psnr(samples, clean, mask).mean())
        values[f"{task} SSIM"] = float(ssim(samples, clean, mask).mean())
    return values


# ---------------------------------------------------------------------- statistics


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval by Student's t."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, _T[len(values) - 1] * deviation / math.sqrt(len(values))


def summarise(runs: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """A row for each measure: both arms, and their difference seed by seed, each with its interval."""
    (_, first), (_, second) = runs.items()
    rows = []
    for name in first[0]:
        ours, others = [run[name] for run in first], [run[name] for run in second]
        differences = [a - b for a, b in zip(ours, others, strict=True)]
        rows.append([name, *("{:.3f} ± {:.3f}".format(*interval(values)) for values in (ours, others, differences))])
    return rows
