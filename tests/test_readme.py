"""The Python example of the README runs as it is printed, also with nothing but the wheel installed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vdt_jax.data import make_source
from vdt_jax.video import as_rgb, read_frames, write_video

ROOT = Path(__file__).parents[1]


def python_example() -> str:
    return re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]


def write_clip(path: Path) -> np.ndarray:
    """Writes a held-out clip and returns its frames (16, 32, 32, 3)."""
    truth = make_source({"name": "moving_digits"}, (16, 32, 32, 1), "held_out").clip(0)["video"]
    write_video(path, as_rgb(truth))
    return as_rgb(truth).astype(int)


def check_result(path: Path, truth: np.ndarray) -> None:
    written = np.stack(list(read_frames(path))).astype(int)
    assert written.shape == (16, 32, 32, 3)
    assert np.abs(written[:4] - truth[:4]).mean() < 10  # given; mp4 twice
    assert np.abs(written[4:] - truth[4:]).mean() > 10


def test_the_python_example_makes_an_mp4(tmp_path, monkeypatch):
    example = python_example()
    assert len([line for line in example.splitlines() if line]) <= 5
    truth = write_clip(tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    check_result(tmp_path / "out.mp4", truth)


@pytest.mark.slow
def test_the_wheel_alone_runs_the_python_example(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "vdt_jax", source / "vdt_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, timeout=600)
    (wheel,) = tmp_path.glob("vdt_jax-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=300)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", str(wheel), "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run(install, check=True, timeout=1800)

    empty = tmp_path / "empty"
    empty.mkdir()
    truth = write_clip(empty / "clip.mp4")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, "-c", python_example()], cwd=empty, env=clean, check=True, timeout=600)
    check_result(empty / "out.mp4", truth)
