"""Rows that stay on disk say what the same rows in memory say, and a whole job does not take them into memory."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inversedmixup import labelled
from inversedmixup.data import Example
from inversedmixup.errors import InputError
from inversedmixup.labelled import (
    ExampleFile,
    Subset,
    Texts,
    class_counts,
    class_names,
    class_numbers,
    finder,
    folds_of,
    inputs_digest,
    repeated_id,
    take_shots,
)
from inversedmixup.options import build
from inversedmixup.pipeline import JobConfig, run_job
from inversedmixup.report.results import read_run
from inversedmixup.stages import warmup
from test_pipeline import QUICK

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ROWS = st.lists(st.builds(Example, WORDS, WORDS, st.sampled_from(["b", "a", "é", "", "Z z"])), min_size=1, max_size=25)


@given(rows=ROWS, shots=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_file_of_rows_is_the_list_of_them(tmp_path_factory, rows, shots):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    written = ExampleFile.write(path, iter(rows))
    for there in (written, ExampleFile.read(path)):
        assert (list(there), len(there), there[-1], there[1:7:2]) == (rows, len(rows), rows[-1], rows[1:7:2])
        assert there[np.int64(0)] == rows[0]
        assert class_names(there) == class_names(rows)
        assert class_counts(there) == class_counts(rows)
        assert np.array_equal(class_numbers(there, class_names(rows)), class_numbers(rows, class_names(rows)))
        assert np.array_equal(folds_of(there, seed=3), folds_of(rows, seed=3))
        assert take_shots(there, shots, seed=5) == take_shots(rows, shots, seed=5)
        assert inputs_digest(there) == inputs_digest(rows)
        assert list(Texts(there)) == [row.text for row in rows]
        assert (repeated_id(there) is None) == (repeated_id(rows) is None)
        for row in (*rows, Example("no such id", "", "")):
            assert finder(there)(row.id) == finder(rows)(row.id)


def test_ids_with_the_same_fingerprint_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled, "_fingerprint", lambda words: len(words))
    rows = [Example(identity, f"text {identity}", "a") for identity in ("x", "y", "zz", "w")]
    there = ExampleFile.write(tmp_path / "rows", rows)
    assert [there.find(row.id) for row in rows] == rows
    assert there.find("v") is None
    assert there.repeated_id() is None
    twice = ExampleFile.write(tmp_path / "twice", [*rows, dataclasses.replace(rows[1], text="again")])
    assert twice.repeated_id() == "y"
    assert twice.find("y") == rows[1]


def test_a_file_of_rows_can_move(tmp_path):
    rows = [Example(str(at), "a text", "ab"[at % 2]) for at in range(5)]
    there = ExampleFile.write(tmp_path / "rows", rows)
    assert there[2] == rows[2]
    there.move(tmp_path / "moved")
    assert list(there) == rows
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("line", ['{"id": "1"}', "[1]", '{"id": "1", "text": "a", "label": "b", "more": 1}', "{"])
def test_another_file_is_not_taken_for_rows(tmp_path, line):
    (tmp_path / "rows").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"not a labelled row|Expecting"):
        ExampleFile.read(tmp_path / "rows")


@given(rows=ROWS, data=st.data())
@settings(max_examples=30, deadline=None)
def test_some_rows_of_others(rows, data):
    chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1))), dtype=np.int64)
    some = Subset(rows, chosen, class_names(rows))
    assert list(some) == [rows[at] for at in chosen]
    numbers = class_numbers(some, class_names(rows))
    assert [class_names(rows)[number] for number in numbers] == [row.label for row in some]
    assert class_counts(some) == class_counts(list(some))


def test_a_damaged_record_of_the_rows_is_named(train_file, tmp_path, tiny_pair_folder):
    out = tmp_path / "o.jsonl"
    run_job(str(train_file), str(out), build(JobConfig, {**QUICK, "pair": tiny_pair_folder}))
    (out.with_name("o.jsonl.run") / "examples.jsonl").write_text('{"id": 1\n')
    with pytest.raises(InputError, match=r"examples\.jsonl: cannot be read"):
        read_run(out)


def test_what_waits_beside_the_output_is_gone_whatever_happens(train_file, tmp_path, tiny_pair_folder):
    out = tmp_path / "o.jsonl"
    settings = {**QUICK, "pair": tiny_pair_folder}
    run_job(str(train_file), str(out), build(JobConfig, settings))
    with pytest.raises(InputError, match="other settings"):
        run_job(str(train_file), str(out), build(JobConfig, {**settings, "seed": 1}))
    (tmp_path / "one.jsonl").write_text('{"text": "a", "label": "b"}\n')
    with pytest.raises(InputError, match="at least two classes"):
        run_job(str(tmp_path / "one.jsonl"), str(tmp_path / "other.jsonl"), build(JobConfig, settings))
    assert not list(tmp_path.glob("*.rows"))


def test_a_whole_job_does_not_take_the_rows_into_memory(tmp_path, tiny_pair_folder, monkeypatch):
    """Labelled rows, kept rows and their embeddings: what is held of a row does not grow with its text."""
    monkeypatch.setattr(warmup, "TAUGHT_ROWS", 64)
    filling, rows = "some words that nobody needs to hold " * 40, 8_000
    with (tmp_path / "train.jsonl").open("w") as file:
        for at in range(rows):
            file.write(json.dumps({"text": f"row {at} {filling}", "label": "abc"[at % 3]}) + "\n")
    options = {**QUICK, "pair": tiny_pair_folder, "n": 64, "max_tokens": 4, "test": str(tmp_path / "test.jsonl")}
    (tmp_path / "test.jsonl").write_text('{"text": "row 1", "label": "a"}\n{"text": "row 2", "label": "b"}\n')
    config = build(JobConfig, options, {"labels": "pool:task+tuned", "judge_steps": 1, "force_judge": True})
    tracemalloc.start()
    try:
        run_job(str(tmp_path / "train.jsonl"), str(tmp_path / "o.jsonl"), config)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.75 * rows * len(filling)
