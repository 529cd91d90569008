"""The launch files parse, pass the arguments of train.py on, and react to an interruption."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAUNCHERS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.yaml")])


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.name)
def test_a_launcher_parses_and_states_its_command(launcher):
    text = launcher.read_text()
    command = re.search(r"^#   .*(?:\n# .*\\?)*", text, re.MULTILINE)[0]
    assert f"launch/{launcher.name}" in command
    if launcher.suffix == ".sh":
        subprocess.run(["bash", "-n", str(launcher)], check=True)
    else:
        assert {"setup", "run"} <= yaml.safe_load(text).keys()


def test_arguments_of_the_launchers_are_those_of_the_recipe():
    shown = {flag for launcher in LAUNCHERS for flag in re.findall(r"--(config[\w.]*|workdir)=", launcher.read_text())}
    assert shown == {"config", "workdir", "config.data.path", "config.vae"}
    for recipe in {name for file in LAUNCHERS for name in re.findall(r"configs/\w+\.py", file.read_text())}:
        assert (ROOT / recipe).is_file()


def fake(folder: Path, name: str, body: str) -> None:
    """An executable on PATH that logs its arguments, one call per line, and runs `body`."""
    file = folder / name
    file.write_text(f'#!/bin/bash\necho "{name} $*" >> "{folder}/calls"\n{body}\n')
    file.chmod(0o755)


def launch(tmp_path: Path, launcher: str, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """Exit code and logged calls of a launcher whose programs are fakes in `tmp_path`."""
    path = f"{tmp_path}:/usr/bin:/bin"
    command = ["bash", str(ROOT / "launch" / launcher), *arguments]
    code = subprocess.run(command, env={"PATH": path, **environment}, check=False, capture_output=True).returncode
    calls = tmp_path / "calls"
    return code, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (75, True)])
def test_slurm_requeues_an_interrupted_run_only(tmp_path, code, requeued):
    fake(tmp_path, "srun", f"exit {code}")
    fake(tmp_path, "scontrol", "")
    result, calls = launch(tmp_path, "slurm.sh", "--config=a b", SLURM_JOB_ID="7", PYTHON=sys.executable)
    assert result == code
    assert calls[0].endswith(f"{sys.executable} train.py --config=a b")
    assert ("scontrol requeue 7" in calls) == requeued


@pytest.mark.parametrize(("state", "made"), [("READY", []), ("PREEMPTED", ["delete", "create"])])
def test_the_tpu_slice_is_replaced_when_it_was_preempted(tmp_path, state, made):
    fake(tmp_path, "gcloud", f'case "$4" in describe) echo {state};; esac')
    settings = {"IMAGE": "image", "SLICE": "vdt", "ZONE": "z", "TYPE": "v5litepod-16", "VERSION": "v2-alpha-tpuv5-lite"}
    result, calls = launch(tmp_path, "tpu_pod.sh", "--workdir=gs://b/run", **settings)
    assert result == 0
    assert [call.split()[4] for call in calls] == ["describe", *made, "ssh"]
    assert "image train.py --workdir=gs://b/run" in calls[-1]


def test_xpk_passes_the_arguments_and_a_missing_setting_is_named(tmp_path):
    fake(tmp_path, "xpk", "")
    settings = {"IMAGE": "image", "PROJECT": "p", "ZONE": "z", "CLUSTER": "c", "TYPE": "v5litepod-256"}
    assert launch(tmp_path, "xpk.sh", **settings | {"TYPE": ""})[0] != 0
    result, calls = launch(tmp_path, "xpk.sh", "--config=configs/sky_timelapse.py", **settings)
    assert result == 0
    assert "--tpu-type=v5litepod-256" in calls[0] and "train.py --config=configs/sky_timelapse.py" in calls[0]
