"""What the benchmarks time: a training step, sampling, the autoencoder; each gives a row of a table."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from measure import counted_memory, timed

from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.inference.functional import generate_on_devices, sample_keys, task_masks
from vdt_jax.latents.codec import decode_video, encode_video
from vdt_jax.models.autoencoder import AutoencoderKL
from vdt_jax.models.flops import forward_flops, training_flops, utilisation
from vdt_jax.models.vdt import VDT
from vdt_jax.training.optimizer import make_learning_rate, make_optimizer
from vdt_jax.training.step import init_state, make_train_step

Row = dict[str, Any]


def training_row(model: VDT, batch_size: int, repeats: int, trace: Callable[[Callable], None] | None = None) -> Row:
    """One training step with AdamW, EMA and drawn masks on random clips, its state donated as in train.py.

    Args:
      repeats: timed steps; 0 compiles only.
      trace: called at the end with a function that does one step.
    """
    optimizer = make_optimizer(make_learning_rate(1e-4, 0, 1, "constant"))
    diffusion = make_diffusion(learn_sigma=model.learn_sigma)
    init = functools.partial(init_state, model, optimizer)
    batch = {"video": jax.device_put(random_clips(model, batch_size)), "labels": jax.numpy.zeros(batch_size, int)}
    step = jax.jit(make_train_step(model, diffusion, optimizer), donate_argnums=0)
    start = time.perf_counter()
    compiled = step.lower(jax.eval_shape(init, jax.random.key(0)), batch, jax.random.key(1)).compile()
    row: Row = {"batch": batch_size, "dtype": _name(model.dtype), "compile": f"{time.perf_counter() - start:.1f} s"}
    if not repeats:
        return row | {"memory": counted_memory(compiled)}
    state = jax.jit(init)(jax.random.key(0))

    def one() -> None:
        nonlocal state
        state, metrics = compiled(state, batch, jax.random.key(1))
        jax.block_until_ready(metrics)

    (timing,) = timed(one, repeats=repeats)
    if trace is not None:
        trace(one)
    rate = batch_size / timing.median
    share = utilisation(model, batch_size, jax.devices()[0].device_kind, 1, 1 / timing.median)
    return row | {
        "time": timing,
        "samples/s": f"{rate:.4g}",
        "TFLOP/s": f"{training_flops(model) * rate / 1e12:.3g}",
        "MFU": "-" if share is None else f"{share:.1%}",
        "memory": counted_memory(compiled),
    }


def sampling_row(model: VDT, batch_size: int, num_steps: int, sampler: str, repeats: int) -> Row:
    """Interpolation from noise to samples."""
    one = functools.partial(_sample, model, random_params(model), batch_size, num_steps, sampler)
    timing, first = _timed(one, repeats)
    rate = batch_size / timing.median
    return {
        "batch": batch_size,
        "dtype": _name(model.dtype),
        "compile": f"{max(first - timing.median, 0):.1f} s",
        "time": timing,
        "samples/s": f"{rate:.4g}",
        "TFLOP/s": f"{num_steps * forward_flops(model) * rate / 1e12:.3g}",
        "MFU": "-",
        "memory": "-",
    }


def video_row(model: VDT, vae: AutoencoderKL, what: str, chunk: int, num_steps: int, repeats: int) -> Row:
    """The frames of one clip, `chunk` at a time: `encode`, `decode`, or `video`: encoded, sampled, decoded."""
    params = random_params(vae, (1, 8 * vae.factor, 8 * vae.factor, vae.in_channels))
    frames = np.random.default_rng(0).uniform(-1, 1, _pixels(model, vae)).astype(np.float32)
    latents = random_clips(model, 1)[0]
    network_params = random_params(model) if what == "video" else None

    def encode() -> np.ndarray:
        return np.asarray(encode_video(vae, params, frames, key=jax.random.key(0), chunk=chunk))

    def video() -> None:
        samples = _sample(model, network_params, 1, num_steps, "ddpm", encode()[None])
        decode_video(vae, params, np.asarray(samples)[0], chunk=chunk)

    calls = {"encode": encode, "decode": lambda: decode_video(vae, params, latents, chunk=chunk), "video": video}
    timing, first = _timed(calls[what], repeats)
    frame_rate = f"{len(frames) / timing.median:.4g}"
    return {
        "batch": chunk,
        "dtype": _name(vae.dtype),
        "compile": f"{max(first - timing.median, 0):.1f} s",
        "time": timing,
        "frames/s": frame_rate,
    }


def random_clips(model: VDT, batch_size: int) -> np.ndarray:
    """Clips (B, F, h, w, C) float32 of random numbers."""
    return np.random.default_rng(0).standard_normal((batch_size, *model.video_shape), np.float32)


def random_params(model: Any, shape: tuple[int, ...] = ()) -> Any:
    """Initial parameters of a network, on the device; `shape` is that of the input of an autoencoder."""
    inputs = [np.zeros(shape, np.float32)] if shape else [np.zeros((1, *model.video_shape), np.float32), np.zeros(1)]
    return jax.jit(model.init)(jax.random.key(0), *inputs)["params"]


def _sample(
    model: VDT, params: Any, batch_size: int, num_steps: int, sampler: str, clean: np.ndarray | None = None
) -> Any:
    numbers = range(batch_size)
    diffusion = make_diffusion(timestep_respacing=str(num_steps), learn_sigma=model.learn_sigma)
    clean = random_clips(model, batch_size) if clean is None else clean
    mask, keys = task_masks(0, numbers, "interpolation", model), sample_keys(0, numbers)
    return jax.block_until_ready(generate_on_devices(model, params, diffusion, clean, mask, keys, sampler=sampler))


def _timed(call: Callable[[], Any], repeats: int) -> Any:
    """The timing of a call, and the seconds of its first one, which compiles."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    return timed(call, repeats=repeats)[0], first


def _pixels(model: VDT, vae: AutoencoderKL) -> tuple[int, int, int, int]:
    num_frames, height, width, _ = model.video_shape
    return num_frames, height * vae.factor, width * vae.factor, vae.in_channels


def _name(dtype: Any) -> str:
    return jax.numpy.dtype(dtype).name
