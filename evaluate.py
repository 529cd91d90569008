"""Measure a checkpoint, task by task, beside baselines.

    python evaluate.py --checkpoint=demo --output=runs/evaluation

A model of latents needs --vae, and is measured in pixels. Writes report.json, and index.html with looping GIFs: given |
sample | truth.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.data import make_source, take
from vdt_jax.errors import UserError
from vdt_jax.generate import clip_shape, generate_clips, load, load_vae, sample_keys, task_masks
from vdt_jax.masks import TASKS
from vdt_jax.metrics.baselines import BASELINES
from vdt_jax.metrics.frames import psnr, ssim
from vdt_jax.pages import Example, Section, table_text, write_comparison, write_page

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "A working directory, a converted folder, or `demo`.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the report and its page.")
_TASKS = flags.DEFINE_list("tasks", list(TASKS), "Tasks to measure.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 16, "Held-out clips a task.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Clips sampled at once.")
_STEPS = flags.DEFINE_integer("steps", 50, "Sampling steps.")
_SEED = flags.DEFINE_integer("seed", 0, "Of noise and masks.")
_VAE = flags.DEFINE_string("vae", None, "Autoencoder of a model of latents, as for sample.py.")
_SHOWN = flags.DEFINE_integer("shown", 4, "Clips a task on the page.")

# Tasks that leave so much open that one sample says little: the page shows several.
_AMBIGUOUS = ("unconditional", "single_frame")
_SAMPLES_OF_AMBIGUOUS = 3


def main(_) -> None:
    if _OUTPUT.value is None:
        raise UserError("say where to write: --output=FOLDER")
    if _NUM_CLIPS.value < 1 or _BATCH_SIZE.value < 1:
        raise UserError(f"--num_clips={_NUM_CLIPS.value} and --batch_size={_BATCH_SIZE.value} must be at least 1")
    cli.quiet_start()
    loaded = load(_CHECKPOINT.value)
    diffusion = loaded.diffusion(_STEPS.value)
    vae = None if _VAE.value is None else load_vae(_VAE.value)
    shape = clip_shape(loaded.model, vae)
    source = make_source(loaded.config["data"], shape, "held_out")
    num_clips = min(_NUM_CLIPS.value, len(source))
    num_shown = min(_SHOWN.value, num_clips)
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)

    def sample(clean: np.ndarray, mask: Any, labels: np.ndarray, seed: int, numbers: range) -> Any:
        """The samples, and the mask over their pixels."""
        keys = sample_keys(seed, numbers)
        return generate_clips(loaded.model, loaded.params, diffusion, clean, mask, keys, vae=vae, labels=labels)

    report, sections = {}, []
    for task in _TASKS.value:
        scores: dict[str, list[np.ndarray]] = {}
        for first in range(0, num_clips, _BATCH_SIZE.value):
            numbers = range(first, min(first + _BATCH_SIZE.value, num_clips))
            batch = take(source, numbers)
            clean, labels = batch["video"], batch["labels"]
            drawn = task_masks(_SEED.value, numbers, task, loaded.model)
            samples, mask = sample(clean, drawn, labels, _SEED.value, numbers)
            candidates = {"model": samples}
            if not mask.all():  # where nothing is given there is nothing to copy
                candidates |= {name: baseline(clean, mask) for name, baseline in BASELINES.items()}
            for name, video in candidates.items():
                scores.setdefault(f"{name} PSNR", []).append(np.asarray(psnr(video, clean, mask)))
                scores.setdefault(f"{name} SSIM", []).append(np.asarray(ssim(video, clean, mask)))
            shown = min(num_shown - first, len(numbers))
            if shown > 0:
                shown_samples = [samples[:shown]]
                for seed in range(1, _SAMPLES_OF_AMBIGUOUS if task in _AMBIGUOUS else 1):
                    more, _ = sample(clean[:shown], drawn[:shown], labels[:shown], _SEED.value + seed, numbers[:shown])
                    shown_samples.append(more)
                for i in range(shown):
                    stem = output / f"{task}_{numbers[i]}"
                    write_comparison(stem, clean[i], mask[i], [samples[i] for samples in shown_samples])
        report[task] = {name: round(float(np.concatenate(values).mean()), 4) for name, values in scores.items()}
        print(f"{task}: PSNR {report[task]['model PSNR']:.2f} dB, SSIM {report[task]['model SSIM']:.3f}", flush=True)
        vae_flag = f"--vae={_VAE.value} " if _VAE.value else ""
        command = (
            f"python sample.py --checkpoint={_CHECKPOINT.value} {vae_flag}--task={task} --num_samples={num_shown} "
            f"--steps={_STEPS.value} --seed={_SEED.value} --output={task}.gif"
        )
        caption = "given | samples of seeds 0, 1, 2 | truth" if task in _AMBIGUOUS else "given | sample | truth"
        examples = [Example(f"{task}_{n}.gif", f"clip {n}: {caption}") for n in range(num_shown)]
        sections.append(Section(task, command, examples))

    names = [f"{name} {metric}" for name in ("model", *BASELINES) for metric in ("PSNR", "SSIM")]
    rows = [
        [task, *(f"{scores[name]:.2f}" if name in scores else "-" for name in names)] for task, scores in report.items()
    ]
    print(table_text(["task", *names], rows))
    protocol = {
        "checkpoint": _CHECKPOINT.value,
        "vae": _VAE.value,
        "data": loaded.config["data"],
        "clips": num_clips,
        "video_shape": shape,
        "sampler": "ddpm",
        "steps": _STEPS.value,
        "seed": _SEED.value,
        "positions": "generated only",
        "jax": jax.__version__,
    }
    (output / "report.json").write_text(json.dumps({"protocol": protocol, "tasks": report}, indent=2) + "\n")
    introduction = (
        "One model, seven tasks. Violet is what the model has to generate. PSNR (dB) and SSIM are taken on the "
        f"generated positions of {num_clips} held-out clips, {_STEPS.value} sampling steps."
    )
    write_page(
        output / "index.html", "VDT: one transformer, seven video tasks", introduction, ["task", *names], rows, sections
    )
    print(f"page: {output / 'index.html'}")


if __name__ == "__main__":
    cli.run(main)
