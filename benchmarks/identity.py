"""Which digit each frame of a sample shows, and whether it stays the same.

    python benchmarks/identity.py

PSNR says little of samples with more than one right continuation. Here each frame is compared with every glyph at every
place and with an empty frame; the nearest counts. For a model of moving_digits with one digit.
"""

from typing import Any

from absl import flags
from glyphs import consistency
from measure import report

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.data import take
from vdt_jax.inference.functional import sample_keys
from vdt_jax.inference.pipeline import Pipeline

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "As for sample.py.")
_TASKS = flags.DEFINE_list("tasks", ["unconditional", "single_frame", "predict", "interpolation"], "As evaluate.py's.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 32, "Samples a task.")
_RESPACING = flags.DEFINE_string("timestep_respacing", "25", "As for sample.py.")
_SAMPLER = flags.DEFINE_string("sampler", "ddpm", "As for sample.py.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Scale of guidance where the model is given the class.")
_OUTPUT = flags.DEFINE_string("output", "runs/benchmarks/identity.json", "The report.")


def main(_) -> None:
    cli.quiet_start()
    pipe, numbers = Pipeline.load(_CHECKPOINT.value), range(_NUM_CLIPS.value)
    diffusion, clips, keys = pipe.diffusion(_RESPACING.value), take(pipe.source(), numbers), sample_keys(0, numbers)
    rows: list[dict[str, Any]] = [{"task": "(truth)", "class": "-"} | consistency(clips["video"])]
    classes = {"not given": {}}
    if pipe.model.num_classes > 1:
        classes["given"] = {"labels": clips["labels"], "guidance": _GUIDANCE.value}
    for task in _TASKS.value:
        mask = pipe.task_masks(task, numbers)
        for name, options in classes.items():
            samples, _ = pipe.complete(
                clips["video"], mask, keys, diffusion=diffusion, sampler=_SAMPLER.value, **options
            )
            rows.append({"task": task, "class": name} | consistency(samples))
            print(rows[-1], flush=True)
    report(_OUTPUT.value, rows)


if __name__ == "__main__":
    cli.run(main)
