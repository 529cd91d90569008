"""What the masks do: four questions, arms of equal compute, several seeds, intervals. docs/study.md has the results.

    python benchmarks/study.py --question=tasks --output=runs/study

tasks        one model for all tasks, against one model for each task with a seventh of the steps
mixture      our mask mixture and normalised loss, against the official mixture and loss
masks        a model trained with masks, against one trained without that is given its frames by RePaint
pretraining  half of the steps on single frames first, against all of them on clips

Digits of 32x32 (moving_digits) by default, small models, and the whole training one compiled program. Each arm and seed
is kept in a file: the same command goes on where it was stopped. --smoke runs all of it with next to no steps.
"""

import json
import time
from pathlib import Path

from absl import flags
from arms import (
    BATCH_SIZE,
    DIFFUSION,
    MAX_SEEDS,
    MODEL,
    POOL,
    QUESTIONS,
    RESAMPLINGS,
    SAMPLING_STEPS,
    SMOKE_MODEL,
    arms,
    measure,
    summarise,
    train_arm,
)

from vdt_jax import cli
from vdt_jax.errors import UserError
from vdt_jax.masks import TASKS
from vdt_jax.pages import table_text
from vdt_jax.progress import progress

_QUESTION = flags.DEFINE_enum("question", "tasks", QUESTIONS, "What is asked.")
_OUTPUT = flags.DEFINE_string("output", "runs/study", "Folder for what each arm and seed gave, and for the table.")
_STEPS = flags.DEFINE_integer("steps", 4200, "Training steps of an arm, all of its models together.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Of initialisation, data order, masks and noise.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 32, "Held-out clips a task.")
_SMOKE = flags.DEFINE_bool(
    "smoke", False, "A tiny model, 14 steps, two clips: to see that it runs. Its numbers mean nothing."
)


def main(_) -> None:
    if not 2 <= _SEEDS.value <= MAX_SEEDS:
        raise UserError(f"--seeds={_SEEDS.value} cannot be: 2 to {MAX_SEEDS}, for an interval")
    cli.quiet_start()
    steps, num_clips, num_train = (14, 2, 16) if _SMOKE.value else (_STEPS.value, _NUM_CLIPS.value, POOL)
    sizes = SMOKE_MODEL if _SMOKE.value else MODEL
    if steps < len(TASKS):
        raise UserError(f"--steps={steps} cannot be: at least {len(TASKS)}, one for each task's model")
    settings = {"steps": steps, "num_clips": num_clips, "num_train": num_train, "model": sizes, "diffusion": DIFFUSION}
    settings |= {"batch_size": BATCH_SIZE, "sampling_steps": SAMPLING_STEPS, "resamplings": RESAMPLINGS}
    settings = json.loads(json.dumps(settings))
    folder = Path(_OUTPUT.value) / _QUESTION.value
    folder.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[dict[str, float]]] = {}
    with progress(_QUESTION.value, 2 * _SEEDS.value, unit="run") as update:
        for name, arm in arms(_QUESTION.value).items():
            for seed in range(_SEEDS.value):
                path = folder / f"{name.replace(' ', '_').replace(',', '')}_{seed}.json"
                if path.is_file() and json.loads(path.read_text())["settings"] != settings:
                    raise UserError(f"{path} was made with other settings: choose another --output, or delete it")
                if not path.is_file():
                    started = time.monotonic()
                    values = measure(arm, sizes, train_arm(arm, sizes, steps, num_train, seed), num_clips)
                    seconds = round(time.monotonic() - started, 1)
                    path.write_text(json.dumps({"settings": settings, "values": values, "seconds": seconds}, indent=2))
                runs.setdefault(name, []).append(json.loads(path.read_text())["values"])
                update(1)
    header = ["measure", *runs, "difference, seed by seed"]
    text = table_text(header, summarise(runs))
    print(text)
    (folder / "table.txt").write_text(f"{text}\n{_SEEDS.value} seeds, 95 % intervals; {json.dumps(settings)}\n")


if __name__ == "__main__":
    cli.run(main)
