"""Whether a digit stays the digit that it is: which one each frame of a sample shows.

    PYTHONPATH=. python benchmarks/identity.py

PSNR says little of samples that may go on in more than one way. Here each frame is held against every glyph at every
place and against nothing, and shows what is nearest. For a model of moving_digits with one digit.
"""

from typing import Any

from absl import flags
from glyphs import consistency
from measure import report

from vdt_jax import cli
from vdt_jax.checkpoints import DEMO
from vdt_jax.data import make_source, take
from vdt_jax.inference.functional import generate_on_devices, load, sample_keys, task_masks

_CHECKPOINT = flags.DEFINE_string("checkpoint", DEMO, "As for sample.py.")
_TASKS = flags.DEFINE_list("tasks", ["unconditional", "single_frame", "predict", "interpolation"], "As evaluate.py's.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 32, "Samples a task.")
_RESPACING = flags.DEFINE_string("timestep_respacing", "25", "As for sample.py.")
_SAMPLER = flags.DEFINE_string("sampler", "ddpm", "As for sample.py.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Scale of guidance on the classes that are told.")
_OUTPUT = flags.DEFINE_string("output", "runs/benchmarks/identity.json", "The report.")


def main(_) -> None:
    cli.quiet_start()
    loaded, numbers = load(_CHECKPOINT.value), range(_NUM_CLIPS.value)
    clips = take(make_source(loaded.config["data"], loaded.model.video_shape, "held_out"), numbers)
    rows: list[dict[str, Any]] = [{"task": "(truth)", "class": "-"} | consistency(clips["video"])]
    for task in _TASKS.value:
        mask = task_masks(0, numbers, task, loaded.model)
        for told in (False, True)[: 1 + (loaded.model.num_classes > 1)]:
            samples = generate_on_devices(
                *loaded[:2],
                loaded.diffusion(_RESPACING.value),
                clips["video"],
                mask,
                sample_keys(0, numbers),
                sampler=_SAMPLER.value,
                labels=clips["labels"] if told else None,
                guidance=_GUIDANCE.value if told else None,
            )
            rows.append({"task": task, "class": "told" if told else "not told"} | consistency(samples))
            print(rows[-1], flush=True)
    report(_OUTPUT.value, rows)


if __name__ == "__main__":
    cli.run(main)
