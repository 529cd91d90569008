"""What is measured on an accelerator is resumed row by row; what is learned there comes back in small parts."""

import argparse
import functools
import json
import os
import select
import subprocess
import time
from collections import Counter

import accelerator
import jax
import kernels
import learn
import numpy as np
import pytest
from helpers.scripts import fail

from vdt_jax.checkpoints import load_model, save_model

MODEL = dict(input_size=(8, 8), num_frames=4, in_channels=1, patch_size=4, hidden_size=16, depth=2, num_heads=2)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A function that runs part 1 with a given number of rows before the time is up; and the jobs that ran."""
    ran = []

    def measure(rows, texts=None):
        def run_child(job, deadline, tiny):
            if job.kind == "where":
                return {"device": "a device", "platform": "cpu"}
            ran.append(job.what)
            return {"error": "no memory"} if "bfloat16" in job.what else {"time": f"{len(ran)} s"}

        times = iter([0.0] * rows + [1e9] * 9)
        monkeypatch.setattr(accelerator, "run_child", run_child)
        monkeypatch.setattr(accelerator.time, "monotonic", lambda: next(times))
        accelerator.measure_all(argparse.Namespace(part=[1], row=texts, tiny=True, official=None), tmp_path, 1e6)

    return measure, ran


def test_rows_are_resumed_and_none_is_measured_twice(measured, tmp_path, capsys):
    measure, ran = measured
    measure(2)
    assert len(ran) == 2 and "4 rows are left, 'goldens, bfloat16' is next" in capsys.readouterr().out
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"part": 1, "wh')  # a kill
    measure(9)
    assert len(ran) == len(set(ran)) == 6
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["part"] for row in rows] == [0, 1, 1, 1, 1, 1, 1]
    text = (tmp_path / "tables.txt").read_text()
    assert text.startswith("device a device") and "no memory" in text and "5 s" in text


def test_rows_by_name_come_in_the_order_asked_for(measured, capsys):
    measure, ran = measured
    measure(9, ["16 steps", "TF32", "in float32"])
    assert ran[0].startswith("VDT-S/2, 16 steps") and ran[1].endswith("TF32") and ran[2].endswith("products in float32")
    assert len(ran) == 3
    with pytest.raises(SystemExit) as ended:
        measure(9, ["fp8"])
    assert ended.value.code == 2 and "no row's name has 'fp8': the names are 'goldens" in capsys.readouterr().err


def test_no_two_rows_have_the_same_name():
    names = [job.what for job in accelerator.jobs("gpu", tiny=False, official="VDT")]
    assert len(names) == len(set(names))


def test_a_job_that_fails_gives_its_reason():
    job = accelerator.Job(1, "goldens", "no such kind", {})
    assert accelerator.run_child(job, time.monotonic() + 60, True) == {"error": "KeyError: 'no such kind'"}


def test_what_a_job_started_ends_with_it(tmp_path, monkeypatch):
    """A script stands for the row; the process that it leaves behind holds a pipe open."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    script = tmp_path / "rows.py"
    quiet = f"pass_fds=[{writing}], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"
    script.write_text(f"import subprocess\nsubprocess.Popen(['sleep', '100'], {quiet})\nprint('{{}}')\n")
    monkeypatch.setattr(accelerator, "__file__", str(tmp_path / "accelerator.py"))
    popen = functools.partial(subprocess.Popen, close_fds=False)
    monkeypatch.setattr(accelerator.subprocess, "Popen", popen)
    assert "row took" in accelerator.run_child(accelerator.Job(5, "", "", {}), time.monotonic() + 60, True)
    os.close(writing)
    assert select.select([reading], [], [], 20)[0] and os.read(reading, 1) == b""  # closed by its end
    os.close(reading)


def test_kernels_by_group():
    seconds = Counter(
        {"nvjet_tst_128": 3.0, "cudnn_sdpa_fmha": 1.0, "loop_transpose_fusion_7": 2.0, "convert_fusion": 0.5}
    )
    assert dict(kernels.by_group(seconds)) == {
        "matrix products": 3.0,
        "transposes and copies": 2.0,
        "cuDNN attention": 1.0,
        "other fusions": 0.5,
    }


def test_the_last_call_ends_in_time(tmp_path):
    assert learn.reachable(tmp_path, 400.0) == learn._OUT_OF_REACH  # no rate is known yet
    lines = [{"step": step, "steps_per_second": rate} for step, rate in ((100, 2.0), (200, 4.0), (300, 4.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert learn.reachable(tmp_path, 400.0) == 300 + int(0.97 * 4 * 340)


def test_weights_come_back_in_parts(tmp_path, monkeypatch):
    from vdt_jax.checkpoints.config import network_of
    from vdt_jax.models.vdt import param_shapes

    rng = np.random.default_rng(0)
    shapes = param_shapes(network_of(MODEL))
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    run, out = tmp_path / "run", tmp_path / "out"
    save_model(run, {"model": MODEL}, params)
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0, "validation/predict": 3.0}\n'
    )
    out.mkdir()
    monkeypatch.setattr(learn, "PART_BYTES", 1 << 14)
    learn.export(run, out)
    assert max(path.stat().st_size for path in out.glob("weights_*")) == 1 << 14
    assert "validation/predict" in (out / "table.txt").read_text()
    assert learn.join(out, tmp_path / "model") == 0
    model, joined = load_model(tmp_path / "model")
    assert model == network_of(MODEL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), joined, params)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--part=9"], "argument --part: invalid choice: 9"),
        (["--official=/nowhere"], "--official must be a clone of github.com/RERV/VDT, with models.py, got /nowhere"),
        (["--limit=1"], "--limit must be >= 40 seconds, got 1"),
        (["--learn=nothing"], "--learn must be a recipe of configs/, one of moving_digits, "),
        (["--join=/nowhere"], "no weights_0 in /nowhere: name the folder that --learn wrote"),
    ],
)
def test_mistakes_in_one_line(flags, message, tmp_path):
    assert message in fail("benchmarks/accelerator.py", f"--output={tmp_path}", *flags)


@pytest.mark.slow
def test_a_rehearsal(tmp_path):
    arguments = argparse.Namespace(part=[1], row=None, tiny=True, official=None)
    accelerator.measure_all(arguments, tmp_path, time.monotonic() + 600)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 7 and not any("error" in row for row in rows)
