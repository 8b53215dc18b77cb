"""Rows that stay on disk say what the same rows in memory say, and a whole job does not take them into memory."""

import dataclasses
import json
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inversedmixup import labelled
from inversedmixup.augment_job import AugmentJobConfig, run_augment_job
from inversedmixup.errors import InputError
from inversedmixup.folds import by_fold, folds_of
from inversedmixup.identity import choice_settings, work_settings
from inversedmixup.labelled import (
    ExampleFile,
    Subset,
    Texts,
    check_known_labels,
    class_counts,
    class_names,
    class_numbers,
    finder,
    inputs_digest,
    repeated_id,
    take_shots,
)
from inversedmixup.models.task_model import TaskModel
from inversedmixup.options import build
from inversedmixup.report.results import read_run
from inversedmixup.runs import RunFolder, ShardedRows
from inversedmixup.schema import Example, Row
from inversedmixup.stages import downstream, warmup
from inversedmixup.stages.augment import SHARD_ROWS
from test_augment_job import QUICK

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ROWS = st.lists(st.builds(Example, WORDS, WORDS, st.sampled_from(["b", "a", "é", "", "Z z"])), min_size=1, max_size=25)


@given(rows=ROWS, shots=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_file_of_rows_is_the_list_of_them(tmp_path_factory, rows, shots):
    folder = tmp_path_factory.mktemp("rows")
    written, saved = (ExampleFile.write(folder, iter(rows)) for _ in range(2))
    saved.save(folder / "rows.jsonl")
    for there in (written, saved, ExampleFile.read(folder / "rows.jsonl")):
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
    monkeypatch.setattr(labelled, "fingerprint", len)
    rows = [Example(identity, f"text {identity}", "a") for identity in ("x", "y", "zz", "w")]
    there = ExampleFile.write(tmp_path, rows)
    assert [there.find(row.id) for row in rows] == rows
    assert there.find("v") is None
    assert there.repeated_id() is None
    twice = ExampleFile.write(tmp_path, [*rows, dataclasses.replace(rows[1], text="again")])
    assert twice.repeated_id() == "y"
    assert twice.find("y") == rows[1]


def test_rows_are_read_where_they_are_whatever_happens_to_their_name(tmp_path):
    """Two runs with one output, started at once: neither reads the other's rows."""
    rows = [Example(str(at), "a text", "ab"[at % 2]) for at in range(5)]
    others = [dataclasses.replace(row, label="ba"[at % 2]) for at, row in enumerate(rows)]
    one, two = ExampleFile.write(tmp_path, rows), ExampleFile.write(tmp_path, others)
    assert not list(tmp_path.iterdir())  # nothing is left behind, even by a process that is killed
    one.save(tmp_path / "rows")
    two.save(tmp_path / "rows")
    (tmp_path / "rows").unlink()
    assert list(one) == rows
    assert list(two) == others


def test_no_rows_are_no_rows(tmp_path):
    there = ExampleFile.write(tmp_path, [])
    assert (list(there), class_names(there), class_counts(there)) == ([], [], {})
    assert there.find("1") is None


@pytest.mark.parametrize(
    "lines",
    [
        '{"id": "1"}', "[1]", '{"id": "1", "text": "a", "label": "b", "more": 1}', "{", "",
        '{"id": 1, "text": "a", "label": "b"}', '{"id": "1", "text": "a", "label": null}',
        '{"id": "1", "text": 5, "label": "b"}',
    ],
)  # fmt: skip
def test_another_file_is_not_taken_for_rows(tmp_path, lines):
    (tmp_path / "rows").write_text(lines and lines + "\n")
    with pytest.raises(ValueError, match=r"not a labelled row|Expecting|no row"):
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
    run_augment_job(str(train_file), str(out), build(AugmentJobConfig, {**QUICK, "pair": tiny_pair_folder}))
    (out.with_name("o.jsonl.run") / "examples.jsonl").write_text('{"id": 1\n')
    with pytest.raises(InputError, match=r"examples\.jsonl: cannot be read"):
        read_run(out)


def test_the_run_folder_may_lie_on_another_disk(train_file, tmp_path, tiny_pair_folder, monkeypatch):
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one disk only")
    with tempfile.TemporaryDirectory(dir=elsewhere) as there:
        (tmp_path / "o.jsonl.run").symlink_to(there)
        run_augment_job(
            str(train_file), str(tmp_path / "o.jsonl"), build(AugmentJobConfig, {**QUICK, "pair": tiny_pair_folder})
        )
        assert read_run(tmp_path / "o.jsonl").examples


def test_rows_with_the_same_words_are_held_out_together():
    rows = [
        Example(str(at), text, "ab"[at % 2]) for at, text in enumerate(["One more!", "two", "one more", "three", "TWO"])
    ]
    fold_of = folds_of(rows, seed=0)
    assert fold_of[0] == fold_of[2]
    assert fold_of[1] == fold_of[4]


@given(folds=st.lists(st.integers(0, 4), min_size=1, max_size=20), data=st.data())
def test_answers_by_fold_come_from_who_has_not_learnt_the_fold(folds, data):
    fold_of = np.array(folds)
    rows = data.draw(st.lists(st.integers(0, len(folds) - 1), min_size=1))
    asked_of = []

    def ask(others, asked):
        assert not set(fold_of[others]) & set(fold_of[asked])
        assert set(others) == set(np.flatnonzero(fold_of != fold_of[asked[0]]))
        asked_of.append(set(fold_of[asked]))
        return asked * 10

    assert by_fold(rows, fold_of, ask).tolist() == [row * 10 for row in rows]
    assert len(asked_of) == len({fold_of[row] for row in rows})


def test_kept_rows_are_read_again_from_the_shards(train_file, tmp_path, tiny_pair_folder):
    out, config = tmp_path / "o.jsonl", build(AugmentJobConfig, {**QUICK, "pair": tiny_pair_folder, "n": 60})
    run_augment_job(str(train_file), str(out), config)
    results = read_run(out)
    kept = [row for row in results.rows() if row.kept]
    folder = RunFolder(results.folder, work_settings(config, results.examples), choice=choice_settings(config, ()))
    there = ShardedRows(folder, [int(row.id.removeprefix("aug-")) for row in kept], SHARD_ROWS, Row)
    assert len(kept) == 60
    assert list(there) == kept
    assert there[-2:] == kept[-2:]
    both = downstream._Both(results.examples, there)
    targets = downstream._Targets(both, results.examples.classes)
    wanted = np.concatenate([
        downstream.one_hot(results.examples, results.examples.classes),
        downstream.row_targets(kept, results.examples.classes),
    ])  # fmt: skip
    assert len(both) == len(wanted)
    assert np.allclose(targets[torch.arange(len(both))].numpy(), wanted)
    assert (both[-1], both[0]) == (kept[-1], results.examples[0])
    (results.folder / "shards" / "000000.json").write_text("{}")
    with pytest.raises(InputError, match=r"000000\.json is damaged"):
        ShardedRows(folder, [0], SHARD_ROWS, Row)[0]


def test_a_whole_job_does_not_take_the_rows_into_memory(tmp_path, tiny_pair_folder, monkeypatch):
    """What is held of a labelled row does not grow with its text, and a row that is not drawn is not encoded."""
    monkeypatch.setattr(warmup, "TAUGHT_ROWS", 64)
    filling, names = "some words that nobody needs to hold " * 52, ("my", "parcel", "late")
    (tmp_path / "test.jsonl").write_text('{"text": "row 1", "label": "my"}\n{"text": "row 2", "label": "late"}\n')
    options = {**QUICK, "pair": tiny_pair_folder, "n": 64, "max_tokens": 4, "test": str(tmp_path / "test.jsonl")}
    config = build(AugmentJobConfig, options, {"labels": "pool:task+tuned", "judge_steps": 1, "force_judge": True})
    encoded, encode = [], TaskModel.encode
    monkeypatch.setattr(
        TaskModel, "encode", lambda self, texts, **how: encoded.append(len(texts)) or encode(self, texts, **how)
    )

    def job(rows):
        """What it took at most, and how many texts were encoded."""
        with (tmp_path / f"{rows}.jsonl").open("w") as file:
            for at in range(rows):
                file.write(json.dumps({"text": f"row {at} {filling}", "label": names[at % 3]}) + "\n")
        encoded.clear()
        tracemalloc.start()
        try:
            run_augment_job(str(tmp_path / f"{rows}.jsonl"), str(tmp_path / f"{rows}.out.jsonl"), config)
            return tracemalloc.get_traced_memory()[1], sum(encoded)
        finally:
            tracemalloc.stop()

    job(200)  # what is imported, and remembered, at the first time
    few, many = job(500), job(2_500)
    assert many[0] - few[0] < 2_000 * len(filling) / 2
    assert many[1] < few[1] + 100


def test_no_text_is_held_out_from_its_copy():
    once = [Example(str(at), f"text {at}", "ab"[at % 2]) for at in range(30)]
    twice = [*once, *(Example(f"again {row.id}", row.text, row.label) for row in once)]
    fold, alone = folds_of(twice, seed=0), folds_of(once, seed=0)
    assert np.array_equal(fold[:30], alone)
    assert np.array_equal(fold[:30], fold[30:])
    assert len(set(folds_of([once[0]] * 6, seed=0).tolist())) > 1  # one text alone cannot be parted


def test_an_unknown_label_is_named(tmp_path):
    rows = [Example("0", "one", "a"), Example("1", "two", "elsewhere")]
    with pytest.raises(InputError, match=r"test\.csv: label 'elsewhere' does not occur in the training set"):
        check_known_labels(rows, ["a", "b"], "test.csv")
