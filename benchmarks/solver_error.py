"""The distance of samplers from the solution of the probability-flow ODE, against their number of network calls.

    python benchmarks/solver_error.py --plot=docs/images/solver_error.png

The reference solution is ddim with 1,000 steps from the same noise; the distance is the root mean square difference at
generated positions, on the scale of pixels in [-1, 1], over held-out clips. A model with classes is given none. --plot
needs matplotlib (extra `bench`).
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from measure import report

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.data import take
from vdt_jax.diffusion.samplers import Problem, ddim, ddpm, dpm_solver_pp, samples_of, unipc
from vdt_jax.inference.functional import sample_keys
from vdt_jax.inference.pipeline import Pipeline

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "As for sample.py.")
_TASK = flags.DEFINE_string("task", "predict", "As for sample.py.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 8, "Held-out clips.")
_STEPS = flags.DEFINE_multi_integer("steps", [5, 10, 20, 50, 100], "Network calls; may be given more than once.")
_REFERENCE = flags.DEFINE_integer("reference", 1000, "Steps of ddim for the reference solution.")
_PLOT = flags.DEFINE_string("plot", None, "Write a plot of the table to this file.")
_OUTPUT = flags.DEFINE_string("output", "runs/benchmarks/solver_error.json", "The report.")

# Each solver with all spacings of its steps; ddpm, which solves a different equation, with one.
_SAMPLERS = {
    "ddim": ddim,
    "dpm_solver_pp": dpm_solver_pp,
    "unipc": unipc,
    "unipc, lower_order_final": functools.partial(unipc, lower_order_final=True),
    "unipc, order=3": functools.partial(unipc, order=3),
}
_SPACINGS = {"even": "", "trailing": "trailing", "log-SNR": "logsnr"}


def main(_) -> None:
    cli.quiet_start()
    pipe, numbers = Pipeline.load(_CHECKPOINT.value), range(_NUM_CLIPS.value)
    clean, keys = jnp.asarray(take(pipe.source(), numbers)["video"]), sample_keys(0, numbers)
    mask = pipe.task_masks(_TASK.value, numbers)
    model = pipe.model.clone(unroll=1)  # it compiles in a fraction of the time

    # Only the network is compiled: a program for each sampler and number of steps would take hours.
    network = jax.jit(lambda x_t, timesteps: model.apply({"params": pipe.params}, x_t, timesteps))

    def solve(sampler: Any, respacing: str) -> np.ndarray:
        problem = Problem(pipe.diffusion(respacing), network, keys, clean, mask)
        state, step = sampler(problem)
        for i in range(problem.num_steps):
            state = step(i, state)
        return np.asarray(samples_of(state))

    solution, generated = solve(ddim, str(_REFERENCE.value)), np.broadcast_to(np.asarray(mask) > 0.5, clean.shape)
    cells = [(name, spacing) for name in _SAMPLERS for spacing in _SPACINGS] + [("ddpm", "even")]
    rows = []
    for name, spacing in cells:
        row = {"sampler": name, "spacing": spacing}
        for steps in _STEPS.value:
            samples = solve(_SAMPLERS.get(name, ddpm), f"{_SPACINGS[spacing]}{steps}")
            row[str(steps)] = float(f"{np.sqrt(np.mean((samples - solution)[generated] ** 2)):.3g}")
        rows.append(row)
        print(row, flush=True)
    report(_OUTPUT.value, rows)
    if _PLOT.value:
        draw(rows, Path(_PLOT.value))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A line for each sampler, with its best spacing in solid."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    styles = dict(zip(_SPACINGS, ("--", ":", "-"), strict=True))
    colours = {name: f"C{i}" for i, name in enumerate([*_SAMPLERS, "ddpm"])}
    for row in rows:
        values = [row[str(steps)] for steps in _STEPS.value]
        label = f"{row['sampler']}, {row['spacing']}"
        axes.plot(
            _STEPS.value, values, styles[row["spacing"]], color=colours[row["sampler"]], marker="o", ms=3, label=label
        )
    axes.set(
        xscale="log", yscale="log", xlabel="network calls", ylabel=f"distance to ddim with {_REFERENCE.value} steps"
    )
    axes.set_xticks(_STEPS.value, [str(steps) for steps in _STEPS.value])
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=7, handlelength=3.5, loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    cli.run(main)
