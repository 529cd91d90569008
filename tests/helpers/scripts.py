"""Runs the scripts as a person does."""

import json
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


def environment():
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": f"{sys.prefix}/jax-cache"}


def script(name, *arguments):
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)


def scripts(name, *runs):
    """A script with each of these lists of arguments, as `script` returns them; imports it once, so each costs less."""
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "forked.py"), name.removesuffix(".py")]
    given = json.dumps([[str(argument) for argument in run] for run in runs])
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, env=environment(), timeout=600, check=True
    )
    return [subprocess.CompletedProcess(name, *result) for result in json.loads(done.stdout)]


def succeed(name, *arguments):
    done = script(name, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def fail(name, *arguments):
    return line_of(script(name, *arguments))


def line_of(done):
    """The one line that an error gets."""
    assert done.returncode == 2, done.stdout + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]
