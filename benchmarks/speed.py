"""Training steps and sampling: time, memory and, if the peak of the device is known, model FLOPs utilisation.

    python benchmarks/speed.py --models=VDT-S/2 --batch_size=1

Random latents of 16 x 32x32. The training step includes AdamW, the EMA and drawing masks. Sampling is interpolation.
Compile times are without a cache. --repeats=0 compiles the training step without running it, to see by the compiler's
count whether it fits.
"""

from collections.abc import Callable

import jax
from absl import flags
from measure import report
from work import sampling_row, training_row

from vdt_jax import cli
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import REMAT, VDT, VDT_VARIANTS
from vdt_jax.training.memory import keep_freed_memory

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
    keep_freed_memory()  # as train.py does
    rows, batch_size, repeats = [], _BATCH_SIZE.value, _REPEATS.value
    for name in _MODELS.value:
        model = VDT(**VDT_VARIANTS[name], dtype=_DTYPE.value, unroll=_UNROLL.value, remat=_REMAT.value)
        trace = trace_steps if _PROFILE.value else None
        rows.append({"what": f"{name} training", **training_row(model, batch_size, repeats, trace)})
        for steps in _SAMPLING_STEPS.value if repeats else ():
            row = sampling_row(model, batch_size, steps, _SAMPLER.value, repeats)
            rows.append({"what": f"{name}, {steps} steps", **row})
    report(_OUTPUT.value, rows)


def trace_steps(one: Callable[[], None]) -> None:
    """Writes a trace of three steps."""
    with jax.profiler.trace(_PROFILE.value):
        for _ in range(3):
            one()


if __name__ == "__main__":
    cli.run(main)
