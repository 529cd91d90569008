"""Start-up time: compilation against depth, from `python` to the first training step, and to the first sample.

    python benchmarks/startup.py

The blocks are scanned, so that a deep network compiles about as fast as a shallow one. A start is that of train.py or
of sample.py with the bundled model, in a process of its own, with a compilation cache that is empty and then with the
cache that this left. Beside the time on the clock is the CPU time, which other work changes less.
"""

import functools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from measure import report

from vdt_jax import cli
from vdt_jax.diffusion.gaussian import make_diffusion
from vdt_jax.models.vdt import VDT
from vdt_jax.training.optimizer import make_learning_rate, make_optimizer
from vdt_jax.training.step import init_state, make_train_step

_DEPTHS = flags.DEFINE_multi_integer("depth", [4, 28, 112], "Depths to compile a training step at.")
_WIDTH = flags.DEFINE_integer("hidden_size", 384, "Width of the networks, whose clips are 16 x 32x32 latents.")
_CONFIG = flags.DEFINE_string("config", "configs/default.py", "The recipe that is started.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Compilations of each depth.")
_OUTPUT = flags.DEFINE_string("output", "runs/benchmarks/startup.json", "The report.")
_ROOT = Path(__file__).parent.parent


def main(_) -> None:
    rows = []
    compile_seconds(1)  # what is done once per process
    for depth in _DEPTHS.value:
        taken = sorted(compile_seconds(depth) for _ in range(_REPEATS.value))
        median = taken[len(taken) // 2]
        rows.append({"what": f"compile, depth {depth}", "seconds": f"{median:.2f} ({taken[0]:.2f} to {taken[-1]:.2f})"})
    with tempfile.TemporaryDirectory() as folder:
        for name, command in starts(folder).items():
            for what in ("cold", "warm"):
                rows.append({"what": f"{what} start to {name}", "seconds": start_seconds(command, folder)})
    report(_OUTPUT.value, rows)


def compile_seconds(depth: int) -> float:
    """Seconds to lower and compile a training step, without a cache."""
    model = VDT(hidden_size=_WIDTH.value, depth=depth, num_heads=6, remat="matmuls")
    optimizer = make_optimizer(make_learning_rate(1e-4, 0, 1, "constant"))
    state = jax.eval_shape(functools.partial(init_state, model, optimizer), jax.random.key(0))
    batch = {
        "video": jax.ShapeDtypeStruct((1, *model.video_shape), np.float32),
        "labels": jax.ShapeDtypeStruct((1,), np.int32),
    }
    step = jax.jit(make_train_step(model, make_diffusion(), optimizer), donate_argnums=0)
    start = time.perf_counter()
    step.lower(state, batch, jax.random.key(1)).compile()
    return time.perf_counter() - start


def starts(folder: str) -> dict[str, list[str]]:
    """The commands that are started, by what they end with."""
    train = ["train.py", f"--config={_CONFIG.value}", "--stop_after=1", "--config.batch_size=1"]
    train += ["--config.preview.every=0", f"--workdir={folder}/run"]
    return {
        "the end of step 1 and its checkpoint": train,
        "the first sample": ["sample.py", f"--output={folder}/sample.mp4"],
    }


def start_seconds(command: list[str], folder: str) -> str:
    """Seconds from `python` to the end of a command, on the clock and of the processor."""
    shutil.rmtree(f"{folder}/run", ignore_errors=True)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *command],
        cwd=_ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache", "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    taken, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{taken:.1f} ({processor:.1f} of the processor)"


if __name__ == "__main__":
    cli.run(main)
