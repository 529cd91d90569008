"""The exceptions that mean: the person who called this can put it right."""


class UserError(ValueError):
    """A mistake in the input. The message is one line that names the value, the limit and the way out.

    The scripts print it without a traceback and exit with code 2.
    """


class UnsafeFileError(UserError):
    """A file of weights asks for something that none needs, or is not what it says it is."""
