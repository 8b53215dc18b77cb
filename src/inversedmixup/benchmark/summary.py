"""Run records → what they say: by set, shots, protocol and method, and over sets."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from inversedmixup.baselines import BASELINE
from inversedmixup.benchmark import statistics
from inversedmixup.benchmark.records import (
    ADDED,
    MEASURES,
    RARE,
    Place,
    Record,
    Scores,
    by_place,
    check_records,
    paired,
)

Group = tuple[str, str]  # shots, protocol


def summarise(records: Iterable[Record]) -> dict[str, Any]:
    """Everything that ``summary.json`` holds; the order of the records does not matter.

    Raises:
        InputError: for a record that lacks something or holds no number, for two records of the same run, and without
            the ``benchmark`` extra.
    """
    statistics.check_extra()
    records = list(records)
    check_records(records)
    tables = {measure: by_place(records, measure) for measure in (*MEASURES, RARE)}
    added = by_place(records, ADDED)
    groups: dict[Group, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))  # → method → set
    for place in sorted(tables["accuracy"]):
        name, shots, protocol, method = place
        groups[shots, protocol][method][name] = cell = _cell(place, tables)
        if place in added:
            cell[ADDED] = round(float(np.mean(list(added[place].values()))), 1)
    sets: dict[str, Any] = {}
    over: dict[str, Any] = {}
    for (shots, protocol), methods in groups.items():
        for method, cells in methods.items():
            _decide(cells)
            for name, cell in cells.items():
                sets.setdefault(name, {}).setdefault(shots, {}).setdefault(protocol, {})[method] = cell
            over.setdefault(shots, {}).setdefault(protocol, {})[method] = _over_sets(
                {(name, shots, protocol, method): cell for name, cell in cells.items()}, tables
            )
    return {
        "baseline": BASELINE, "rope": statistics.ROPE, "level": statistics.LEVEL, "alpha": statistics.ALPHA,
        "runs": len(records), "sets": sets, "over_sets": over,
    }  # fmt: skip


def _cell(place: Place, tables: Mapping[str, Mapping[Place, Scores]]) -> dict[str, Any]:
    """One method on one set."""
    cell: dict[str, Any] = {"splits": len(tables["accuracy"][place]), "measures": {}}
    for measure, table in tables.items():
        if place not in table:
            continue
        found: dict[str, Any] = {"mean": _round(math.fsum(table[place].values()) / len(table[place]))}
        differences = _differences(place, table)
        if len(differences):
            drawn = _drawn(place)
            found |= {
                "difference": _round(differences.mean()),
                "interval": _ends(statistics.interval_on_splits(differences)) if drawn else None,
            }  # fmt: skip
            if measure == "accuracy":
                cell["paired_splits"] = len(differences)
                if drawn:
                    cell["p"] = statistics.wilcoxon_p(differences)
        cell["measures"][measure] = found
    return cell


def _differences(place: Place, table: Mapping[Place, Scores]) -> np.ndarray:
    """Of a method to the baseline, [splits that both have]; the baseline has none."""
    if place[-1] == BASELINE:
        return np.array([])
    return paired(table.get(place, {}), table.get((*place[:-1], BASELINE), {}))


def _drawn(place: Place) -> bool:
    """Whether splits are draws of rows: those of all rows differ in their seeds alone, and say nothing of draws."""
    return place[1] != "full"


def _decide(cells: Mapping[str, dict[str, Any]]) -> None:
    """Add what Holm says of one method's sets."""
    adjusted = statistics.holm({name: cell["p"] for name, cell in cells.items() if "p" in cell})
    for name, p_value in adjusted.items():
        difference = cells[name]["measures"]["accuracy"]["difference"]
        cells[name] |= {"p_holm": p_value, "outcome": statistics.outcome(difference, p_value)}


def _over_sets(cells: Mapping[Place, dict[str, Any]], tables: Mapping[str, Mapping[Place, Scores]]) -> dict[str, Any]:
    """One method over its sets, each counting the same."""
    found: dict[str, Any] = {"sets": len(cells), "measures": {}}
    if counts := [cell[ADDED] for cell in cells.values() if ADDED in cell]:
        found[ADDED] = round(float(np.mean(counts)), 1)
    for measure, table in tables.items():
        means = [cell["measures"][measure]["mean"] for cell in cells.values() if measure in cell["measures"]]
        if not means:
            continue
        found["measures"][measure] = {"mean": _round(np.mean(means))}
        differences = [one for place in cells if len(one := _differences(place, table))]
        gains = [float(one.mean()) for one in differences]
        if gains:
            both = statistics.intervals(differences)
            if not all(map(_drawn, cells)):
                both["interval_on_these"] = None
            found["measures"][measure] |= {
                "difference": _round(math.fsum(gains) / len(gains)),
                **{name: _ends(interval) for name, interval in both.items()},
            }
        if gains and measure == "accuracy":
            outcomes = [cell["outcome"] for cell in cells.values() if "outcome" in cell]
            found |= {word: outcomes.count(word) for word in ("helped", "hurt", "undecided")}
            found |= {"compared_sets": len(gains), "probability": statistics.signed_rank(gains)}
    return found


def _ends(interval: tuple[float, float] | None) -> list[float] | None:
    return interval and [_round(end) for end in interval]


def _round(value: float) -> float:
    return round(float(value), 6)
