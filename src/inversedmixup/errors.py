"""The one exception that users are meant to see."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what was found, where, and how to mend it. The command line prints it
    without a traceback and exits with code 2; library callers catch it as a ``ValueError``.
    """
