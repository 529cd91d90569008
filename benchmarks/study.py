"""What the masks do: four questions, arms of equal compute, several seeds, intervals. docs/study.md has the results.

    python benchmarks/study.py --output=runs/study
    python benchmarks/study.py --output=runs/study --arms=ours --seeds=0       # one training, in a process of its own

tasks        one model for all tasks, against one model for each task with a seventh of the steps
mixture      our mask mixture and normalised loss, against the official mixture and loss
masks        a model trained with masks, against one trained without that is given its frames by RePaint
pretraining  half of the arithmetic on single frames first, against all of it on clips

Five arms answer them, since our own is a side of each. What an arm and seed gave is kept in a file: the same command
goes on where it was stopped, and tables and plots (these need matplotlib, extra `bench`) are made when all is there.
--smoke runs all of it with next to no steps.
"""

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from arms import (
    ARMS,
    BATCH_SIZE,
    DATASETS,
    DIFFUSION,
    MEASURED,
    MODEL,
    NOISE_SHIFT,
    PEAK,
    POOL,
    RESAMPLINGS,
    SAMPLING_STEPS,
    SMOKE,
    held_out,
    measure,
    measure_baselines,
    pool,
    train_arm,
)
from intervals import MAX_SEEDS, answered, arms_table, differences_table, draw, draw_samples, with_means
from measure import environment

from vdt_jax import cli
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.errors import UserError
from vdt_jax.models.vdt import VDT
from vdt_jax.progress import progress
from vdt_jax.video import to_uint8

_OUTPUT = flags.DEFINE_string("output", "runs/study", "Folder for what each arm and seed gave, and for the tables.")
_DATA = flags.DEFINE_enum("data", "digits", DATASETS, "What is learned.")
_DIGITS = flags.DEFINE_string("digits", None, "For --data=mnist, the file of digits: see configs/moving_mnist.py.")
_ARMS = flags.DEFINE_list("arms", list(ARMS), "Which to train now.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of initialisation, data order, masks and noise.")
_STEPS = flags.DEFINE_integer("steps", 1750, "Training steps of an arm, all of its models together.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 64, "Held-out clips a task.")
_SMOKE = flags.DEFINE_bool(
    "smoke", False, "A tiny model, 14 steps, two clips: to see that it runs. Its numbers mean nothing."
)
_SHOWN = 4  # clips whose samples are kept


def main(_) -> None:
    if unknown := set(_ARMS.value) - ARMS.keys():
        raise UserError(f"no arm '{min(unknown)}': choose from {', '.join(ARMS)}")
    if not _SEEDS.value or not set(_SEEDS.value) <= {str(seed) for seed in range(MAX_SEEDS)}:
        raise UserError(f"--seeds={','.join(_SEEDS.value)} cannot be: numbers from 0 to {MAX_SEEDS - 1}")
    steps, num_clips, num_train = (14, 2, 16) if _SMOKE.value else (_STEPS.value, _NUM_CLIPS.value, POOL)
    if steps < len(TASKS):
        raise UserError(f"--steps={steps} cannot be: at least {len(TASKS)}, one for each task's model")
    cli.quiet_start()
    sizes = MODEL | DATASETS[_DATA.value][1] | (SMOKE if _SMOKE.value else {})
    settings = {"data": DATASETS[_DATA.value][0], "steps": steps, "num_clips": num_clips, "num_train": num_train}
    settings |= {"model": sizes, "diffusion": DIFFUSION, "batch_size": BATCH_SIZE, "learning_rate": PEAK}
    settings |= {"noise_shift": NOISE_SHIFT, "sampling_steps": SAMPLING_STEPS, "resamplings": RESAMPLINGS}
    settings = json.loads(json.dumps(settings))
    folder, shape = Path(_OUTPUT.value), VDT(**sizes).video_shape
    folder.mkdir(parents=True, exist_ok=True)
    check_settings(folder, settings)
    clean = held_out(_DATA.value, _DIGITS.value, shape, num_clips)
    with progress("study", len(_ARMS.value) * len(_SEEDS.value), unit="run") as update:
        for name in _ARMS.value:
            for seed in map(int, _SEEDS.value):
                path = run_file(folder, name, seed)
                if not path.is_file():
                    started = time.monotonic()
                    clips = pool(_DATA.value, _DIGITS.value, shape, num_train)
                    params = jax.block_until_ready(train_arm(ARMS[name], sizes, steps, clips, seed))
                    trained = time.monotonic()
                    values, videos = measure(ARMS[name], sizes, params, clean)
                    np.savez_compressed(path.with_suffix(".npz"), **{k: v[:_SHOWN] for k, v in videos.items()})
                    seconds = {"training": round(trained - started), "measuring": round(time.monotonic() - trained)}
                    run = {"settings": settings, "values": values, "seconds": seconds, "environment": environment()}
                    unfinished = path.with_suffix(".tmp")
                    unfinished.write_text(json.dumps(run, indent=2) + "\n")
                    unfinished.replace(path)
                update(1)
    write_results(folder, settings, clean)


def run_file(folder: Path, arm: str, seed: int) -> Path:
    """Where a run's values are kept; its samples stand beside them."""
    return folder / f"{arm.replace(' ', '_')}_{seed}.json"


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raises UserError where the folder holds a run that was made otherwise: the arms would not be equals."""
    for path in sorted(folder.glob("*.json")):
        if json.loads(path.read_text())["settings"] != settings:
            raise UserError(f"{path} was made with other settings: choose another --output, or delete it")


def write_results(folder: Path, settings: dict[str, Any], clean: np.ndarray) -> None:
    """Tables and plots of all that is in the folder, for the questions that it answers."""
    check_settings(folder, settings)  # another process may have written meanwhile
    files = {arm: {seed: run_file(folder, arm, seed) for seed in range(MAX_SEEDS)} for arm in ARMS}
    files = {arm: {seed: file for seed, file in found.items() if file.is_file()} for arm, found in files.items()}
    runs = {
        arm: {seed: with_means(json.loads(file.read_text())["values"]) for seed, file in found.items()}
        for arm, found in files.items()
    }
    if not (questions := answered(runs)):
        print(f"no table yet: no question has both of its arms in {folder}, with two seeds or more")
        return
    baselines = {name: with_means(values) for name, values in measure_baselines(settings["model"], clean).items()}
    parts = [arms_table(runs, baselines, name) for name in ("PSNR", "SSIM", "motion")]
    parts += [differences_table(runs, question) for question in questions]
    text = "\n\n".join(parts) + "\n"
    (folder / "tables.md").write_text(text)
    print(text)
    shown = [np.load(min(found.values()).with_suffix(".npz")) for found in files.values() if found]
    for task in MEASURED:
        rows = [to_uint8(clean[0]), *(videos[task][0] for videos in shown)]
        draw_samples(rows, folder / f"{task.replace(' ', '_')}.png")
    try:
        draw(runs, folder / "differences.png")
    except ModuleNotFoundError:
        print("no plot: it needs matplotlib, pip install -e '.[bench]' -c constraints.txt")


if __name__ == "__main__":
    cli.run(main)
