"""Make a trained run the model that ships: its EMA weights in bfloat16 and where they come from, into vdt_jax/demo.

python benchmarks/ship_demo.py --checkpoint=runs/digits --hardware="2 CPU cores" --hours=2
"""

import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

import vdt_jax
from vdt_jax import cli
from vdt_jax.checkpoints import DEMO, newest_step, save_model
from vdt_jax.errors import UserError
from vdt_jax.generate import load

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A working directory of train.py.")
_HARDWARE = flags.DEFINE_string("hardware", None, "What it was trained on.")
_HOURS = flags.DEFINE_float("hours", None, "How long.")


def main(_) -> None:
    if _CHECKPOINT.value is None or _HARDWARE.value is None or _HOURS.value is None:
        raise UserError("say what to ship and where it comes from: --checkpoint=runs/NAME --hardware=... --hours=...")
    cli.quiet_start()
    loaded = load(_CHECKPOINT.value)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    provenance = {
        "steps": newest_step(_CHECKPOINT.value),
        "hardware": _HARDWARE.value,
        "hours": _HOURS.value,
        "commit": commit.strip(),
        "jax": jax.__version__,
    }
    folder = Path(vdt_jax.__file__).parent / DEMO
    shutil.rmtree(folder, ignore_errors=True)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), loaded.params)
    save_model(folder, loaded.config | {"provenance": provenance}, params)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB, {provenance}")


if __name__ == "__main__":
    cli.run(main)
