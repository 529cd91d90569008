"""`accelerator.py --learn`: trains a recipe in calls of limited time, and returns its weights in small files.

    python benchmarks/accelerator.py --learn=moving_fashion_mnist --output=OUT   # re-run until it says `done`
    python benchmarks/accelerator.py --join=OUT --output=runs/learned            # a model folder of what came back

train.py is stopped by SIGTERM when a call's time is up, saves, and resumes in the next call. Until the last call the
learning rate does not decay (`total_steps` is out of reach); for the last one `total_steps` is set to what the time
that is left allows, so that its last fifth, the decay of the recipes, ends in time. The working directory must outlast
the calls; OUT holds only the results: `weights_N`, which are parts of at most 16 MiB of one safetensors file (EMA,
bfloat16), config.json, metrics.jsonl, table.txt and pictures.png.
"""

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from json_lines import read_lines

PART_BYTES = 16 << 20
ENDING = 120.0  # seconds of the last call that are kept for validation, images, and writing the weights
_SAVING = 30.0  # seconds that a save after SIGTERM may take
_OUT_OF_REACH = 10_000_000  # steps
_STOPPED = 75  # exit code of train.py after SIGTERM
_PICTURES = 7  # one of each task
_ROOT = Path(__file__).parent.parent


def main(arguments: argparse.Namespace, output: Path, deadline: float) -> int | str:
    """Trains, or joins weights; returns the exit code or an error for sys.exit."""
    if arguments.join:
        return join(Path(arguments.join), output / "model")
    if not (_ROOT / "configs" / f"{arguments.learn.partition(':')[0]}.py").is_file():
        names = ", ".join(sorted(path.stem for path in (_ROOT / "configs").glob("*.py") if path.stem != "default"))
        print(f"error: --learn must be a recipe of configs/, one of {names}, got {arguments.learn}", file=sys.stderr)
        return 2
    workdir = Path(arguments.workdir or f"runs/accelerator_{arguments.learn.replace(':', '_')}")
    spent = workdir / "seconds.json"
    used = json.loads(spent.read_text()) if spent.is_file() else 0.0
    left, here = 60 * arguments.minutes - used, deadline - time.monotonic()
    if left > 0:
        seconds, last = min(left, here), left <= here
        steps = reachable(workdir, seconds - min(ENDING, seconds / 3)) if last else _OUT_OF_REACH
        workdir.mkdir(parents=True, exist_ok=True)
        spent.write_text(json.dumps(used + seconds))  # a call that is killed counts whole
        start = time.monotonic()
        code = train(arguments, workdir, seconds - min(_SAVING, seconds / 3), steps)
        used += time.monotonic() - start
        spent.write_text(json.dumps(used))
        if code not in (0, _STOPPED):
            return f"error: train.py ended with exit code {code}"
        if not last:
            print(f"{used:.0f} s were used, {60 * arguments.minutes - used:.0f} s are left: re-run the command")
            return 0
    export(workdir, output)
    print(f"done: {output}")
    return 0


def train(arguments: argparse.Namespace, workdir: Path, seconds: float, steps: int) -> int:
    """Runs train.py to a step, or until the time is up; returns its exit code."""
    recipe, _, variant = arguments.learn.partition(":")
    command = [sys.executable, "train.py", f"--config=configs/{recipe}.py{variant and ':' + variant}"]
    command += [f"--workdir={workdir}", f"--config.total_steps={steps}", f"--config.validation.every={steps}"]
    command += [f"--config.preview.every={steps}", "--config.checkpoint_every=1000", "--config.keep_checkpoints=1"]
    command += arguments.train_flag
    print(f"for {seconds:.0f} s:", *command[1:], flush=True)
    run = subprocess.Popen(command, cwd=_ROOT)
    try:
        return run.wait(seconds)
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGTERM)  # it saves and exits
        return run.wait()


def reachable(workdir: Path, seconds: float) -> int:
    """The step that training reaches in this time, start-up included, by the median rate so far.

    Without a logged rate, as in a single call, it is out of reach: the learning rate then does not decay.
    """
    lines = read_lines(workdir / "metrics.jsonl")
    rates = [line["steps_per_second"] for line in lines if "steps_per_second" in line]
    if not rates:
        return _OUT_OF_REACH
    start = min(60.0, seconds / 4)
    return lines[-1]["step"] + max(1, math.floor(0.97 * float(np.median(rates)) * (seconds - start)))


def export(workdir: Path, output: Path) -> None:
    """Writes the newest EMA weights, the config, the metrics, a table and images."""
    import jax
    from ml_dtypes import bfloat16

    from vdt_jax.checkpoints import load_config, load_model
    from vdt_jax.distributed.mesh import path_name
    from vdt_jax.weights.safetensors_files import save_safetensors

    params = load_model(workdir)[1]
    named = {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    whole = output / "weights"
    save_safetensors(whole, {name: leaf.astype(bfloat16) for name, leaf in named.items()})
    data = whole.read_bytes()
    whole.unlink()
    for number, first in enumerate(range(0, len(data), PART_BYTES)):
        (output / f"weights_{number}").write_bytes(data[first : first + PART_BYTES])
    (output / "config.json").write_text(json.dumps(load_config(workdir), indent=2) + "\n")
    shutil.copyfile(workdir / "metrics.jsonl", output / "metrics.jsonl")
    (output / "table.txt").write_text(table(read_lines(workdir / "metrics.jsonl")))
    write_pictures(workdir, output / "pictures.png")


def table(lines: list[dict[str, Any]]) -> str:
    """The first, the middle and the last line of the metrics, a row for each value."""
    from vdt_jax.progress import table_text

    chosen = [lines[0], lines[len(lines) // 2], lines[-1]]
    names = dict.fromkeys(name for line in chosen for name in line if name != "step")
    rows = [[name, *(f"{line[name]:.4g}" if name in line else "-" for line in chosen)] for name in names]
    return table_text(["", *(f"step {line['step']}" for line in chosen)], rows) + "\n"


def write_pictures(workdir: Path, path: Path) -> None:
    """The first clip of each task of the last samples, one below the other."""
    from PIL import Image

    folders = sorted((workdir / "samples").glob("step_*"))
    images = [Image.open(file) for file in sorted(folders[-1].glob("*_0.png"))[:_PICTURES]] if folders else []
    if images:
        page = Image.new("RGB", (max(image.width for image in images), sum(image.height + 8 for image in images)))
        top = 0
        for image in images:
            page.paste(image, (0, top))
            top += image.height + 8
        page.save(path)


def join(folder: Path, model_folder: Path) -> int:
    """Writes the model folder of weights that came back in parts."""
    parts = sorted(folder.glob("weights_*"), key=lambda path: int(path.name.removeprefix("weights_")))
    if not parts:
        print(f"error: no weights_0 in {folder}: name the folder that --learn wrote", file=sys.stderr)
        return 2
    import jax

    from vdt_jax.checkpoints import load_config, save_model
    from vdt_jax.checkpoints.config import network_of
    from vdt_jax.distributed.mesh import path_name
    from vdt_jax.models.vdt import param_shapes
    from vdt_jax.weights.safetensors_files import load_safetensors

    model_folder.mkdir(parents=True, exist_ok=True)
    whole = model_folder / "joined.safetensors"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    config = load_config(folder)
    shapes: Any = param_shapes(network_of(config["model"]))
    named = load_safetensors(whole)
    whole.unlink()
    save_model(
        model_folder,
        config,
        jax.tree_util.tree_map_with_path(lambda path, leaf: np.asarray(named[path_name(path)], leaf.dtype), shapes),
    )
    print(f"model: {model_folder}")
    return 0
