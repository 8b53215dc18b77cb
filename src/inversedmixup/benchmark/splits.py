"""Which labelled rows a method may train on, and which ones it is measured on: the same for every method."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from inversedmixup.errors import InputError
from inversedmixup.folds import folds_of
from inversedmixup.labelled import take_shots
from inversedmixup.same_text import words_of
from inversedmixup.schema import Example

logger = logging.getLogger(__name__)

FOLDS = 5  # of cross-validation
LARGEST = 100  # rows of the largest class of a long tail
DRAW_HELP = (
    "training rows of a split: a number for so many of each class, 80% for a share, full, tail:50 for classes whose "
    "sizes fall exponentially by that ratio, cv for 5-fold cross-validation, repeated"
)


@dataclasses.dataclass(frozen=True)
class Draw:
    """How training rows are drawn: ``kind`` is ``shots``, ``share``, ``full``, ``tail`` or ``cv``."""

    kind: str
    amount: float = 0.0


def parse_draw(text: str) -> Draw:
    """Read ``10``, ``80%``, ``full``, ``tail:50`` or ``cv``.

    Raises:
        InputError: for anything else.
    """
    if text in ("full", "cv"):
        return Draw(text)
    if (found := re.fullmatch(r"tail:(\d+(?:\.\d+)?)", text)) and float(found[1]) >= 1:
        return Draw("tail", float(found[1]))
    if (found := re.fullmatch(r"(\d+(?:\.\d+)?)%", text)) and 0 < float(found[1]) <= 100:
        return Draw("share", float(found[1]) / 100)
    if re.fullmatch(r"[1-9]\d*", text):
        return Draw("shots", int(text))
    raise InputError(f"draw {text!r}: expected {DRAW_HELP}")


def draw_rows(
    rows: Sequence[Example], test: Sequence[Example], draw: Draw, number: int, *, seed: int
) -> tuple[list[Example], list[Example]]:
    """Training and test rows of split ``number``, drawn by (seed, number) alone.

    Args:
        rows: labelled rows to draw from.
        test: a test set of its own; empty with ``cv``, which holds rows out.
        draw: how.
        number: 0, 1, …
        seed: the data seed.
    """
    own = _own_seed(number, seed)
    if draw.kind == "cv":
        # of a seed of their own: seed + repetition would draw the folds of the next data seed once more
        repetition = _own_seed(number // FOLDS, seed)
        held = folds_of(rows, seed=repetition, folds=FOLDS) == number % FOLDS
        train = [row for row, out in zip(rows, held, strict=True) if not out]
        seen = {words_of(row.text) for row in train}
        tested = (row for row, out in zip(rows, held, strict=True) if out)
        return train, _known(train, [row for row in tested if words_of(row.text) not in seen])
    if draw.kind == "shots":
        train = take_shots(rows, int(draw.amount), seed=own)
    elif draw.kind == "full":
        train = list(rows)
    else:
        train = _take(rows, _sizes(rows, draw, own), own)
    return train, _known(train, test)


def shared_rows(rows: Sequence[Example], draw: Draw, splits: int, *, seed: int) -> float:
    """Share of its training rows that one split has in common with another, as expected over all pairs of splits.

    Of a class of N rows, two splits that draw n and m of them share n · m / N.

    Args:
        rows: labelled rows to draw from.
        draw: how; not ``cv``, whose splits are not drawn apart from one another.
        splits: how many; fewer than two are taken for two.
        seed: the data seed.
    """
    counts = Counter(row.label for row in rows)
    numbers = range(max(2, splits))
    drawn = [_sizes(rows, draw, _own_seed(number, seed)) for number in numbers]
    taken = np.array([[sizes[name] for name in counts] for sizes in drawn], dtype=float)
    share = taken / np.array(list(counts.values()))
    pairs = taken.sum(0) * share.sum(0) - (taken * share).sum(0)  # [classes], both orders, none with itself
    return float(pairs.sum() / (len(numbers) - 1) / taken.sum())


def _own_seed(number: int, seed: int) -> int:
    """The seed of one split, or of one repetition of cross-validation."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _sizes(rows: Sequence[Example], draw: Draw, seed: int) -> dict[str, int]:
    """Rows to draw of each class; a long tail's classes are put in order by the seed (Cui et al. 2019, section 5.1)."""
    counts = Counter(row.label for row in rows)
    if draw.kind == "tail":
        order = np.random.default_rng([seed, 1]).permutation(len(counts))
        last = max(1, len(counts) - 1)
        falling = zip(sorted(counts), order, strict=True)
        sizes = {name: max(1, round(LARGEST * draw.amount ** (-at / last))) for name, at in falling}
    elif draw.kind == "share":
        sizes = {name: max(1, round(draw.amount * count)) for name, count in counts.items()}
    else:
        sizes = dict(counts) if draw.kind == "full" else dict.fromkeys(counts, int(draw.amount))
    return {name: min(size, counts[name]) for name, size in sizes.items()}


def _take(rows: Sequence[Example], sizes: dict[str, int], seed: int) -> list[Example]:
    """So many rows of each class, in their original order."""
    order, taken = np.random.default_rng([seed, 2]).permutation(len(rows)), []
    for at in order.tolist():
        if sizes[rows[at].label] > 0:
            sizes[rows[at].label] -= 1
            taken.append(at)
    return [rows[at] for at in sorted(taken)]


def _known(train: Sequence[Example], test: Sequence[Example]) -> list[Example]:
    """Test rows of classes that occur in training; what nobody can learn is the same loss for every method."""
    classes = {row.label for row in train}
    known = [row for row in test if row.label in classes]
    if len(known) < len(test):
        logger.warning(
            "%d of %d test rows are of classes without a training row: left out", len(test) - len(known), len(test)
        )
    return known
