"""The exceptions that mean: the person who called this can put it right. And a run's way of saying that it stops."""

STOPPED = 3  # exit code: the run cannot go on by itself
INTERRUPTED = 75  # exit code: asked to stop, and saved; the same command goes on (EX_TEMPFAIL of sysexits.h)


class UserError(ValueError):
    """A mistake in the input. The message is one line that names the value, the limit and the way out.

    The scripts print it without a traceback and exit with code 2.
    """


class UnsafeFileError(UserError):
    """A file of weights asks for something that none needs, or is not what it says it is."""


class RunStopped(Exception):
    """A run ends before its last step. The scripts print the one line and exit with `code`: STOPPED or INTERRUPTED."""

    def __init__(self, message: str, code: int = STOPPED):
        super().__init__(message)
        self.code = code
