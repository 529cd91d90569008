"""The log of a run: what it leaves in the working directory, on the terminal, in TensorBoard and in trackers."""

import importlib.util
import json
import os
import resource
import sqlite3
import struct
import subprocess
import sys
import types

import numpy as np
import pytest
from helpers.event_files import pictures, scalars

from vdt_jax.errors import UserError
from vdt_jax.training.log import RunLog
from vdt_jax.video import write_video


def steps(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def log(workdir, first_step, *logged):
    with RunLog(workdir, first_step, 10) as run:
        for step in logged:
            run.metrics(step, {"loss": 1.0 / step})


def test_a_resumed_run_forgets_what_it_will_do_again(tmp_path):
    log(tmp_path, 0, 1, 2, 4, 6)
    log(tmp_path, 4, 5, 6)
    assert steps(tmp_path) == [1, 2, 4, 5, 6]


def test_a_line_that_a_kill_tore_is_dropped(tmp_path):
    log(tmp_path, 0, 1, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    log(tmp_path, 2, 3)
    assert steps(tmp_path) == [1, 2, 3]


def test_lines_that_no_run_wrote_are_dropped(tmp_path):
    log(tmp_path, 0, 1, 2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'3\n[]\n{}\nnull\n{"step": "x"}\n{"step": [2]}\n\xff\xfe\n\n' + b"[" * 100_000 + b"\n")
    log(tmp_path, 2, 3)
    assert steps(tmp_path) == [1, 2, 3]


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    log(tmp_path, 0, 1, 5)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 1/10  loss 1"  # compilation comes before the first step: no rate
    assert second.startswith("step 5/10  loss 0.2  steps_per_second ") and second.endswith("min left")


def test_the_share_of_the_peak_where_it_is_known(tmp_path, capsys):
    with RunLog(tmp_path, 0, 10, utilisation=lambda steps_per_second: 0.4) as run:
        run.metrics(1, {"loss": 1.0})
        run.metrics(5, {"loss": 0.2})
    first, second = capsys.readouterr().out.splitlines()
    assert "mfu" not in first and "  mfu 0.4  " in second
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["mfu"] == 0.4


def test_a_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with RunLog(tmp_path, 0, 10) as run:
        run.metrics(5, {"loss": 0.5, "validation/predict": 0.7})
    shown = capsys.readouterr()
    assert "50%" in shown.err and "loss 0.5" in shown.err
    assert "validation" not in shown.err and "validation/predict" in (tmp_path / "metrics.jsonl").read_text()


def test_tensorboard_has_every_number(tmp_path):
    values = {"loss": 0.5, "validation/predict": 0.75, "validation/quartile 1": 0.25, "evaluation/predict PSNR": 9.0}
    with RunLog(tmp_path, 0, 10) as run:
        run.metrics(5, values)
        # They are in the file at once: a full disk would end a thread that writes them later without a message.
        # TensorBoard's names have no spaces.
        assert scalars(tmp_path) == {name.replace(" ", "_"): {5: value} for name, value in values.items()}


def test_metrics_continue_after_their_file_was_deleted(tmp_path):
    with RunLog(tmp_path, 0, 10) as run:
        run.metrics(1, {"loss": 0.5})
        (tmp_path / "metrics.jsonl").unlink()
        run.metrics(2, {"loss": 0.25})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 2


def test_a_full_disk_ends_the_run_in_one_line(tmp_path):
    """A limit of the size of files stands for the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(UserError) as refused, RunLog(tmp_path, 0, 10) as run:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            for step in range(100):
                run.metrics(step, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    reason = "(File too large): free some space, or choose another path"
    assert str(refused.value) == f"{tmp_path}/metrics.jsonl cannot be written {reason}"


@pytest.fixture
def previews(tmp_path):
    """The previews of a step; their folder."""
    for task in ("backward", "predict"):
        write_video(
            tmp_path / "samples" / f"{task}_0.gif", np.arange(2 * 8 * 24 * 3, dtype=np.uint8).reshape(2, 8, 24, 3)
        )
        (tmp_path / "samples" / f"{task}_0.png").touch()
    return tmp_path / "samples"


def test_tensorboard_has_the_previews_as_moving_pictures(tmp_path, previews):
    with RunLog(tmp_path, 0, 10) as run:
        run.pictures(5, previews)
    found = pictures(tmp_path)
    assert found.keys() == {"samples/backward_0", "samples/predict_0"}
    picture = found["samples/predict_0"][5]
    assert picture.encoded_image_string == (previews / "predict_0.gif").read_bytes()
    assert (picture.width, picture.height) == (24, 8)


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="tracker=wandb needs the package wandb: pip install wandb"):
        RunLog(tmp_path, 0, 10, tracker="wandb")


def test_a_tracker_that_fails_costs_the_tracker_not_the_training(tmp_path, monkeypatch, caplog):
    calls = []

    def log_metrics(values, step):
        calls.append(step)
        raise OSError("no route to host")

    run = types.SimpleNamespace(log=log_metrics, finish=lambda: calls.append("finished"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(init=lambda **settings: run))
    with RunLog(tmp_path, 0, 10, tracker="trackio") as run_log:
        for step in (1, 2):
            run_log.metrics(step, {"loss": 1.0})
    assert calls == [1] and steps(tmp_path) == [1, 2]
    assert "tracker=trackio failed, and gets nothing more of this training: no route to host" in caplog.text


@pytest.fixture
def sent(monkeypatch):
    """What Trackio gets, (step, names without the rate); no package is needed."""
    calls = []

    def log_values(values, step):
        calls.append((step, *(name for name in values if name != "steps_per_second")))

    run = types.SimpleNamespace(log=log_values, finish=lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    module = types.SimpleNamespace(init=lambda **settings: run, Video=lambda path: path)
    monkeypatch.setitem(sys.modules, "trackio", module)
    return calls


def train(workdir, first_step, *steps, previews=None, tracker="trackio"):
    with RunLog(workdir, first_step, 10, tracker=tracker) as run:
        for step in steps:
            run.metrics(step, {"loss": 1.0 / step})
            if previews is not None:
                run.pictures(step, previews)


def test_a_run_that_is_killed_twice_reaches_a_tracker_once(tmp_path, sent):
    train(tmp_path, 0, 2, 4, 6)
    train(tmp_path, 2, 4)  # resumed at step 2, and killed before step 6
    train(tmp_path, 2, 4, 6, 8)
    assert sent == [(step, "loss") for step in (2, 4, 6, 8)] and steps(tmp_path) == [2, 4, 6, 8]


def test_previews_of_a_step_whose_metrics_were_logged_before_a_kill(tmp_path, previews, sent):
    shown = ("samples/backward_0", "samples/predict_0")
    train(tmp_path, 0, 2)  # killed before its previews
    for _ in range(2):
        train(tmp_path, 0, 2, previews=previews)
    assert sent == [(2, "loss"), (2, *shown)]


def test_a_tracker_that_is_added_to_a_run_gets_all_steps_from_then_on(tmp_path, sent):
    train(tmp_path, 0, 2, 4, 6, tracker=None)
    train(tmp_path, 4, 6, 8)
    assert sent == [(6, "loss"), (8, "loss")]


DAMAGED = ["", "[]", "null", '{"trackio/metrics": "x"}', '{"trackio/metrics": [1]}', "[" * 100_000]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_record_of_logged_steps_is_replaced(tmp_path, sent, text):
    (tmp_path / "tracked_steps.json").write_text(text)
    train(tmp_path, 0, 2)
    assert sent == [(2, "loss")]
    assert json.loads((tmp_path / "tracked_steps.json").read_text()) == {"trackio/metrics": 2}


# What train.py does, killed after step 6 and then after step 4, and resumed each time from a checkpoint of step 2.
KILLED_TWICE = """
import sys
from pathlib import Path
from vdt_jax.training.log import RunLog

tracker, workdir = sys.argv[1], Path(sys.argv[2])
for first_step, steps in ((0, (2, 4, 6)), (2, (4,)), (2, (4, 6, 8))):
    with RunLog(workdir, first_step, 8, tracker=tracker, config={"model": {"depth": 3}}) as log:
        for step in steps:
            log.metrics(step, {"loss": 1 / step, "validation/predict": 0.5})
            if step in (6, 8):
                log.pictures(step, workdir / "samples")
"""


def tracked(tracker, workdir, **environment):
    pytest.importorskip(tracker, reason=f"pip install -e '.[{tracker}]'")
    command = [sys.executable, "-c", KILLED_TWICE, tracker, str(workdir)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "TRACKIO"))}
    clean |= {"HOME": str(workdir / "home"), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )


def wandb_records(path):
    """The records of a .wandb file: after 7 bytes, blocks of 32 KiB with fragments as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or its last fragment
            yield Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path, previews):
    done = tracked("wandb", tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    run_id = (tmp_path / "run_id").read_text().strip()
    folders = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert len(folders) == 3 and all(run_id in folder.name for folder in folders)  # -1 after one of the same second
    logged = []
    for folder in folders:
        records = list(wandb_records(next(folder.glob("*.wandb"))))
        (run,) = (record.run for record in records if record.HasField("run"))
        assert (run.run_id, run.display_name, run.project) == (run_id, run_id, "vdt_jax")
        assert {item.key: json.loads(item.value_json) for item in run.config.update}["model"] == {"depth": 3}
        for record in records:
            if record.HasField("history"):
                items = {
                    ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                logged.append((items["_step"], items.get("loss"), items.get("samples/predict_0._type")))
    assert [len(list(folder.rglob("*.gif"))) for folder in folders] == [2, 0, 2]
    assert logged == [(2, 1 / 2, None), (4, 1 / 4, None), (6, 1 / 6, "video-file"), (8, 1 / 8, "video-file")]


@pytest.mark.slow
def test_weights_and_biases_without_a_login(tmp_path):
    done = tracked("wandb", tmp_path)
    assert done.returncode == 1
    message = "tracker=wandb is not logged in: run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"
    assert done.stderr.splitlines()[-1] == f"vdt_jax.errors.UserError: {message}"


@pytest.mark.slow
def test_trackio(tmp_path, previews):
    done = tracked("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert done.returncode == 0, done.stderr
    run_id = (tmp_path / "run_id").read_text().strip()
    with sqlite3.connect(tmp_path / "trackio" / "vdt_jax.db") as database:
        rows = [(step, json.loads(values)) for step, values in database.execute("SELECT step, metrics FROM metrics")]
        assert {name for (name,) in database.execute("SELECT run_name FROM metrics")} == {run_id}
    assert [(step, values["loss"]) for step, values in rows if "loss" in values] == [(n, 1 / n) for n in (2, 4, 6, 8)]
    shown = [(step, values["samples/predict_0"]["_type"]) for step, values in rows if "samples/predict_0" in values]
    assert shown == [(6, "trackio.video"), (8, "trackio.video")]
    assert len(list((tmp_path / "trackio").rglob("*.gif"))) == 4


@pytest.mark.slow
def test_trackio_without_a_login(tmp_path):
    done = tracked("trackio", tmp_path, TRACKIO_SPACE_ID="digits")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("vdt_jax.errors.UserError: tracker=trackio cannot start: ")
