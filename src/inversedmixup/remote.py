"""Files at URLs (``s3://``, ``gs://``, ``https://``, …), by fsspec: fetched to disk, and put there whole."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, urlsplit

from inversedmixup.errors import InputError
from inversedmixup.loading import first_line


def is_url(name: str) -> bool:
    """Whether this is a URL, not a path."""
    return "://" in name


def check_local(command: str, *names: str | Path | None) -> None:
    """Refuse URLs where files are neither fetched nor put.

    Raises:
        InputError: naming the first of them.
    """
    for name in names:
        if name and is_url(str(name)):
            raise InputError(
                f"{command}: {shown(str(name))}: is a URL; only TRAIN, TEXTS and -o of augment and label may be, give "
                f"a path here"
            )


@contextlib.contextmanager
def fetched(name: str) -> Iterator[str]:
    """A local path of a file: itself, or for a URL a copy that lasts as long as the block."""
    if not is_url(name):
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="inversedmixup-") as folder:
        path = Path(folder) / (local_name(name) or "file")
        with _opened(name, "rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
        yield str(path)


def local_name(name: str) -> str:
    """Where a file for a URL is made: in the working folder, under its name."""
    return Path(_split(name).path).name if is_url(name) else name


def put(path: Path, url: str) -> None:
    """Copy a finished file to a URL."""
    with path.open("rb") as source, _opened(url, "wb") as target:
        shutil.copyfileobj(source, target)


def sibling(url: str, name: str) -> str:
    """The URL of another file in the same folder."""
    return f"{url.rpartition('/')[0]}/{name}"


@contextlib.contextmanager
def _opened(url: str, mode: str) -> Iterator[IO[Any]]:
    import fsspec

    words = shown(url)
    try:
        with fsspec.open(url, mode) as file:
            yield file
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{words}: {first_line(error).replace(url, words)}") from error


def shown(url: str) -> str:
    """A URL without what may be a secret: user, password, query (signatures); of chained ones likewise."""
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", url, maxsplit=1)[0])


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise InputError(f"{url}: is no URL ({error})") from None
