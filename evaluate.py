"""Measure a checkpoint, task by task, beside baselines.

    python evaluate.py --checkpoint=runs/digits --output=runs/digits/evaluation

Writes report.json, and index.html with looping GIFs: given | sample | truth.
"""

import json
from pathlib import Path

import jax
import numpy as np
from absl import flags

from vdt_jax import cli
from vdt_jax.data import make_source
from vdt_jax.errors import UserError
from vdt_jax.generate import generate, load, sample_keys, task_masks
from vdt_jax.masks import TASKS
from vdt_jax.metrics.baselines import BASELINES
from vdt_jax.metrics.frames import psnr, ssim
from vdt_jax.pages import Example, Section, table_text, write_comparison, write_page
from vdt_jax.video import to_float

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A working directory of train.py, or a converted folder.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the report and its page.")
_TASKS = flags.DEFINE_list("tasks", list(TASKS), "Tasks to measure.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 16, "Held-out clips a task.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Clips sampled at once.")
_STEPS = flags.DEFINE_integer("steps", 50, "Sampling steps.")
_SEED = flags.DEFINE_integer("seed", 0, "Of noise and masks.")
_SHOWN = flags.DEFINE_integer("shown", 4, "Clips a task on the page.")


def main(_) -> None:
    if _CHECKPOINT.value is None or _OUTPUT.value is None:
        raise UserError("say what to measure and where to write: --checkpoint=runs/NAME --output=FOLDER")
    cli.quiet_start()
    loaded = load(_CHECKPOINT.value)
    diffusion = loaded.diffusion(_STEPS.value)
    source = make_source(loaded.config["data"], loaded.model.video_shape, "held_out")
    num_clips = min(_NUM_CLIPS.value, len(source))
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)

    report, sections = {}, []
    for task in _TASKS.value:
        scores: dict[str, list[np.ndarray]] = {}
        for first in range(0, num_clips, _BATCH_SIZE.value):
            numbers = range(first, min(first + _BATCH_SIZE.value, num_clips))
            clean = to_float(np.stack([source[number] for number in numbers]))
            mask = np.asarray(task_masks(_SEED.value, numbers, task, loaded.model))
            keys = sample_keys(_SEED.value, numbers)
            samples = np.asarray(generate(loaded.model, loaded.params, diffusion, clean, mask, keys))
            candidates = {"model": samples} | {name: baseline(clean, mask) for name, baseline in BASELINES.items()}
            for name, video in candidates.items():
                scores.setdefault(f"{name} PSNR", []).append(np.asarray(psnr(video, clean, mask)))
                scores.setdefault(f"{name} SSIM", []).append(np.asarray(ssim(video, clean, mask)))
            for number in range(first, min(_SHOWN.value, numbers.stop)):
                write_comparison(output / f"{task}_{number}", clean[number], mask[number], [samples[number]])
        report[task] = {name: round(float(np.concatenate(values).mean()), 4) for name, values in scores.items()}
        print(f"{task}: {report[task]}", flush=True)
        shown = [Example(f"{task}_{n}.gif", f"clip {n}") for n in range(min(_SHOWN.value, num_clips))]
        sections.append(Section(task, f"python sample.py --checkpoint={_CHECKPOINT.value} --task={task}", shown))

    columns = ["task", *next(iter(report.values()))]
    rows = [[task, *(f"{value:.2f}" for value in values.values())] for task, values in report.items()]
    print(table_text(columns, rows))
    protocol = {
        "checkpoint": _CHECKPOINT.value,
        "data": loaded.config["data"],
        "clips": num_clips,
        "video_shape": loaded.model.video_shape,
        "sampler": "ddpm",
        "steps": _STEPS.value,
        "seed": _SEED.value,
        "positions": "generated only",
        "jax": jax.__version__,
    }
    (output / "report.json").write_text(json.dumps({"protocol": protocol, "tasks": report}, indent=2) + "\n")
    introduction = (
        f"Given | sample | truth, violet where the model generates. PSNR in dB and SSIM on the generated positions of "
        f"{num_clips} held-out clips, {_STEPS.value} steps."
    )
    write_page(output / "index.html", "VDT samples", introduction, columns, rows, sections)
    print(f"page: {output / 'index.html'}")


if __name__ == "__main__":
    cli.run(main)
