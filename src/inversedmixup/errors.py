"""The one exception that users are meant to see, and writing so that a failure leaves nothing half done."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what was found, where, and how to mend it. The command line prints it
    without a traceback and exits with code 2; library callers catch it as a ``ValueError``.
    """


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)  # through Python's own file, so that a full disk is an OSError like any other
    partial.replace(path)


@contextlib.contextmanager
def clear_write_errors(where: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into an :class:`InputError` that says how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise InputError(
            f"{error.filename or where}: cannot be written ({error.strerror}); make room or choose another output, "
            f"then run the same command again: finished work is kept"
        ) from error
