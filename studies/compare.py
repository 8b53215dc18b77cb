"""One method against another, on the splits where both ran: ``python -m studies.compare RUNS.jsonl METHOD OTHER``.

The tables compare every method with the rows alone; this says whether one augments better than another.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inversedmixup.benchmark import statistics
from inversedmixup.benchmark.records import Record, by_place, check_records, paired
from inversedmixup.benchmark.tables import points
from inversedmixup.errors import InputError
from inversedmixup.terminal import new_table, output
from studies.common import read_json_lines, run


def compare(
    records: Sequence[Record], method: str, other: str, *, shots: str = "10", protocol: str = "frozen"
) -> dict[str, Any]:
    """Paired differences in accuracy, the first method's less the other's.

    Returns:
        ``sets``: by name the ``splits`` that both have, mean ``difference``, its ``interval`` and ``p_holm``, as for a
        method and the baseline (docs/evidence.md); ``splits`` of all sets, and over the sets ``difference``,
        ``interval_on_these`` and ``interval``.

    Raises:
        InputError: if there is no such split.
    """
    check_records(records)
    scores, differences = by_place(records, "accuracy"), dict[str, np.ndarray]()
    for name in sorted({str(record["set"]) for record in records}):
        ours, theirs = (scores.get((name, shots, protocol, which), {}) for which in (method, other))
        if len(own := paired(ours, theirs)):
            differences[name] = own
    if not differences:
        raise InputError(f"no split of {shots} shots, {protocol}, has runs of both {method} and {other}")
    adjusted = statistics.holm({name: statistics.wilcoxon_p(own) for name, own in differences.items()})
    sets = {
        name: {
            "splits": len(own), "difference": float(own.mean()),
            "interval": statistics.interval_on_splits(own), "p_holm": adjusted[name],
        }
        for name, own in differences.items()
    }  # fmt: skip
    return {
        "sets": sets, "splits": sum(map(len, differences.values())),
        "difference": float(np.mean([own.mean() for own in differences.values()])),
        **statistics.intervals(list(differences.values())),
    }  # fmt: skip


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m studies.compare", description="One method against another.")
    parser.add_argument("runs", type=Path, help="runs.jsonl of studies.evidence")
    parser.add_argument("method")
    parser.add_argument("other")
    parser.add_argument("--shots", default="10")
    parser.add_argument("--protocol", default="frozen")
    options = parser.parse_args()
    found = compare(
        read_json_lines(options.runs), options.method, options.other, shots=options.shots, protocol=options.protocol
    )
    table = new_table("set", "splits", f"{options.method} − {options.other}, points", "95 %", "p (Holm)")
    for name, row in found["sets"].items():
        table.add_row(name, str(row["splits"]), *_points(row, "interval"), f"{row['p_holm']:.3f}")
    for words, key in ("on these sets", "interval_on_these"), ("on sets like these", "interval"):
        table.add_row(f"mean, {words}", str(found["splits"]), *_points(found, key), "")
    output().print(table)


def _points(row: dict[str, Any], interval: str) -> tuple[str, str]:
    return points(row["difference"]), " … ".join(map(points, row[interval])) if row[interval] else "–"


if __name__ == "__main__":
    run(main)
