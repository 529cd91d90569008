"""Runs the scripts as a person does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIGITS = f"--config={ROOT}/configs/moving_digits.py"
SHRUNK = [
    "--config.model.hidden_size=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.model.unroll=1",
    "--config.batch_size=2",
    "--config.preview.num_steps=2",
    "--config.preview.num_clips=1",
    "--config.validation.num_steps=2",
    "--config.validation.num_clips=1",
    "--config.log_every=1",
    "--config.learning_rate.warmup_steps=1",
]


def script(name, *arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": f"{sys.prefix}/jax-cache"}
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def succeed(name, *arguments):
    done = script(name, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def fail(name, *arguments):
    """The one line that a mistake gets."""
    done = script(name, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]
