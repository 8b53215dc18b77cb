"""Files at URLs (``s3://``, ``gs://``, ``https://``, …), by fsspec: fetched to disk, and put there whole."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, urlsplit

from inversedmixup.errors import InputError, local_path, one_line
from inversedmixup.sealed import digest, write_json


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
    """A local path of a file: itself, or for a URL a copy that lasts as long as the block, and is not spoken of."""
    if not is_url(name):
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="inversedmixup-") as folder:
        path = Path(folder) / (local_name(name) or "file")
        with _opened(name, "rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
        try:
            yield str(path)
        except InputError as error:
            raise InputError(str(error).replace(str(path), shown(name))) from error


def local_name(name: str) -> str:
    """Where a file for a URL is made: in the working folder, under its name."""
    return Path(_split(name).path).name if is_url(name) else name


def check_target(url: str, *, inputs: Sequence[str], record: Path, overwrite: bool) -> None:
    """Refuse, before any work, a URL that is read, cannot be written, or holds what was not put there from here.

    Args:
        url: where a file is going to be put.
        inputs: what is read.
        record: the file in which :func:`put` keeps where it has put something.
        overwrite: let whatever lies there be replaced.

    Raises:
        InputError: naming the URL.
    """
    from fsspec.core import url_to_fs

    if _split(url).scheme in ("http", "https"):
        raise InputError(f"output {shown(url)}: a web server takes no files; give a path, or a store such as s3://")
    with _clear_errors(url):
        system, path = url_to_fs(url)
        there = system.exists(path)
    if _place(url) in map(_place, inputs):
        raise InputError(f"output {shown(url)}: would replace an input; choose another name")
    if there and not overwrite and _mark(url) not in _put_before(record):
        raise InputError(
            f"output {shown(url)}: is there already, and no {record} shows that it was made here; choose another name, "
            f"move it away, or add --overwrite"
        )


def _place(name: str) -> tuple[str, str]:
    """Protocol and path of a file, however it is named; of chained URLs, those of the file itself."""
    from fsspec.core import url_to_fs

    last = name.rpartition("::")[2]
    with _clear_errors(last):
        system, path = url_to_fs(last if is_url(last) else str(local_path(last).absolute()))
    return type(system).__name__, path


def _put_before(record: Path) -> dict[str, str]:
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _mark(url: str) -> str:
    """What tells a URL from every other one, and tells nobody what is secret in it."""
    return digest(_without_user(url))


def put(path: Path, url: str, record: Path) -> None:
    """Copy a finished file to a URL; that it is ours is recorded first, as a copy that is cut off is ours, too."""
    write_json(record, {**_put_before(record), _mark(url): shown(url)})
    with path.open("rb") as source, _opened(url, "wb") as target:
        shutil.copyfileobj(source, target)


def sibling(url: str, name: str) -> str:
    """The URL of another file in the same folder."""
    return f"{url.rpartition('/')[0]}/{name}"


@contextlib.contextmanager
def _opened(url: str, mode: str) -> Iterator[IO[Any]]:
    import fsspec

    with _clear_errors(url), fsspec.open(url, mode) as file:
        yield file


def _clear_errors(url: str) -> contextlib.AbstractContextManager[None]:
    """Each kind of store has errors of its own."""
    return one_line(shown(url), instead_of=url)


def shown(url: str) -> str:
    """A URL without what may be a secret: user, password, query (signatures); of chained ones likewise."""
    return _without_user(re.split(r"[?#]", url, maxsplit=1)[0])


def _without_user(url: str) -> str:
    return re.sub(r"(?<!/)//[^/]*@", "//", url)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise InputError(f"{url}: is no URL ({error})") from None
