"""Which of the user's rows are held out from what learns from the others, to say what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from inversedmixup.labelled import class_names, class_numbers
from inversedmixup.same_text import fingerprint, words_of
from inversedmixup.schema import Example

FOLDS = 3  # of the cross-validation of what learns from the rows
ENOUGH_ROWS = 36  # held out: for more, no further model is fitted
MEASURED_ROWS = 48  # of those held out, on which accuracy and calibration are measured


def folds_of(examples: Sequence[Example], *, seed: int, folds: int = FOLDS) -> np.ndarray:
    """The fold [n] that each row is held out in: as many texts of every class in each, and no text in two of them."""
    numbers, rng = class_numbers(examples, class_names(examples)), np.random.default_rng([seed, 9])
    first = _first_of_text(examples)  # a held-out row must not be learnt from its copy
    heads = np.unique(first)
    if len(heads) < 2:  # one text alone cannot be parted
        first = heads = np.arange(len(numbers))
    numbers = numbers[heads]
    place, begin = np.empty(len(heads), dtype=int), 0
    for number in range(numbers.max(initial=-1) + 1):
        rows = rng.permutation(np.flatnonzero(numbers == number))
        place[rows] = begin + np.arange(len(rows))
        begin += len(rows)
    fold: np.ndarray = (place % folds)[np.searchsorted(heads, first)]
    return fold


def held_out_rows(examples: Sequence[Example], *, seed: int) -> np.ndarray:
    """Numbers [m] of the rows to measure on: those of as many folds as hold enough of them, as each costs a model."""
    fold_of = folds_of(examples, seed=seed)
    fair = learnable(class_numbers(examples, class_names(examples)), fold_of)
    held = np.cumsum(np.bincount(fold_of[fair], minlength=FOLDS))
    return np.flatnonzero(fair & (fold_of <= (held < ENOUGH_ROWS).sum()))


def learnable(numbers: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """Whether [n] the class of each row has rows in other folds.

    Who has never seen a class must be wrong about it; who is used afterwards has seen it.

    Args:
        numbers: classes [n].
        fold_of: see :func:`folds_of`.
    """
    counts = np.zeros((numbers.max(initial=-1) + 1, FOLDS), dtype=np.int64)
    np.add.at(counts, (numbers, fold_of), 1)
    known: np.ndarray = counts.sum(axis=1)[numbers] > counts[numbers, fold_of]
    return known


def measured_rows(rows: np.ndarray, *, seed: int) -> list[int]:
    """The rows that are asked about, of those that may be."""
    return np.random.default_rng([seed, 6]).permutation(rows)[:MEASURED_ROWS].tolist()  # type: ignore[no-any-return]


def _first_of_text(examples: Sequence[Example]) -> np.ndarray:
    """The first row [n] with the same words as each row."""
    texts = np.fromiter((fingerprint(words_of(row.text)) for row in examples), dtype=np.uint64, count=len(examples))
    _, first, which = np.unique(texts, return_index=True, return_inverse=True)
    found: np.ndarray = first[which]
    return found


def by_fold(
    rows: Sequence[int] | np.ndarray, fold_of: np.ndarray, ask: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Answers [m, …] about rows, each by somebody who has not learnt from the row's fold; one is made for each fold.

    Args:
        rows: numbers [m] of those asked about, at least one.
        fold_of: see :func:`folds_of`.
        ask: makes somebody who has learnt from some rows [l], and returns what he says of others [k]: [k, …].
    """
    asked = np.asarray(rows, dtype=np.int64)
    order, answers = list[np.ndarray](), list[np.ndarray]()
    for fold in np.unique(fold_of[asked]):
        order.append(np.flatnonzero(fold_of[asked] == fold))
        answers.append(ask(np.flatnonzero(fold_of != fold), asked[order[-1]]))
    said: np.ndarray = np.concatenate(answers)[np.argsort(np.concatenate(order))]
    return said
