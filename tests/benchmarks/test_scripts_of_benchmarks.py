"""The benchmarks run, refuse what cannot be, and say where and with what a figure was taken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import measure

ROOT = Path(__file__).parents[2]


def benchmark(name, *arguments):
    """Exit code, and what it said."""
    command = [sys.executable, f"benchmarks/{name}.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(Path(sys.prefix) / "jax-cache")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_calls_take_turns_and_the_first_of_each_does_not_count(monkeypatch):
    said, clock = [], [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def call(name, *seconds):
        left = iter(seconds)

        def run():
            said.append(name)
            clock[0] += next(left)

        return run

    first, second = measure.timed(call("slow", 50, 3, 1, 2), call("fast", 50, 0.5, 0.5, 0.5), repeats=3)
    assert said == ["slow", "fast"] * 4
    assert first == (2, 1, 3, 3) and second == (0.5, 0.5, 0.5, 3)


def test_a_report_says_with_what(tmp_path, capsys):
    measure.report(f"{tmp_path}/new/report.json", [{"what": "a", "time": measure.Timing(1.5, 1.0, 2.0, 3)}], ("numpy",))
    assert "1.5 s (1 to 2)" in capsys.readouterr().out
    written = json.loads((tmp_path / "new" / "report.json").read_text())
    assert {"date", "device", "cpu", "python", "jax", "jaxlib", "numpy"} == written["environment"].keys()
    assert written["rows"][0]["what"] == "a"


def test_the_study_makes_no_table_of_unequal_runs(tmp_path):
    (tmp_path / "ours_0.json").write_text(json.dumps({"settings": {"steps": 3}, "values": {}}))
    code, said = benchmark("study", "--smoke", f"--output={tmp_path}")
    assert code == 2 and "was made with other settings" in said and "Traceback" not in said


@pytest.mark.slow
def test_the_study_goes_on_and_answers(tmp_path):
    arguments = ["--smoke", "--arms=ours,official", f"--output={tmp_path}"]
    assert benchmark("study", *arguments, "--seeds=0")[0] == 0
    made = (tmp_path / "ours_0.json").stat().st_mtime_ns
    code, said = benchmark("study", *arguments, "--seeds=0,1")
    assert code == 0 and "ours less official, 2 seeds" in said
    assert (tmp_path / "ours_0.json").stat().st_mtime_ns == made
    assert (tmp_path / "tables.md").is_file() and (tmp_path / "predict.png").is_file()


@pytest.mark.slow
def test_speed_of_a_training_step_and_of_sampling(tmp_path):
    code, said = benchmark("speed", "--repeats=1", "--sampling_steps=1", f"--output={tmp_path}/speed.json")
    assert code == 0, said
    training, sampling = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert training["MFU"] == "-" and "GiB" in training["memory"] and float(training["TFLOP/s"]) > 0
    assert sampling["what"] == "VDT-S/2, 1 steps" and float(sampling["TFLOP/s"]) > 0


def test_a_folder_that_is_no_clone_of_the_official_code(tmp_path):
    pytest.importorskip("torch")
    code, said = benchmark("compare_official", f"--official={tmp_path}")
    assert code == 2 and "is no clone of github.com/RERV/VDT" in said
