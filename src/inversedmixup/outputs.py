"""What may be written: no file that is read, and none that no run of ours wrote."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from inversedmixup.errors import InputError, local_path
from inversedmixup.models.sources import file_sha256
from inversedmixup.sealed import check_settings, read_record, write_record

_MARK = re.compile(r"<!-- (report|card) of (.*), written by inversedmixup")


def mark(kind: str, output: Path) -> str:
    """The beginning of the comment by which a ``report`` or ``card`` shows of which output it is."""
    return f"<!-- {kind} of {html.escape(output.name)}, written by inversedmixup"


def check_apart(outputs: Sequence[Path], *inputs: str | None) -> None:
    """Refuse an output that would replace an input.

    Raises:
        InputError: naming both.
    """
    for read in inputs:
        if read and local_path(read).resolve() in [output.resolve() for output in outputs]:
            raise InputError(f"output {outputs[0]}: would replace the input {read}; choose another name")


def check_ours(record: Path, *files: Path, pages: Mapping[Path, str] | None = None, overwrite: bool) -> None:
    """Refuse to replace a file that no run of ours wrote, or a page that is another output's.

    Args:
        record: what a run leaves behind, and shows by it that the files are its own.
        files: what it is going to write.
        pages: reports and cards that it is going to write, with their marks.
        overwrite: let everything be replaced.

    Raises:
        InputError: naming the file, or ``record`` if it is another program's.
    """
    if overwrite:
        return
    check_settings(record)
    pages = pages or {}
    for path in (*files, *pages):
        found = _mark_in(path) if path in pages else None
        if found and found[0] != pages[path]:
            raise InputError(
                f"output {path}: is the {found[1]} of {html.unescape(found[2])}; choose another name, move it away, "
                f"or add --overwrite"
            )
        if path.exists() and not found and not record.is_file():
            raise InputError(
                f"output {path}: is there already, and no {record} shows that it was made here; choose another name, "
                f"move it away, or add --overwrite"
            )


def remember(record: Path, content: Path, target: Path) -> None:
    """Record that a file is going to be put somewhere, so that :func:`check_unchanged` knows it again."""
    known = read_record(record) or {}
    write_record(record, {**known, target.name: sorted({*known.get(target.name, []), file_sha256(content)})})


def check_unchanged(record: Path, *files: Path, overwrite: bool) -> None:
    """Refuse to replace a file that somebody has changed since it was put there.

    Args:
        record: in which :func:`remember` keeps what was put where.
        files: what is going to be replaced.
        overwrite: let it be.

    Raises:
        InputError: naming the file.
    """
    known = read_record(record) or {}
    for path in files:
        ours = known.get(path.name)
        if ours and not overwrite and path.is_file() and file_sha256(path) not in ours:
            raise InputError(
                f"output {path}: has been changed since it was written here; move it away, or add --overwrite"
            )


def check_report(path: Path) -> None:
    """Refuse to replace what is no report of ours.

    Raises:
        InputError: naming the file.
    """
    found = _mark_in(path)
    if path.exists() and not (found and found[1] == "report"):
        raise InputError(
            f"output {path}: is there already, and no report made here; choose another name, or move it away"
        )


def is_marked(path: Path, with_mark: str) -> bool:
    """Whether a page is there and carries this mark."""
    found = _mark_in(path)
    return found is not None and found[0] == with_mark


def _mark_in(path: Path) -> re.Match[str] | None:
    return _MARK.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
