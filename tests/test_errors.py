"""Messages are one printable line, whatever text of a file is in them."""

import logging
import os
from pathlib import Path

import pytest

from vdt_jax.errors import RunStopped, UnsafeFileError, UserError, printable
from vdt_jax.progress import show_log

CONTROL = "\x1b]0;title\x07\x1b[31m\r\x00\x9b2J\u202e\u2028"


@pytest.mark.parametrize("kind", [UserError, UnsafeFileError, RunStopped])
def test_control_characters_are_escaped(kind):
    message = str(kind(f"no file {CONTROL}.mp4:\n  give\tanother"))
    assert message.isprintable()
    assert message.startswith(r"no file \x1b]0;title\x07\x1b[31m \x00\x9b2J\u202e")
    assert message.endswith(".mp4: give another")


def test_other_letters_are_kept():
    assert str(UserError("Grüße/動画 clip.mp4")) == "Grüße/動画 clip.mp4"
    assert printable(Path(os.fsdecode(b"caf\xe9.mp4"))) == r"caf\udce9.mp4"  # a name that is not UTF-8


def test_log_lines_are_printable_too(capsys, monkeypatch):
    logger = logging.getLogger("vdt_jax")
    monkeypatch.setattr(logger, "handlers", [])
    show_log()
    logger.getChild("video").warning("%s cannot be read", "a\x1b[31m.mp4")
    assert capsys.readouterr().out == "WARNING: a\\x1b[31m.mp4 cannot be read\n"
