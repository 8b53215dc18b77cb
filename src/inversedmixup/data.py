"""What the records of a file become: labelled rows, or texts. What is no sentence is left out and counted.

Reading streams: nothing here holds a file in memory.
"""

from __future__ import annotations

import logging
import math
import numbers
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inversedmixup.errors import InputError
from inversedmixup.files import iter_records
from inversedmixup.schema import Example

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 2000  # a longer text is no sentence: it is left out and counted
MAX_LABEL_CHARACTERS = 200  # a longer label is no class name: another column was meant
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
NOT_TEXT = "not a text"
MISSING_WORDS = ("NA", "N/A", "nan", "NaN", "null", "NULL", "None")  # what programs write for a missing label


def unusable(text: str) -> str | None:
    """Why a text cannot be a sentence here; ``None`` if it can."""
    if len(text) > MAX_CHARACTERS:
        return f"text over {MAX_CHARACTERS} characters"
    return _unwritable(text)


def check_several(texts: Any) -> None:  # noqa: ANN401
    """Refuse one string where several are expected: it is a sequence, too, of its letters.

    Raises:
        InputError: if it is one.
    """
    if isinstance(texts, str):
        raise InputError("one string was given where a list of sentences is expected; put it in brackets")


def check_sentence(name: str, text: str) -> None:
    """Refuse what can be neither end of a mix.

    Raises:
        InputError: naming the end, ``first`` or ``second``.
    """
    if not text.strip() or len(text) > MAX_CHARACTERS:
        raise InputError(f"the {name} sentence has {len(text)} characters; give 1 to {MAX_CHARACTERS}")
    if reason := unusable(text):
        raise InputError(f"the {name} sentence holds {reason}; remove it")


def _unwritable(text: str) -> str | None:
    """The reason if a text holds what not every file can."""
    if "\0" in text:
        return "a NUL character"
    return "half a character (a lone surrogate)" if LONE_SURROGATE.search(text) else None


def iter_texts(paths: Sequence[str | Path], text_column: str = "text", *, log: bool = False) -> Iterator[str]:
    """The texts of unlabelled files, one after the other; what can be no sentence is passed over.

    With ``log``, how many were is logged at the end of each file.
    """
    for path in paths:
        for text, _ in iter_sourced(path, text_column, log=log):
            yield text


def iter_sourced(path: str | Path, text_column: str = "text", *, log: bool = True) -> Iterator[tuple[str, str | None]]:
    """The texts of one file as :func:`iter_texts` gives them, each with its ``source`` column if there is one."""
    column, left_out, seen = _text_column(path, text_column), _LeftOut(), set[str]()
    for number, record in iter_records(path, {column, "source"}):
        value = _column(record, column, path, number, "--text-column", seen)
        if reason := _no_sentence(value):
            left_out.add(reason, number)
        else:
            source = record.get("source")
            yield " ".join(value.split()), None if source is None else str(source)
    if log:
        left_out.log(path)


def check_texts(path: str | Path, text_column: str) -> None:
    """Refuse a file of unlabelled text without a usable row.

    Raises:
        InputError: naming the file.
    """
    if next(iter_texts([path], text_column, log=True), None) is None:
        raise InputError(f"{path}: no usable row; every row needs a text")


def _no_sentence(value: Any) -> str | None:  # noqa: ANN401
    """Why a value of the text's column cannot be a sentence; ``None`` if it can."""
    if isinstance(value, str):
        return unusable(value) if value.strip() else "empty text"
    return "empty text" if label_name(value) is None else NOT_TEXT


def _is_txt(path: str | Path) -> bool:
    return str(path).lower().endswith(".txt")


def _text_column(path: str | Path, name: str) -> str:
    """The text's column; lines of a .txt file are texts, whatever that of other files is called."""
    return "text" if _is_txt(path) else name


def _column(record: dict[str, Any], name: str, path: str | Path, row: int, flag: str, seen: set[str]) -> Any:  # noqa: ANN401
    """A value by its column; none where earlier rows had one, as JSON is often written without what is null."""
    if name in record:
        seen.add(name)
    elif name not in seen:
        found = ", ".join(repr(key) if key != str(key).strip() else str(key) for key in record) or "none"
        raise InputError(
            f"{path}: row {row}: no column {name!r} (found: {found}); choose one with {flag}, which is for every file, "
            f"or rename it here"
        )
    return record.get(name)


def label_name(value: Any) -> str | None:  # noqa: ANN401
    """A label as a string, the same for 1, 1.0 and "1" and for both spellings of é; ``None`` for a missing one."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)) or str(value) == "<NA>":
        return None  # <NA> is pandas' missing value
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return " ".join(unicodedata.normalize("NFC", str(value)).split()) or None


def read_examples(path: str | Path, *, text_column: str = "text", label_column: str = "label") -> list[Example]:
    """Labelled rows of a file; see :func:`iter_examples`."""
    return list(iter_examples(path, text_column=text_column, label_column=label_column))


def iter_examples(
    path: str | Path, *, text_column: str = "text", label_column: str = "label", origin: str | None = None
) -> Iterator[Example]:
    """Labelled rows of a file, one by one. Empty, overlong or unlabelled rows are left out, counted and logged.

    Args:
        path: the file.
        text_column: column of the text.
        label_column: column of the label.
        origin: what the file is called where it is told of; default: its path.

    Raises:
        InputError: for a file, column or row that cannot be read, or if nothing is left.
    """

    def rows() -> Iterator[tuple[int, Any, Any, Any]]:
        seen = set[str]()
        for number, record in iter_records(path, {"id", text_column, label_column}):
            text = _column(record, text_column, path, number, "--text-column", seen)
            label = _column(record, label_column, path, number, "--label-column", seen)
            yield number, record.get("id"), text, label

    return checked_examples(rows(), origin or str(path))


def iter_unlabelled(path: str | Path, *, text_column: str = "text", origin: str | None = None) -> Iterator[Example]:
    """Rows of a file that are to be labelled, one by one, with empty labels; see :func:`iter_examples`.

    A line of a .txt file has its number, counted from 0, as its id.
    """
    lines, column = _is_txt(path), _text_column(path, text_column)

    def rows() -> Iterator[tuple[int, Any, Any, Any]]:
        seen = set[str]()
        for number, record in iter_records(path, {"id", column}):
            text = _column(record, column, path, number, "--text-column", seen)
            yield number, number - 1 if lines else record.get("id"), text, None

    return checked_examples(rows(), origin or str(path), labelled=False)


def checked_examples(
    rows: Iterable[tuple[int, Any, Any, Any]], origin: str, *, labelled: bool = True
) -> Iterator[Example]:
    """Examples from ``(row number, id, text, label)``; see :func:`iter_examples`. Or with empty labels."""
    left_out, doubtful, first = _LeftOut(), Counter[str](), None
    for index, (number, identity, text, label) in enumerate(rows):
        name = _checked_label(label, f"{origin}: row {number}") if labelled else ""
        given = label_name(identity) is not None
        reason = _no_sentence(text)
        if reason == NOT_TEXT:
            raise InputError(f"{origin}: row {number}: the text is a {type(text).__name__}, not a string")
        if reason or (reason := _unwritable(f"{identity}{name}")):
            left_out.add(reason, number)
        elif name is None:
            left_out.add("no label", number)
        else:
            first = first or (number, given)
            if given != first[1]:
                lacks, has = (first[0], number) if given else (number, first[0])
                raise InputError(
                    f"{origin}: row {lacks}: has no id, but row {has} has one; give every row one, or rename the "
                    f"column 'id'"
                )
            if name in MISSING_WORDS:
                doubtful[name] += 1
            yield Example(str(identity if given else index), " ".join(text.split()), name)
    left_out.log(origin)
    for name, count in doubtful.items():
        logger.warning("%s: %d row(s) have the label %r; if that stands for none, remove them", origin, count, name)
    if first is None:
        raise InputError(f"{origin}: no usable row; every row needs a text{' and a label' if labelled else ''}")


class _LeftOut:
    """How many rows were left out, by reason, and the first few of them."""

    def __init__(self) -> None:
        self.count, self.first = Counter[str](), dict[str, list[int]]()

    def add(self, reason: str, row: int) -> None:
        self.count[reason] += 1
        if self.count[reason] <= 5:
            self.first.setdefault(reason, []).append(row)

    def log(self, origin: str | Path) -> None:
        for reason, count in self.count.items():
            rows = ", ".join(map(str, self.first[reason])) + (", …" if count > 5 else "")
            logger.warning("%s: %d row(s) left out, %s: row %s", origin, count, reason, rows)


def _checked_label(label: Any, where: str) -> str | None:  # noqa: ANN401
    """The name of a label; ``None`` for a missing one.

    Raises:
        InputError: for what is no label: a list, bytes, a date, a whole text.
    """
    name = label_name(label)
    if name is not None and not isinstance(label, str | numbers.Number | np.bool_):
        raise InputError(f"{where}: the label is a {type(label).__name__}, not a name or a number")
    if name is not None and len(name) > MAX_LABEL_CHARACTERS:
        raise InputError(f"{where}: the label has {len(name)} characters; is --label-column the right one?")
    return name
