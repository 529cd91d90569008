"""The one exception that means: the person who called this can put it right."""


class UserError(ValueError):
    """A mistake in the input. The message is one line that names the value, the limit and the way out.

    The scripts print it without a traceback and exit with code 2.
    """
