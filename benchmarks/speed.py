"""Training steps and sampling: time, memory and, if the peak of the device is known, model FLOPs utilisation.

    python benchmarks/speed.py --models=VDT-S/2 --batch_size=1

Random latents of 16 x 32x32. The training step includes AdamW, the EMA and drawing masks. Sampling is interpolation.
Compile times are without a cache. --repeats=0 compiles the training step without running it, to see by the compiler's
count whether it fits.
"""

import functools
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from measure import counted_memory, report, timed

from vdt_jax import cli
from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.errors import UserError
from vdt_jax.inference.functional import generate_on_devices, sample_keys, task_masks
from vdt_jax.models.flops import forward_flops, training_flops, utilisation
from vdt_jax.models.vdt import REMAT, VDT, VDT_VARIANTS
from vdt_jax.training.optimizer import make_learning_rate, make_optimizer
from vdt_jax.training.step import init_state, make_train_step

_MODELS = flags.DEFINE_list("models", ["VDT-S/2"], f"Networks, of {', '.join(VDT_VARIANTS)}.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Samples a step.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "dtype of the computation.")
_UNROLL = flags.DEFINE_integer("unroll", 1, "Blocks per iteration of the scan over depth.")
_REMAT = flags.DEFINE_enum("remat", "matmuls", list(REMAT), "What training keeps of a block for its gradient.")
_SAMPLING_STEPS = flags.DEFINE_multi_integer("sampling_steps", [16], "Network calls; may be given more than once.")
_SAMPLER = flags.DEFINE_string("sampler", "ddpm", "As for sample.py.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls of each; 0 only compiles.", lower_bound=0)
_PROFILE = flags.DEFINE_string("profile", None, "Folder for a trace of three training steps (jax.profiler).")
_OUTPUT = flags.DEFINE_string("output", "runs/benchmarks/speed.json", "The report.")


def main(_) -> None:
    if unknown := set(_MODELS.value) - set(VDT_VARIANTS):
        raise UserError(f"models must be among {', '.join(VDT_VARIANTS)}, got {', '.join(sorted(unknown))}")
    rows = []
    for name in _MODELS.value:
        model = VDT(**VDT_VARIANTS[name], dtype=_DTYPE.value, unroll=_UNROLL.value, remat=_REMAT.value)
        rows.append({"what": f"{name} training", **training_row(model)})
        if _REPEATS.value:
            rows += [{"what": f"{name}, {n} steps", **sampling_row(model, n)} for n in _SAMPLING_STEPS.value]
    report(_OUTPUT.value, rows)


def training_row(model: VDT) -> dict[str, Any]:
    """One training step, its state donated as in train.py."""
    optimizer = make_optimizer(make_learning_rate(1e-4, 0, 1, "constant"))
    diffusion = make_diffusion(learn_sigma=model.learn_sigma)
    init = functools.partial(init_state, model, optimizer)
    video = np.random.default_rng(0).standard_normal((_BATCH_SIZE.value, *model.video_shape), np.float32)
    batch = {"video": jax.device_put(video), "labels": jax.numpy.zeros(len(video), int)}
    step = jax.jit(make_train_step(model, diffusion, optimizer), donate_argnums=0)
    start = time.perf_counter()
    compiled = step.lower(jax.eval_shape(init, jax.random.key(0)), batch, jax.random.key(1)).compile()
    compile_seconds = time.perf_counter() - start
    row = {"batch": _BATCH_SIZE.value, "dtype": _DTYPE.value, "compile": f"{compile_seconds:.1f} s"}
    if not _REPEATS.value:
        return row | {"memory": counted_memory(compiled)}
    state = jax.jit(init)(jax.random.key(0))

    def one() -> None:
        nonlocal state
        state, metrics = compiled(state, batch, jax.random.key(1))
        jax.block_until_ready(metrics)

    (timing,) = timed(one, repeats=_REPEATS.value)
    if _PROFILE.value:
        with jax.profiler.trace(_PROFILE.value):
            for _ in range(3):
                one()
    rate = _BATCH_SIZE.value / timing.median
    share = utilisation(model, _BATCH_SIZE.value, jax.devices()[0].device_kind, 1, 1 / timing.median)
    return row | {
        "time": timing,
        "samples/s": f"{rate:.4g}",
        "TFLOP/s": f"{training_flops(model) * rate / 1e12:.3g}",
        "MFU": "-" if share is None else f"{share:.1%}",
        "memory": counted_memory(compiled),
    }


def sampling_row(model: VDT, num_steps: int) -> dict[str, Any]:
    """Interpolation from noise to samples."""
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, *model.video_shape), np.float32), np.zeros(1))[
        "params"
    ]
    diffusion = make_diffusion(timestep_respacing=str(num_steps), learn_sigma=model.learn_sigma)
    numbers = range(_BATCH_SIZE.value)
    clean = np.random.default_rng(0).standard_normal((len(numbers), *model.video_shape), np.float32)
    mask, keys = task_masks(0, numbers, "interpolation", model), sample_keys(0, numbers)

    def one() -> None:
        jax.block_until_ready(generate_on_devices(model, params, diffusion, clean, mask, keys, sampler=_SAMPLER.value))

    start = time.perf_counter()
    one()
    first = time.perf_counter() - start
    (timing,) = timed(one, repeats=_REPEATS.value)
    rate = _BATCH_SIZE.value / timing.median
    return {
        "batch": _BATCH_SIZE.value,
        "dtype": _DTYPE.value,
        "compile": f"{max(first - timing.median, 0):.1f} s",
        "time": timing,
        "samples/s": f"{rate:.4g}",
        "TFLOP/s": f"{num_steps * forward_flops(model) * rate / 1e12:.3g}",
        "MFU": "-",
        "memory": "-",
    }


if __name__ == "__main__":
    cli.run(main)
