"""Progress and log lines on the terminal."""

import logging

from vdt_jax.progress import progress, show_log, table_text


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


def test_table():
    assert table_text(["task", "PSNR"], [["predict", "9.1"]]) == "task     PSNR\n-------  ----\npredict   9.1"
