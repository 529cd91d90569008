"""Errors that the user can correct, exit codes of a run that stops before its end, signals before a script runs."""

import functools
import os
import signal

USER_ERROR = 2  # exit code: an error in the input
STOPPED = 3  # exit code: the run cannot continue
INTERRUPTED = 75  # exit code: stopped by a signal, and saved; re-run to resume (EX_TEMPFAIL of sysexits.h)
CANCELLED = 130  # exit code: stopped by Ctrl-C, and nothing saved (128 + SIGINT, as shells count)


def end_at_ctrl_c() -> None:
    """Lets Ctrl-C end this process in one line, until `cli.run` takes over: for the seconds that imports take.

    A KeyboardInterrupt could be lost there, inside of an import that catches it. Scripts call this before they import.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # shells ignore it in background jobs
        signal.signal(signal.SIGINT, functools.partial(_end, "interrupted", CANCELLED))


def end_at_sigterm() -> None:
    """Lets SIGTERM end this process with INTERRUPTED, until the run itself takes over: a scheduler then restarts it.

    train.py calls this before it imports, which takes seconds; then it may wait for other processes, minutes.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, functools.partial(_end, "interrupted: re-run the command to resume", INTERRUPTED))


def _end(message: str, code: int, *_: object) -> None:
    os.write(2, f"stopped: {message}\n".encode())
    os._exit(code)


# What a mistake in this code raises, rather than a disk, a network or a file: never taken for one of these.
MISTAKES = (TypeError, AttributeError, NameError, LookupError, AssertionError)


class UserError(ValueError):
    """An error in the input. The message is one line: what is wrong, the value, the allowed values, what to do.

    The scripts print it without a traceback and exit with code 2. Control characters, which names in a stranger's file
    may have, are escaped, so that none reaches a terminal.
    """

    def __init__(self, message: str):
        super().__init__(_one_line(message))


class UnsafeFileError(UserError):
    """A file of weights that asks for something that no weights need, or whose content contradicts its format."""


class RunStopped(Exception):
    """A run ends before its last step. The scripts print the message and exit with `code`: STOPPED or INTERRUPTED."""

    def __init__(self, message: str, code: int = STOPPED):
        super().__init__(_one_line(message))
        self.code = code


def _one_line(message: str) -> str:
    """At most 2,000 characters: values from files may be long."""
    line = printable(" ".join(message.split()))
    return line if len(line) <= 2000 else f"{line[:1990]} [...]"


def printable(text: str | os.PathLike) -> str:
    """A text or path; control characters, but for newlines and tabs, and what is not UTF-8 are escaped as by `repr`."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in os.fspath(text))
