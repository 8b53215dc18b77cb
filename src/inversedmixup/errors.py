"""The one exception that users are meant to see, and writing so that a failure leaves nothing half done."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

_CANNOT_WRITE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST,
    errno.EISDIR, errno.EPERM, errno.EBUSY, errno.ENAMETOOLONG, errno.ESTALE,
)  # fmt: skip
# how the dynamic loader, oneDNN and C++ say so, beside what accelerate knows
_NO_MEMORY = ("failed to map segment", "could not create a primitive", "annot allocate memory", "std::bad_alloc")


PARTIAL = ".partial"  # ending of a file that is not whole yet


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what was found, where, and how to mend it. The command line prints it
    without a traceback and exits with code 2; library callers catch it as a ``ValueError``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"\s*[\r\n]\s*", " ", message))  # a library's words within may have lines of their own


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message, for one-line reports."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def one_line(about: str, *, instead_of: str | None = None) -> Iterator[None]:
    """Turn what a library raises in this block into an :class:`InputError`: for those that raise a dozen types.

    Args:
        about: what cannot be had; the first line of the library's words follows.
        instead_of: what ``about`` stands for in these words, if that is not to be shown.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        words = first_line(error).replace(instead_of, about) if instead_of else first_line(error)
        raise InputError(f"{about}: {words}") from error


def local_path(name: str | Path) -> Path:
    """The path of a file or folder on this machine, a leading ``~`` expanded.

    Raises:
        InputError: for what no path can be.
    """
    if "\0" in str(name):
        raise InputError(f"{str(name)!r}: a path holds no NUL; remove it")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise InputError(f"{name}: there is no user of that name; a folder of yours begins with ~/") from None


def unfinished(path: Path) -> Path:
    """Where a file is written before it is whole; nothing is there now."""
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)  # a link put there would lead elsewhere
    return partial


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    partial = unfinished(path)
    partial.write_bytes(data)  # through Python's own file, so that a full disk is an OSError like any other
    partial.replace(path)


@contextlib.contextmanager
def clear_write_errors(where: Path) -> Iterator[None]:
    """Turn a full disk, a forbidden folder or one that is gone into an :class:`InputError` that says how to go on."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number not in _CANNOT_WRITE and not (number == errno.ENOENT and not where.parent.is_dir()):
            raise
        raise InputError(
            f"{getattr(error, 'filename', None) or where}: cannot be written ({os.strerror(number)}); make room or "
            f"choose another output, then run the same command again: finished work is kept"
        ) from error


def _error_number(error: Exception) -> int | None:
    """The operating system's number of an error; libraries written in Rust put it into their message."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, the machine's or a device's, has run out."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if any(phrase in str(error) for phrase in _NO_MEMORY):
        return True
    return isinstance(error, Exception) and should_reduce_batch_size(error)
