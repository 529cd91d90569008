"""What the choices of a recipe do: arms of about equal compute, several seeds, intervals. Results: docs/study.md.

    python study/study.py --output=runs/study
    python study/study.py --output=runs/study --arms=ours --seeds=0       # one training, in a process of its own

tasks        one model for all tasks, against one model for each task with a seventh of the steps
mixture      our mask mixture and normalised loss, against the official mixture and loss
masks        a model trained with masks, against one trained without that is given its frames by RePaint
pretraining  half of the compute on single frames first, against all of it on clips
objective    rectified flow (v, logit-normal times), against the cosine schedule and x_start
path         the straight path of rectified flow alone, against the cosine schedule
end          the linear schedule rescaled to zero terminal SNR, against the linear schedule
augmentation noise on given frames in training, against none; also over videos extended by 200 frames
optimizer    Muon at twice AdamW's learning rate, against AdamW
time         the same, against AdamW with a tenth more steps
low rate, high rate, AdamW's rate   half and twice Muon's learning rate, and twice AdamW's, against the rate above

Our own arm is one side of most. The results of an arm and seed are kept in a file: re-run the
command to resume. Tables and plots (these need matplotlib, extra `bench`) are made when both arms of a question are
there. --smoke runs all of it with very few steps.
"""

import datetime
import json
import platform
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
from drift import MEASURES, NUM_CLIPS, NUM_NEW, measure_drift
from intervals import (
    MAX_SEEDS,
    answered,
    arms_table,
    differences_table,
    draw,
    draw_drift,
    draw_samples,
    drift_table,
    with_means,
)

from vdt_jax import cli
from vdt_jax.diffusion.masks import TASKS
from vdt_jax.errors import UserError
from vdt_jax.files import atomic_write, differing
from vdt_jax.models.vdt import VDT
from vdt_jax.progress import progress
from vdt_jax.video import to_uint8

_OUTPUT = flags.DEFINE_string("output", "runs/study", "Folder for the results of each arm and seed, and for tables.")
_DATA = flags.DEFINE_enum("data", "digits", DATASETS, "Dataset.")
_DIGITS = flags.DEFINE_string("digits", None, "For --data=mnist, the file of digits: see configs/pixels.py.")
_ARMS = flags.DEFINE_list("arms", list(ARMS), "Arms to train now.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of initialisation, data order, masks and noise.")
_STEPS = flags.DEFINE_integer("steps", 1750, "Training steps of an arm, all of its models together.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 64, "Held-out clips per task.")
_SMOKE = flags.DEFINE_bool("smoke", False, "A tiny model, 14 steps, two clips: a smoke test; its numbers mean nothing.")
_SHOWN = 4  # clips whose samples are kept


def main(_) -> None:
    if unknown := set(_ARMS.value) - ARMS.keys():
        raise UserError(f"arms must be among {', '.join(ARMS)}, got '{min(unknown)}'")
    if not _SEEDS.value or not set(_SEEDS.value) <= {str(seed) for seed in range(MAX_SEEDS)}:
        raise UserError(f"seeds must be numbers from 0 to {MAX_SEEDS - 1}, got {','.join(_SEEDS.value) or 'none'}")
    settings = make_settings()
    cli.quiet_start()
    folder, shape = Path(_OUTPUT.value), VDT(**settings["model"]).video_shape
    folder.mkdir(parents=True, exist_ok=True)
    check_settings(folder, settings)
    clean = held_out(_DATA.value, _DIGITS.value, shape, settings["num_clips"])
    with progress("study", len(_ARMS.value) * len(_SEEDS.value), unit="run") as update:
        for name in _ARMS.value:
            for seed in map(int, _SEEDS.value):
                if not (path := run_file(folder, name, seed)).is_file():
                    run_arm(path, name, seed, settings, clean)
                update(1)
    write_results(folder, settings, clean)


def make_settings() -> dict[str, Any]:
    """All that the numbers of a run depend on, but for its arm and seed."""
    steps, num_clips, num_train = (14, 2, 16) if _SMOKE.value else (_STEPS.value, _NUM_CLIPS.value, POOL)
    if steps < len(TASKS):
        raise UserError(f"steps must be >= {len(TASKS)}, one for the model of each task, got {steps}")
    data, sizes = DATASETS[_DATA.value]
    return {
        "data": data,
        "steps": steps,
        "num_clips": num_clips,
        "num_train": num_train,
        "model": MODEL | sizes | (SMOKE if _SMOKE.value else {}),
        "diffusion": DIFFUSION,
        "batch_size": BATCH_SIZE,
        "learning_rate": PEAK,
        "noise_shift": NOISE_SHIFT,
        "sampling_steps": SAMPLING_STEPS,
        "resamplings": RESAMPLINGS,
        "drift": {"num_new": 10, "num_clips": 2} if _SMOKE.value else {"num_new": NUM_NEW, "num_clips": NUM_CLIPS},
    }


def run_arm(path: Path, name: str, seed: int, settings: dict[str, Any], clean: np.ndarray) -> None:
    """Trains and measures an arm, and writes its values to `path` and its samples beside it."""
    sizes, started = settings["model"], time.monotonic()
    clips = pool(_DATA.value, _DIGITS.value, VDT(**sizes).video_shape, settings["num_train"])
    params = jax.block_until_ready(train_arm(ARMS[name], sizes, settings["steps"], clips, seed))
    trained = time.monotonic()
    values, videos = measure(ARMS[name], sizes, params, clean)
    drift = measure_drift(ARMS[name], sizes, params[0], **settings["drift"]) if _DATA.value == "digits" else {}
    np.savez_compressed(path.with_suffix(".npz"), **{k: v[:_SHOWN] for k, v in videos.items()})
    seconds = {"training": round(trained - started), "measuring": round(time.monotonic() - trained)}
    environment = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    run = {"settings": settings, "values": values, "drift": drift, "seconds": seconds, "environment": environment}
    atomic_write(path, json.dumps(run, indent=2) + "\n")


def run_file(folder: Path, arm: str, seed: int) -> Path:
    """The file of a run's values."""
    return folder / f"{arm.replace(' ', '_')}_{seed}.json"


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raises UserError where the folder has a run with other settings: the arms would not be comparable."""
    for path in sorted(folder.glob("*.json")):
        if changed := differing(json.loads(path.read_text())["settings"], settings):
            raise UserError(f"{path} was made with other settings, {changed}: choose another output, or delete it")


def write_results(folder: Path, settings: dict[str, Any], clean: np.ndarray) -> None:
    """Writes tables and plots of all runs in the folder, for the questions that they answer."""
    check_settings(folder, settings)  # another process may have written meanwhile
    files = {arm: {seed: run_file(folder, arm, seed) for seed in range(MAX_SEEDS)} for arm in ARMS}
    files = {arm: {seed: file for seed, file in found.items() if file.is_file()} for arm, found in files.items()}
    read = {arm: {seed: json.loads(file.read_text()) for seed, file in found.items()} for arm, found in files.items()}
    runs = {arm: {seed: with_means(run["values"]) for seed, run in found.items()} for arm, found in read.items()}
    drifts = {arm: {seed: run["drift"] for seed, run in found.items() if run["drift"]} for arm, found in read.items()}
    if not (questions := answered(runs)):
        print(f"no table yet: no question has both of its arms in {folder}, with two seeds or more")
        return
    baselines = {name: with_means(values) for name, values in measure_baselines(settings["model"], clean).items()}
    parts = [arms_table(runs, baselines, name) for name in ("PSNR", "SSIM", "motion")]
    parts += [differences_table(runs, question) for question in questions]
    long = len(drifts["ours"]) > 1
    parts += [drift_table(drifts, measure) for measure in MEASURES] if long else []
    text = "\n\n".join(parts) + "\n"
    atomic_write(folder / "tables.md", text)
    print(text)
    shown = [np.load(min(found.values()).with_suffix(".npz")) for found in files.values() if found]
    for task in MEASURED:
        rows = [to_uint8(clean[0]), *(videos[task][0] for videos in shown)]
        draw_samples(rows, folder / f"{task.replace(' ', '_')}.png")
    try:
        draw(runs, folder / "differences.png")
        if long:
            draw_drift(drifts, folder / "drift.png")
    except ModuleNotFoundError:
        print("no plot: it needs matplotlib, pip install -e '.[bench]' -c constraints.txt")


if __name__ == "__main__":
    cli.run(main)
