"""Make a trained run the bundled demo model: its EMA weights in bfloat16 and their provenance, into vdt_jax/demo.

    python evaluate.py --checkpoint=runs/digits --output=runs/digits/evaluation --num_clips=64
    python benchmarks/ship_demo.py --checkpoint=runs/digits --report=runs/digits/evaluation/report.json \\
        --commit=21f642a --hardware="2 CPU cores" --hours=1.4

The golden sample of tests/scripts/test_demo.py is replaced.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import vdt_jax
from vdt_jax import cli
from vdt_jax.checkpoints import DEMO, newest_checkpoint, save_model
from vdt_jax.data import take
from vdt_jax.errors import UserError
from vdt_jax.inference.functional import sample_keys
from vdt_jax.inference.pipeline import Pipeline

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A working directory of train.py.")
_REPORT = flags.DEFINE_string("report", None, "The report.json of evaluate.py about it.")
_COMMIT = flags.DEFINE_string("commit", None, "Commit of the code that trained it.")
_HARDWARE = flags.DEFINE_string("hardware", None, "Hardware that it was trained on.")
_HOURS = flags.DEFINE_float("hours", None, "Hours of training.")
_BEGAN_WITH = flags.DEFINE_string("began_with", None, "In words, the model of config.init_from, if there was one.")


def main(_) -> None:
    missing = [f"--{flag.name}" for flag in (_CHECKPOINT, _REPORT, _COMMIT, _HARDWARE, _HOURS) if flag.value is None]
    if missing:
        raise UserError(f"{', '.join(missing)} must be given")
    cli.quiet_start()
    pipe = Pipeline.load(_CHECKPOINT.value)
    provenance = {
        "steps": int(newest_checkpoint(_CHECKPOINT.value).name),
        "began_with": _BEGAN_WITH.value,
        "hardware": _HARDWARE.value,
        "hours": _HOURS.value,
        "commit": _COMMIT.value,
        "jax": jax.__version__,
        "metrics": json.loads(Path(_REPORT.value).read_text()),
    }
    folder = Path(vdt_jax.__file__).parent / DEMO
    shutil.rmtree(folder, ignore_errors=True)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), pipe.params)
    save_model(folder, dict(pipe.config) | {"init_from": None, "provenance": provenance}, params)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB")

    demo, number = Pipeline.load(DEMO), range(1, 2)
    clean, mask = take(demo.source(), number)["video"], demo.task_masks("unconditional", number)
    video, _ = demo.complete(clean, mask, sample_keys(0, number), diffusion=demo.diffusion(25))
    np.savez_compressed("tests/goldens/demo_sample.npz", video=video[0])


if __name__ == "__main__":
    cli.run(main)
