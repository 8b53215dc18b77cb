"""Runs of several evidence studies as one: ``python -m studies.merge RUNS.jsonl … -o DIR``.

A grid can be shared between processes or machines: each has a folder of its own and some of the splits
(``--first-split``, ``--splits``). This writes ``DIR/runs.jsonl`` with every run once, and what follows from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from inversedmixup.benchmark.records import Record, run_of
from inversedmixup.benchmark.report import write_report
from inversedmixup.errors import InputError, write_whole
from studies.common import json_lines, read_json_lines, run
from studies.evidence import in_order


def merge(files: Iterable[Path]) -> list[Record]:
    """Every run of these files once.

    Raises:
        InputError: for a run that two files tell differently.
    """
    found = dict[tuple[object, ...], tuple[Record, Path]]()
    for file in files:
        for record in read_json_lines(file):
            known, where = found.setdefault(run_of(record), (record, file))
            if known != record:
                raise InputError(
                    f"{' / '.join(map(str, run_of(record)))}: {where} and {file} differ; take it out of one of them"
                )
    return in_order(record for record, _ in found.values())


def main() -> None:
    """Write the runs and what follows from them."""
    parser = argparse.ArgumentParser(prog="python -m studies.merge", description="Runs of several studies as one.")
    parser.add_argument("runs", type=Path, nargs="+", help="runs.jsonl of studies.evidence")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    records = merge(options.runs)
    write_report(records, options.output)
    write_whole(options.output / "runs.jsonl", json_lines(records))


if __name__ == "__main__":
    run(main)
