"""Make a trained run the model that ships: its EMA weights in bfloat16 and where they come from, into vdt_jax/demo.

    python evaluate.py --checkpoint=runs/digits --output=runs/digits/evaluation --num_clips=64
    python benchmarks/ship_demo.py --checkpoint=runs/digits --report=runs/digits/evaluation/report.json \\
        --commit=21f642a --hardware="2 CPU cores" --hours=1.4

The golden sample of tests/test_demo.py is written anew.
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
from vdt_jax.checkpoints import DEMO, newest_step, save_model
from vdt_jax.data import make_source, take
from vdt_jax.errors import UserError
from vdt_jax.inference.functional import generate_on_devices, load, sample_keys, task_masks

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A working directory of train.py.")
_REPORT = flags.DEFINE_string("report", None, "What evaluate.py wrote about it.")
_COMMIT = flags.DEFINE_string("commit", None, "The code that trained it.")
_HARDWARE = flags.DEFINE_string("hardware", None, "What it was trained on.")
_HOURS = flags.DEFINE_float("hours", None, "How long.")
_BEGAN_WITH = flags.DEFINE_string("began_with", None, "In words, what config.init_from was, if it was anything.")


def main(_) -> None:
    if None in (_CHECKPOINT.value, _REPORT.value, _COMMIT.value, _HARDWARE.value, _HOURS.value):
        raise UserError("all flags are needed: --checkpoint, --report, --commit, --hardware and --hours")
    cli.quiet_start()
    loaded = load(_CHECKPOINT.value)
    provenance = {
        "steps": newest_step(_CHECKPOINT.value),
        "began_with": _BEGAN_WITH.value,
        "hardware": _HARDWARE.value,
        "hours": _HOURS.value,
        "commit": _COMMIT.value,
        "jax": jax.__version__,
        "metrics": json.loads(Path(_REPORT.value).read_text()),
    }
    folder = Path(vdt_jax.__file__).parent / DEMO
    shutil.rmtree(folder, ignore_errors=True)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), loaded.params)
    save_model(folder, loaded.config | {"init_from": None, "provenance": provenance}, params)
    (folder / "params" / "commit_success.txt").unlink(missing_ok=True)  # it names this machine's folder
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB")

    shipped, number = load(DEMO), range(1, 2)
    source = make_source(shipped.config["data"], shipped.model.video_shape, "held_out")
    clean, mask = take(source, number)["video"], task_masks(0, number, "unconditional", shipped.model)
    video = generate_on_devices(
        shipped.model, shipped.params, shipped.diffusion(25), clean, mask, sample_keys(0, number)
    )
    np.savez_compressed("tests/goldens/demo_sample.npz", video=np.asarray(video)[0])


if __name__ == "__main__":
    cli.run(main)
