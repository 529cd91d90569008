"""What a run leaves in its working directory, and says on the terminal."""

import json
import logging
import resource

import pytest
from helpers.event_files import scalars

from vdt_jax.errors import UserError
from vdt_jax.progress import RunLog, progress, show_log


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


def test_log_lines_are_printed_beside_a_bar(capsys, monkeypatch):
    logger = logging.getLogger("vdt_jax")
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(logger, name, getattr(logger, name) if name != "handlers" else [])
    show_log()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("work", 10) as advance:
        advance(5)
        logging.getLogger("vdt_jax.data").warning("%d files", 3)
        logging.getLogger("vdt_jax.data").info("done")
    shown = capsys.readouterr()
    assert shown.out == "WARNING: 3 files\ndone\n" and "50%" in shown.err


def test_lines_of_progress_say_how_long_the_rest_takes(monkeypatch, capsys):
    times = iter([0.0, 4.0, 10.0])
    monkeypatch.setattr("vdt_jax.progress.time.monotonic", lambda: next(times))
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with progress("clips", 10) as advance:
        advance(2)
        advance(8)
    assert capsys.readouterr().out == "clips: 20 %, 4.0 s, about 16 s left\nclips: 100 %, 10.0 s, about 0 s left\n"


def test_tensorboard_has_every_number(tmp_path):
    values = {"loss": 0.5, "validation/predict": 0.75, "validation/quartile 1": 0.25, "evaluation/predict PSNR": 9.0}
    with RunLog(tmp_path, 0, 10) as run:
        run.metrics(5, values)
        # They are in the file at once: a thread that writes them later would not be heard of when the disk is full.
        # TensorBoard's names have no spaces.
        assert scalars(tmp_path) == {name.replace(" ", "_"): {5: value} for name, value in values.items()}


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
