"""Labelled rows that need not fit in memory: JSON Lines on disk, of which only what finds a row is held.

Stages ask for rows by number and for the class of every row; nothing asks for all texts at once.
"""

from __future__ import annotations

import abc
import hashlib
import json
import logging
import mmap
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar, overload

import numpy as np

from inversedmixup.errors import InputError, unfinished
from inversedmixup.same_text import fingerprint, words_of
from inversedmixup.schema import Example, LabelledText, Row

logger = logging.getLogger(__name__)
T = TypeVar("T", covariant=True)

COPIED = 2**20  # bytes at a time


class Lazy(Sequence[T]):
    """A sequence that gets an item when it is asked for it; subclasses say how many there are, and how one is got."""

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self.item(number) for number in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return self.item(int(at) % len(self))

    def __iter__(self) -> Iterator[T]:
        return map(self.item, range(len(self)))

    @abc.abstractmethod
    def item(self, number: int) -> T:
        """Item ``number``, in [0, n)."""


class Labelled(Lazy[Example]):
    """Rows whose classes are known without reading them.

    Attributes:
        classes: sorted class names.
        numbers: the class of each row, as a number into ``classes``, [n].
    """

    classes: list[str]
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)


class ExampleFile(Labelled):
    """A file of labelled rows, mapped into memory by the system; 28 bytes a row are held, however long their texts.

    Made by :meth:`write` or :meth:`read`.

    Args:
        file: the open file, JSON Lines with the fields of :class:`Example`.
        index: what finds its rows.
    """

    def __init__(self, file: IO[bytes], index: _Index) -> None:
        self._bytes: mmap.mmap | bytes = _mapped(file) if index.ends else b""
        self.ends = np.array(index.ends, dtype=np.int64)
        self.classes = sorted(index.number)
        place = np.array([self.classes.index(name) for name in index.number], dtype=np.int32)
        self.numbers = place[np.array(index.names, dtype=np.int32)]
        ids = np.array(index.ids, dtype=np.uint64)
        self._by_id = np.argsort(ids, kind="stable")
        self._ids = ids[self._by_id]

    @classmethod
    def write(cls, folder: Path, examples: Iterable[Example]) -> ExampleFile:
        """Write rows, one after the other, into a file without a name, which is gone with the process."""
        index = _Index()
        with tempfile.TemporaryFile(dir=folder) as file:
            for example in examples:
                line = as_line(example)
                file.write(line)
                index.add(example, len(line))
            file.flush()
            return cls(file, index)

    @classmethod
    def read(cls, path: Path) -> ExampleFile:
        """The rows of a file that :meth:`save` wrote.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it holds something else, or nothing.
        """
        index = _Index()
        with path.open("rb") as file:
            for line in file:
                try:
                    example = from_line(line)
                except (TypeError, RecursionError) as error:
                    raise ValueError(f"not a labelled row ({error})") from None
                if not all(isinstance(value, str) for value in vars(example).values()):
                    raise ValueError("not a labelled row (a field is no text)")
                index.add(example, len(line))
            if not index.ends:
                raise ValueError("no row")
            return cls(file, index)

    def save(self, path: Path) -> None:
        """Write the rows to a place of their own, whole or not at all; from then on they are read there."""
        partial = unfinished(path)
        with partial.open("w+b") as file:
            for begin in range(0, len(self._bytes), COPIED):
                file.write(self._bytes[begin : begin + COPIED])
            file.flush()
            self._bytes = _mapped(file)
        partial.replace(path)

    def item(self, number: int) -> Example:
        """See :class:`Lazy`."""
        begin = int(self.ends[number - 1]) if number else 0
        return from_line(self._bytes[begin : int(self.ends[number])])

    def find(self, identity: str) -> Example | None:
        """The (first) row of this id."""
        sought = np.uint64(fingerprint(identity))
        begin, end = np.searchsorted(self._ids, sought), np.searchsorted(self._ids, sought, side="right")
        rows = (self.item(int(at)) for at in self._by_id[begin:end])
        return next((row for row in rows if row.id == identity), None)

    def repeated_id(self) -> str | None:
        """An id that two rows have."""
        alike = np.flatnonzero(self._ids[1:] == self._ids[:-1])  # different ids may be, by a rare chance
        seen: set[str] = set()
        for at in np.unique([alike, alike + 1]):
            identity = self.item(int(self._by_id[at])).id
            if identity in seen:
                return identity
            seen.add(identity)
        return None


def _mapped(file: IO[bytes]) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class _Index:
    """What finds the rows of a file, gathered row by row."""

    def __init__(self) -> None:
        self.ends, self.names, self.ids = array("q"), array("i"), array("Q")
        self.number: dict[str, int] = {}

    def add(self, example: Example, length: int) -> None:
        self.ends.append((self.ends[-1] if self.ends else 0) + length)
        self.names.append(self.number.setdefault(example.label, len(self.number)))
        self.ids.append(fingerprint(example.id))


class Subset(Labelled):
    """Some rows of others; ``classes`` are those of all, even such as have no row here.

    Args:
        examples: all of them.
        rows: numbers [m] of those meant.
        classes: class names of all.
    """

    def __init__(self, examples: Sequence[Example], rows: np.ndarray, classes: Sequence[str]) -> None:
        self.examples, self.rows, self.classes = examples, rows, sorted(classes)
        self.numbers = class_numbers(examples, self.classes)[rows]

    def item(self, number: int) -> Example:
        """See :class:`Lazy`."""
        return self.examples[int(self.rows[number])]


class Texts(Lazy[str]):
    """The texts of rows."""

    def __init__(self, rows: Sequence[Example | Row | LabelledText]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, number: int) -> str:
        """See :class:`Lazy`."""
        return self.rows[number].text


def class_names(examples: Sequence[Example]) -> list[str]:
    """Sorted class names."""
    return list(examples.classes) if isinstance(examples, Labelled) else sorted({row.label for row in examples})


def class_numbers(examples: Sequence[Example], classes: Sequence[str]) -> np.ndarray:
    """The class of each row, as a number into ``classes``, [n]."""
    number = {name: at for at, name in enumerate(classes)}
    if isinstance(examples, Labelled):
        taken: np.ndarray = np.array([number[name] for name in examples.classes], dtype=np.int64)[examples.numbers]
        return taken
    return np.array([number[example.label] for example in examples], dtype=np.int64)


def class_shares(examples: Sequence[Example], classes: Sequence[str]) -> np.ndarray:
    """Share [classes] of the rows that each class has."""
    return shares_of(class_numbers(examples, classes), len(classes))


def shares_of(numbers: np.ndarray, classes: int) -> np.ndarray:
    """Share [classes] of each class among rows of these classes [n]."""
    return np.bincount(numbers, minlength=classes) / max(1, len(numbers))


def class_counts(examples: Sequence[Example]) -> dict[str, int]:
    """Rows per class, largest first; of equal ones the class that comes first in the rows."""
    classes = class_names(examples)
    there, first, counts = np.unique(class_numbers(examples, classes), return_index=True, return_counts=True)
    return {classes[there[at]]: int(counts[at]) for at in np.lexsort([first, -counts])}


def check_classes(examples: Sequence[Example], origin: str) -> list[str]:
    """The sorted class names of a training set.

    Raises:
        InputError: if there are fewer than two.
    """
    classes = class_names(examples)
    if not classes:
        raise InputError(f"{origin}: no row is left to learn from")
    if twice := [name for name in classes if re.fullmatch(r"-?\d+\.0+", name) and name.partition(".")[0] in classes]:
        logger.warning("%s: labels %r and %r are two classes", origin, twice[0].partition(".")[0], twice[0])
    if len(classes) < 2:
        raise InputError(f"{origin}: every row has the label {classes[0]!r}; mixing needs at least two classes")
    return classes


def check_known_labels(examples: Sequence[Example], classes: Sequence[str], origin: str) -> None:
    """Refuse a label that the training set does not have.

    Raises:
        InputError: naming the label.
    """
    for name in class_names(examples):
        if name not in classes:
            raise InputError(
                f"{origin}: label {name!r} does not occur in the training set "
                f"({', '.join(list(classes)[:8])}{', …' if len(classes) > 8 else ''}); correct it or remove its rows"
            )


def warn_of_seen(test: Iterable[Example], examples: Iterable[Example], origin: str) -> None:
    """Say how many rows that are measured on are trained on too."""
    measured = Counter(words_of(row.text) for row in test)
    if measured and (seen := {words for row in examples if (words := words_of(row.text)) in measured}):
        logger.warning(
            "%s: %d of %d rows are training rows too, and flatter the accuracies; measure on others",
            origin, sum(measured[text] for text in seen), measured.total(),
        )  # fmt: skip


def take_shots(examples: Sequence[Example], shots: int, *, seed: int) -> list[Example]:
    """``shots`` examples of each class, drawn by ``seed`` alone, in their original order."""
    return list(iter_shots(examples, shots, seed=seed))


def iter_shots(examples: Sequence[Example], shots: int, *, seed: int) -> Iterator[Example]:
    """The same, one by one."""
    if shots < 1:
        raise InputError(f"shots {shots}: must be at least 1")
    classes = class_names(examples)
    numbers, rng = class_numbers(examples, classes), np.random.default_rng(seed)
    chosen: list[int] = []
    for number, name in enumerate(classes):
        rows = np.flatnonzero(numbers == number)
        if len(rows) < shots:
            logger.warning("class %r has %d rows, fewer than the %d shots asked for", name, len(rows), shots)
        chosen += rng.permutation(rows)[:shots].tolist()
    return (examples[at] for at in sorted(chosen))


def sample_rows(examples: Sequence[Example], count: int, *, each: int, seed: int | Sequence[int]) -> list[Example]:
    """At most ``count`` rows, in their original order; see :func:`sample_numbers`."""
    numbers = class_numbers(examples, class_names(examples))
    return [examples[at] for at in sample_numbers(numbers, count, each=each, seed=seed).tolist()]


def sample_numbers(
    numbers: np.ndarray, count: int, *, each: int | None = None, seed: int | Sequence[int]
) -> np.ndarray:  # fmt: skip
    """Which of some rows [n, at least one] to take: at most ``count`` [m], drawn by ``seed``; every class keeps some.

    Args:
        numbers: the rows' classes [n].
        count: how many; more only where there are more classes, each of which keeps one row.
        each: rows that a class keeps, or all that it has; fewer where ``count`` is too small for as many of all. A draw
            without regard to the classes that has as many of each is left as it is. Default: so many that half of the
            draw is shared evenly.
        seed: decides which.
    """
    there = np.unique(numbers)
    order = np.random.default_rng(seed).permutation(len(numbers))
    least = max(1, min(count // (2 * len(there)) if each is None else each, count // len(there)))
    drawn = numbers[order]
    kept = np.concatenate([np.flatnonzero(drawn == number)[:least] for number in there])
    others = np.delete(np.arange(len(order)), kept)[: max(0, count - len(kept))]
    taken: np.ndarray = np.sort(order[np.concatenate([kept, others])])
    return taken


def finder(examples: Sequence[Example]) -> Callable[[str], Example | None]:
    """What finds the row of an id."""
    if isinstance(examples, ExampleFile):
        return examples.find
    return {example.id: example for example in reversed(examples)}.get


def repeated_id(examples: Sequence[Example]) -> str | None:
    """An id that two rows have, if any two have the same."""
    if isinstance(examples, ExampleFile):
        return examples.repeated_id()
    seen: set[str] = set()
    return next((row.id for row in examples if row.id in seen or seen.add(row.id)), None)  # type: ignore[func-returns-value]


def as_line(example: Example) -> bytes:
    """A row as one line of JSON."""
    return json.dumps(vars(example), ensure_ascii=False).encode() + b"\n"


def from_line(line: bytes) -> Example:
    """The row that :func:`as_line` wrote."""
    return Example(**json.loads(line))


def inputs_digest(*parts: Iterable[Example]) -> str:
    """sha256 of the input rows, so that a changed file is a changed run."""
    found = hashlib.sha256()
    for part in parts:
        for example in part:
            found.update(as_line(example))
        found.update(b"\n")
    return found.hexdigest()
