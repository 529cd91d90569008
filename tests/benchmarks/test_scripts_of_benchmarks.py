"""The benchmarks run, refuse mistakes in one line, and report where and with what a figure was measured."""

import json

import measure
import pytest
import reports
from helpers.scripts import fail, succeed


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


@pytest.mark.slow
def test_speed_of_a_training_step_and_of_sampling(tmp_path):
    succeed("benchmarks/speed.py", "--repeats=1", "--sampling_steps=1", f"--output={tmp_path}/speed.json")
    training, sampling = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert training["MFU"] == "-" and "GiB" in training["memory"] and float(training["TFLOP/s"]) > 0
    assert sampling["what"] == "VDT-S/2, 1 steps" and float(sampling["TFLOP/s"]) > 0


def test_a_folder_that_is_no_clone_of_the_official_code(tmp_path):
    pytest.importorskip("torch")
    assert "official must be a clone of github.com/RERV/VDT" in fail(
        "benchmarks/compare_official.py", f"--official={tmp_path}"
    )


def test_eval_demo_reports_every_number_that_is_off():
    committed = {
        "tasks": {"predict": {"model": {"PSNR": 10.0, "FVD": 100.0}, "copy nearest": {"PSNR": 9.0, "motion": 0.0}}}
    }
    close = {
        "tasks": {"predict": {"model": {"PSNR": 10.05, "FVD": 99.5}, "copy nearest": {"PSNR": 9.0, "motion": 0.0}}}
    }
    assert reports.differences(close, committed) == []
    off = {"tasks": {"predict": {"model": {"PSNR": 10.2}, "copy nearest": {"PSNR": 9.0, "motion": 0.0}}}}
    assert len(reports.differences(off, committed)) == 2


def test_eval_demo_writes_its_table():
    report = {
        "protocol": {"clips": 16, "steps": 25, "sampler": "ddpm", "versions": {"jax": "0.10.2"}},
        "tasks": {"predict": {"model": {"PSNR": 10.123, "FVD": 99.6}, "copy nearest": {"PSNR": 9.0, "motion": 0.0}}},
        "truth against other truth": {"FVD": 767.6},
        "truth against itself": {"FVD": 3e-12},
    }
    table = reports.markdown_table(report)
    assert (
        "| predict | model | 10.12 | - | - | 100 | - |" in table
        and "| copy nearest | 9.00 | - | - | - | 0.00 |" in table
    )
    assert "16 held-out clips, 25 ddpm steps" in table and "FVD 768; against themselves: 3e-12" in table
