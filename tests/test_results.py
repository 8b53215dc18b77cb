"""The files under ``results/`` that follow from records there are those that the code makes of them now."""

import json
from pathlib import Path

import pytest

from inversedmixup.benchmark.report import write_report
from studies import labels
from studies.common import read_json_lines

RESULTS = Path(__file__).resolve().parents[1] / "results"


def flat(value, where=()):
    """Every number and word of a JSON value by its place."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return {place: one for key, own in inner for place, one in flat(own, (*where, key)).items()}
    return {where: value}


def same(found, told):
    """Whether two JSON values differ in rounding at most, as other versions of numpy and scipy do."""
    found, told = flat(json.loads(json.dumps(found))), flat(told)
    return found.keys() == told.keys() and all(
        one == pytest.approx(told[place], rel=1e-6, abs=1e-9) if isinstance(one, float) else one == told[place]
        for place, one in found.items()
    )


def test_the_summary_and_the_tables_follow_from_the_runs(tmp_path):
    write_report(read_json_lines(RESULTS / "runs.jsonl"), tmp_path)
    assert same(json.loads((tmp_path / "summary.json").read_text()), json.loads((RESULTS / "summary.json").read_text()))
    assert (tmp_path / "tables.md").read_text() == (RESULTS / "tables.md").read_text()
    pictures = [{path.name for path in folder.glob("*.png")} for folder in (tmp_path, RESULTS)]
    assert pictures[0] == pictures[1]


def test_what_label_policies_are_worth_follows_from_the_cells():
    cells = read_json_lines(RESULTS / "labels" / "cells.jsonl")
    assert same(labels.summarise(cells), json.loads((RESULTS / "labels" / "labels.json").read_text()))
    runs = [run for cell in cells for run in cell["runs"]]
    assert runs == read_json_lines(RESULTS / "labels" / "runs.jsonl")
