"""The arms of the study (study.py): models of digits that differ in one thing; training and measuring them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdt_jax.data import make_source, take
from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.diffusion.masks import TASKS, draw_masks, varied_mask
from vdt_jax.diffusion.samplers import sample_noise
from vdt_jax.evaluation.metrics.baselines import BASELINES
from vdt_jax.evaluation.metrics.frames import motion, psnr, ssim
from vdt_jax.inference.functional import sample_keys, task_masks
from vdt_jax.inference.pipeline import Pipeline
from vdt_jax.models.flops import training_flops
from vdt_jax.models.vdt import VDT
from vdt_jax.training.optimizer import make_learning_rate, make_optimizer
from vdt_jax.training.step import draw_examples, loss_fn
from vdt_jax.video import to_uint8

MODEL = dict(num_frames=16, in_channels=1, hidden_size=64, depth=4, num_heads=4, learn_sigma=False, unroll=4)
SMOKE = dict(hidden_size=16, depth=1, num_heads=2, unroll=1)
ONE_DIGIT = {"name": "moving_digits", "num_digits": 1}
# Datasets: options of the source, and sizes that give 9, 16 and 16 tokens per frame. `digits_32`: the bundled model's.
DATASETS = {
    "digits": (ONE_DIGIT, dict(input_size=(24, 24), patch_size=8)),
    "digits_32": (ONE_DIGIT, dict(input_size=(32, 32), patch_size=8, hidden_size=128, depth=6, unroll=6)),
    "mnist": ({"name": "moving_mnist", "num_digits": 2}, dict(input_size=(64, 64), patch_size=16)),
}
DIFFUSION = dict(noise_schedule="cosine", prediction="x_start", loss_on="v", min_snr_gamma=5.0, clip_denoised=True)
FLOW = {"noise_schedule": "rectified_flow"}
# Of each arm: what differs from DIFFUSION.
PROCESSES = {
    "cosine": {},
    "linear": {"noise_schedule": "linear"},
    "linear, zero SNR": {"noise_schedule": "linear", "zero_terminal_snr": True},
    "flow": FLOW | {"prediction": "v", "min_snr_gamma": None},
    "flow, x_start": FLOW,
}
BATCH_SIZE, POOL, PEAK, EMA_DECAY, NOISE_SHIFT = 8, 4096, 2e-3, 0.995, 2.0
SAMPLING_STEPS, RESAMPLINGS = 16, 4
FEW_GIVEN, FEW_COUNTED = 5, 10  # frames given, and frames after them that count, as MCVD predicts moving MNIST
FEW = f"predict {FEW_GIVEN} to {FEW_COUNTED}"
MEASURED = (*TASKS, FEW)

MaskFn = Callable[[jax.Array, jax.Array, int, tuple[int, int, int]], jax.Array]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to spend the training steps.

    Attributes:
      masks: (key, index of the task, batch size, (F, h, w)) -> (B, F, h, w, 1).
      models: the tasks that have a model each; (None,) is one model for all.
      loss: see GaussianDiffusion.training_losses.
      frames_first: share of the compute spent on single frames, whose model initialises that of clips.
      repaint: whether given positions are used in sampling only.
      process: one of PROCESSES.
      times, given_noise: see `draw_examples`.
      optimizer, peak: see `make_optimizer`; the highest learning rate.
      longer: its steps, as a multiple of those of the other arms.
      extended: levels of `given_noise` with which long videos are sampled, if any (drift.py).
    """

    masks: MaskFn
    models: tuple[str | None, ...] = (None,)
    loss: str = "normalised"
    frames_first: float = 0.0
    repaint: bool = False
    process: str = "cosine"
    times: str = "uniform"
    given_noise: float = 0.0
    optimizer: str = "adamw"
    peak: float = PEAK
    longer: float = 1.0
    extended: tuple[float, ...] = ()

    @property
    def diffusion(self) -> dict[str, Any]:
        """The `diffusion` section of a config."""
        return DIFFUSION | PROCESSES[self.process]


def our_mixture(key: jax.Array, index: jax.Array, batch_size: int, shape: tuple[int, int, int]) -> jax.Array:
    return draw_masks(key, batch_size, shape, "varied")


def official_mixture(key: jax.Array, index: jax.Array, batch_size: int, shape: tuple[int, int, int]) -> jax.Array:
    return draw_masks(key, batch_size, shape, "official")


def one_task(key: jax.Array, index: jax.Array, batch_size: int, shape: tuple[int, int, int]) -> jax.Array:
    return jax.vmap(lambda key: varied_mask(key, index, shape))(jax.random.split(key, batch_size))


def nothing_given(key: jax.Array, index: jax.Array, batch_size: int, shape: tuple[int, int, int]) -> jax.Array:
    return jnp.ones((batch_size, *shape, 1))


ARMS = {
    "ours": Arm(our_mixture, extended=(0.0,)),
    "seven models": Arm(one_task, models=TASKS),
    "official": Arm(official_mixture, loss="parity"),
    "RePaint": Arm(nothing_given, repaint=True),
    "frames first": Arm(our_mixture, frames_first=0.5),
    "rectified flow": Arm(our_mixture, process="flow", times="logit_normal"),
    "straight path": Arm(our_mixture, process="flow, x_start"),
    "linear": Arm(our_mixture, process="linear"),
    "zero SNR": Arm(our_mixture, process="linear, zero SNR"),
    "given noise": Arm(our_mixture, given_noise=0.3, extended=(0.0, 0.1)),
    "Muon": Arm(our_mixture, optimizer="muon", peak=2 * PEAK),
    "1.1 x AdamW": Arm(our_mixture, longer=1.1),
    "Muon at half the rate": Arm(our_mixture, optimizer="muon", peak=PEAK),
    "Muon at twice the rate": Arm(our_mixture, optimizer="muon", peak=4 * PEAK),
    "AdamW at twice the rate": Arm(our_mixture, peak=2 * PEAK),
}
# The second is subtracted from the first. One arm answers for its side of several questions.
QUESTIONS = {
    "tasks": ("ours", "seven models"),
    "mixture": ("ours", "official"),
    "masks": ("ours", "RePaint"),
    "pretraining": ("frames first", "ours"),
    "objective": ("rectified flow", "ours"),
    "path": ("straight path", "ours"),
    "end": ("zero SNR", "linear"),
    "augmentation": ("given noise", "ours"),
    "optimizer": ("Muon", "ours"),
    "time": ("Muon", "1.1 x AdamW"),
    "low rate": ("Muon at half the rate", "Muon"),
    "high rate": ("Muon at twice the rate", "Muon"),
    "AdamW's rate": ("AdamW at twice the rate", "ours"),
}


# ---------------------------------------------------------------------- training


@functools.cache
def pool(dataset: str, digits: str | None, shape: tuple[int, int, int, int], num_clips: int) -> jax.Array:
    """Training clips (N, F, H, W, 1) in uint8, on the device."""
    source = make_source(DATASETS[dataset][0] | {"path": digits}, shape, "train")
    return jnp.asarray(np.stack([source.clip(i)["video"] for i in range(num_clips)]))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def train(model: VDT, arm: Arm, steps: int, clips: jax.Array, params: Any, index: jax.Array, key: jax.Array) -> Any:
    """EMA parameters after `steps` steps on clips (N, F, H, W, C) uint8, or on their single frames; one program."""
    diffusion = make_diffusion(**arm.diffusion, learn_sigma=False)
    draws = {"noise_shift": NOISE_SHIFT, "times": arm.times, "given_noise": arm.given_noise}
    learning_rate = make_learning_rate(arm.peak, max(steps // 20, 1), steps, "cosine")
    optimizer = make_optimizer(learning_rate, name=arm.optimizer, b2=0.99)
    if model.num_frames == 1:  # as many single frames as a batch of clips has
        batch_size, clips = BATCH_SIZE * clips.shape[1], clips.reshape(-1, 1, *clips.shape[2:])
    else:
        batch_size = BATCH_SIZE

    def step(carry, number):
        params, ema, opt_state = carry
        clip_key, example_key, mask_key = jax.random.split(jax.random.fold_in(key, number), 3)
        x = clips[jax.random.randint(clip_key, (batch_size,), 0, len(clips))].astype(jnp.float32) / 127.5 - 1
        batch = {"video": x, "labels": jnp.zeros(batch_size, jnp.int32)}
        examples = draw_examples(model, diffusion, batch, example_key, **draws)
        examples["mask"] = arm.masks(mask_key, index, batch_size, model.video_shape[:3])
        gradient = jax.grad(lambda params: loss_fn(model, diffusion, params, examples, arm.loss)[0])(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(EMA_DECAY, (1 + number) / (10 + number))
        return (params, optax.incremental_update(params, ema, 1 - decay), opt_state), None

    carry = (params, params, optimizer.init(params))
    return jax.lax.scan(step, carry, jnp.arange(steps))[0][1]


@functools.partial(jax.jit, static_argnums=0)
def init(model: VDT, key: jax.Array) -> Any:
    """Fresh parameters."""
    return model.init(key, jnp.zeros((1, *model.video_shape)), jnp.zeros(1))["params"]


def still_model(sizes: dict[str, Any]) -> VDT:
    """The model of single frames that can initialise a model of these sizes."""
    return VDT(**(sizes | {"num_frames": 1, "temporal": False}))


def split_steps(arm: Arm, sizes: dict[str, Any], steps: int) -> tuple[int, int]:
    """Steps on single frames and on clips of each model of an arm: together as much compute as `steps` on clips.

    A step on single frames takes as many frames as a step on clips, and costs less: it has no temporal attention.
    """
    model, share = VDT(**sizes), steps // len(arm.models)
    cheaper = training_flops(model) / (model.num_frames * training_flops(still_model(sizes)))
    return round(share * arm.frames_first * cheaper), share - round(share * arm.frames_first)


def train_arm(arm: Arm, sizes: dict[str, Any], steps: int, clips: jax.Array, seed: int) -> list[Any]:
    """The parameters of each model of an arm; the models share its steps."""
    model, params = VDT(**sizes), []
    on_frames, on_clips = split_steps(arm, sizes, round(steps * arm.longer))
    for number, task in enumerate(arm.models):
        init_key, first_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), 3)
        start, index = init(model, init_key), jnp.array(TASKS.index(task) if task else 0)
        if on_frames:
            still = still_model(sizes)
            on_stills = dataclasses.replace(arm, masks=nothing_given)
            learned = train(still, on_stills, on_frames, clips, init(still, init_key), index, first_key)
            start = start_on_clips(start, learned)
        params.append(train(model, arm, on_clips, clips, start, index, key))
    return params


def start_on_clips(fresh: Any, learned: Any) -> Any:
    """Parameters of single frames, with fresh temporal layers whose last kernel is 0: they add nothing at first."""
    blocks = fresh["blocks"] | learned["blocks"]
    blocks["temporal_fc"] = jax.tree.map(jnp.zeros_like, fresh["blocks"]["temporal_fc"])
    return fresh | learned | {"blocks": blocks}


# ---------------------------------------------------------------------- measuring


def held_out(dataset: str, digits: str | None, shape: tuple[int, int, int, int], num_clips: int) -> np.ndarray:
    """Held-out clips (N, F, H, W, 1) in [-1, 1]."""
    return take(make_source(DATASETS[dataset][0] | {"path": digits}, shape, "held_out"), range(num_clips))["video"]


def masks_of(task: str, model: VDT, num_clips: int) -> tuple[np.ndarray, np.ndarray]:
    """The mask of one of MEASURED, 1 = generate, and which generated positions count: (N, F, H, W, 1) each."""
    if task != FEW:
        mask = np.asarray(task_masks(0, range(num_clips), task, model))
        return mask, mask
    mask = np.asarray(task_masks(0, range(num_clips), "predict", model, FEW_GIVEN))
    counted = mask.copy()
    counted[:, FEW_GIVEN + FEW_COUNTED :] = 0
    return mask, counted


def measure(
    arm: Arm, sizes: dict[str, Any], params: list[Any], clean: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Measures an arm on held-out clips.

    Returns:
      "TASK PSNR" and "TASK SSIM" on the positions that count, "TASK motion" as a share of the truth's, "unconditional
      loss" where the process is that of most arms; and the samples of each task in uint8.
    """
    model, values, videos = VDT(**sizes), {}, {}
    keys = sample_keys(0, range(len(clean)))
    options = {"sampler": "repaint", "resamples": RESAMPLINGS} if arm.repaint else {}

    def params_for(task):
        return params[arm.models.index(task) if task in arm.models else 0]

    for task in MEASURED:
        mask, counted = masks_of(task, model, len(clean))
        pipe = pipeline(arm, model, params_for("predict" if task == FEW else task))
        samples, _ = pipe.complete(clean, mask, keys, diffusion=pipe.diffusion(SAMPLING_STEPS), **options)
        values |= score(task, samples, clean, counted)
        videos[task] = to_uint8(samples)
    if arm.diffusion == DIFFUSION:
        values["unconditional loss"] = float(unconditional_loss(model, params_for("unconditional"), clean, keys))
    return values, videos


def pipeline(arm: Arm, model: VDT, params: Any) -> Pipeline:
    """A model of an arm, ready to sample."""
    return Pipeline(model, params, {"diffusion": arm.diffusion})


def score(task: str, samples: np.ndarray, clean: np.ndarray, counted: np.ndarray) -> dict[str, float]:
    """The metrics of one task. Where nothing is given many samples are right, so there is motion only."""
    values = {f"{task} motion": float(motion(samples, counted).mean() / motion(clean, counted).mean())}
    if task == "unconditional":
        return values
    return values | {
        f"{task} PSNR": float(psnr(samples, clean, counted).mean()),
        f"{task} SSIM": float(ssim(samples, clean, counted).mean()),
    }


def measure_baselines(sizes: dict[str, Any], clean: np.ndarray) -> dict[str, dict[str, float]]:
    """The same metrics of the baselines."""
    rows: dict[str, dict[str, float]] = {}
    for task in MEASURED:
        mask, counted = masks_of(task, VDT(**sizes), len(clean))
        if not mask.all():
            for name, make in BASELINES.items():
                rows.setdefault(name, {}).update(score(task, make(clean, mask), clean, counted))
    return rows


@functools.partial(jax.jit, static_argnums=0)
def unconditional_loss(model: VDT, params: Any, clean: jax.Array, keys: jax.Array) -> jax.Array:
    """The normalised loss with nothing given, the clips at evenly spaced noise levels."""
    diffusion = make_diffusion(**DIFFUSION, learn_sigma=False)
    examples = {
        "x_start": clean,
        "mask": jnp.ones((*clean.shape[:-1], 1)),
        "steps": jnp.linspace(0, len(diffusion.schedule) - 1, len(clean)).astype(jnp.int32),
        "noise": sample_noise(keys, clean.shape[1:]),
        "labels": jnp.zeros(len(clean), jnp.int32),
    }
    return loss_fn(model, diffusion, params, examples)[0]
