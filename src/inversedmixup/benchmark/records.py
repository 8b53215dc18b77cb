"""Run records, checked and lined up so that methods are compared on the same splits.

A run record is one trained task model: ``set``, ``shots``, ``split``, ``protocol``, ``method``, ``seed``, how many rows
it saw, and its measures on the test rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from inversedmixup.errors import InputError

MEASURES = ("accuracy", "macro_f1", "ece", "nll")  # the first decides; of the last two less is better
RARE = "rare_recall"  # mean recall of the rarer half of the classes, in records of long tails
ADDED = "added"  # rows that the method added to a split's own
PLACE = ("set", "shots", "protocol", "method")

Record = Mapping[str, Any]
Place = tuple[str, ...]
Scores = dict[int, float]  # by split


def run_of(record: Record) -> tuple[Any, ...]:
    """What tells one run from all others."""
    return tuple(record[key] for key in (*PLACE, "split", "seed"))


def check_records(records: Iterable[Record]) -> None:
    """Refuse records that cannot be compared.

    Raises:
        InputError: naming the first of them.
    """
    seen = set()
    for record in records:
        missing = [key for key in (*PLACE, "split", "seed", *MEASURES) if key not in record]
        if missing:
            raise InputError(f"a run record has no {missing[0]!r}; it has {', '.join(sorted(record)) or 'nothing'}")
        run = run_of(record)
        where = f"run record {' / '.join(map(str, run))}"
        for measure in (*MEASURES, RARE, ADDED):
            value = record.get(measure)
            if (value is not None or measure in MEASURES) and not _is_number(value):
                raise InputError(f"{where}: {measure} is {value!r}, not a number; delete the file and run it again")
        if run in seen:
            raise InputError(f"{where} is there twice; keep one of the two files")
        seen.add(run)


def paired(scores: Scores, baseline: Scores) -> np.ndarray:
    """Differences to the baseline on the splits that both have, in the order of the splits."""
    return np.array([scores[split] - baseline[split] for split in sorted(scores.keys() & baseline.keys())])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _measure(record: Record, name: str) -> float:
    """One of a record's measures; an accuracy as the share of whole rows that it was before it was rounded.

    Rounded ones differ by a digit where as many rows do, which would break the ties of a signed-rank test.
    """
    value, rows = float(record[name]), record.get("test")
    return round(value * rows) / rows if name == "accuracy" and rows else value


def by_place(records: Iterable[Record], measure: str) -> dict[Place, Scores]:
    """A measure of every method by its place and by split.

    Several seeds of a split are averaged: they are not independent data.
    """
    values: dict[Place, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.get(measure) is not None:
            values[tuple(record[key] for key in PLACE)][record["split"]].append(_measure(record, measure))
    return {
        place: {split: math.fsum(found) / len(found) for split, found in splits.items()}
        for place, splits in values.items()
    }
