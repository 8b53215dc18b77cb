"""Hostile and odd input: read as it is meant, or refused by name."""

import contextlib
import csv
import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzz
from conftest import write_jsonl
from inversedmixup.augment_job import AugmentJobConfig, run_augment_job
from inversedmixup.cli import main
from inversedmixup.data import iter_sourced, iter_texts, iter_unlabelled, read_examples
from inversedmixup.errors import InputError
from inversedmixup.files import iter_records
from inversedmixup.label_job import LabelJobConfig
from inversedmixup.labelled import check_classes
from inversedmixup.mixer import InversedMixup, as_examples
from inversedmixup.options import build
from inversedmixup.row_file import RowFile
from inversedmixup.schema import Row
from inversedmixup.stages.align import AlignConfig
from test_augment_job import QUICK, a_row

SEEDS = list(fuzz.seeds())
FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2 days late", "@SUM(A1)", "\tx", "\rx", "'=already", "''=twice", "＝1"]


@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=3), st.integers(0, 3)), max_size=4),
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_make_a_reader_crash(seed, edits):
    name, data = seed
    for where, put, drop in edits:
        at = int(where * (len(data) + 1))
        data = data[:at] + put + data[at + drop :]
    fuzz.check(name, data)


@given(value=st.one_of(st.integers(), st.floats(), st.text(max_size=8), st.booleans(), st.none(), st.lists(st.none())))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ["n", "tries", "lam", "seed", "pairs", "shots", "overwrite", "temperature"])
def test_no_value_makes_a_config_crash(name, value):
    with contextlib.suppress(InputError):
        assert type(getattr(build(AugmentJobConfig, {name: value}), name)) in (int, float, str, bool, type(None))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), min_size=1, max_size=5))
@settings(max_examples=80, deadline=None)
def test_any_text_comes_back_from_our_csv_as_it_was(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    rows = [dataclasses.replace(a_row(at), text=text) for at, text in enumerate([*texts, *FORMULAS])]
    with RowFile(path, ["a", "b"]) as file:
        for row in rows:
            file.write(dataclasses.asdict(row))
    assert [record["text"] for _, record in iter_records(path)] == [row.text for row in rows]


def test_no_cell_of_our_csv_is_a_formula_and_numbers_stay_numbers(tmp_path):
    path = tmp_path / "rows.csv"
    with RowFile(path, ["-1", "+1"]) as file:
        for at, text in enumerate(FORMULAS):
            file.write(dataclasses.asdict(dataclasses.replace(a_row(at), text=text, label="-1", fluency=-3.25)))
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert row["text"].startswith("'")
            assert (row["label"], row["fluency"]) == ("-1", "-3.25")


def test_an_apostrophe_in_a_csv_of_yours_stays(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n'=it is so,a\n")
    assert read_examples(tmp_path / "t.csv")[0].text == "'=it is so"


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_is_read_whatever_parts_cells_and_ends_lines(tmp_path, mark, end):
    cells = [["text", "label"], [f'"one {mark} two"', "a"], ['"three ""four"""', "b"]]
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + (end.join(mark.join(row) for row in cells) + end).encode())
    assert [(e.text, e.label) for e in read_examples(tmp_path / "t.csv")] == [
        (f"one {mark} two" if mark != "\t" else "one two", "a"), ('three "four"', "b"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        "text,label,,\none,a,,\ntwo,b\n",
        ",text,label\n0,one,a\n1,two,b\n",
        "sep=;\r\ntext;label\r\none;a\r\ntwo;b\r\n",
        "text|label|id, name\none|a|1\ntwo|b|2\n",
        '"id, not ours, yet";text;label\n1;one;a\n2;two;b\n',
        "text,label\none,a\n\n   \ntwo,b\n,\n",
    ],
    ids=["columns without a name", "row names", "sep=", "the commonest mark", "marks in quotes", "blank lines"],
)
def test_csv_as_spreadsheets_write_it(tmp_path, content):
    (tmp_path / "t.csv").write_text(content, newline="")
    assert [(e.text, e.label) for e in read_examples(tmp_path / "t.csv")] == [("one", "a"), ("two", "b")]


def test_mixed_line_ends_and_a_field_of_ten_megabytes(tmp_path, caplog):
    (tmp_path / "t.csv").write_bytes(b"text,label\r\none,a\rtwo,b\n" + b"x" * 10_000_000 + b",b\nthree,a\n")
    with caplog.at_level("WARNING", logger="inversedmixup"):
        assert [e.text for e in read_examples(tmp_path / "t.csv")] == ["one", "two", "three"]
    assert "1 row(s) left out, text over 2000 characters: row 4" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "text,label\nx,a\n".encode("utf-16"), "is UTF-16.*iconv -f utf-16"),
        ("t.csv", b"text,text,label\na,b,c\n", "column 'text' is there twice"),
        ("t.csv", b"\ntext,label\na,b\n", "no column names"),
        ("t.jsonl", b"[" * 100_000, "row 1: not JSON"),
        ("t.jsonl", b'{"text": "a", "label": [1]}\n', "row 1: the label is a list"),
        ("t.jsonl", b'{"text": "a", "label": "' + b"x" * 300 + b'"}\n', "the label has 300 characters"),
    ],
)
def test_what_is_refused_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_examples(tmp_path / name)
    assert name in str(caught.value)


def test_rows_that_cannot_be_sentences_are_left_out_everywhere(tmp_path):
    rows = [{"text": "fine", "label": "a"}, {"text": "a\0b", "label": "a"}, {"text": "\ud800", "label": "a"},
            {"text": "x", "label": "\udfff"}, {"text": "x", "label": "a", "id": "\ud800"},
            {"text": "x", "label": "b\0"}, {"text": "x", "label": "a", "id": "\0"}]  # fmt: skip
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    assert [e.text for e in read_examples(path)] == ["fine"]
    assert list(iter_texts([path])) == ["fine", "x", "x", "x", "x"]


@pytest.mark.parametrize("missing", [None, "", " ", math.nan])
def test_missing_ids_are_row_numbers_if_every_row_lacks_one(tmp_path, missing):
    rows = [{"text": "a", "label": "x", "id": missing}, {"text": "b", "label": "x"}]
    assert [e.id for e in read_examples(write_jsonl(tmp_path / "t.jsonl", rows))] == ["0", "1"]
    for lacking, ids in [(1, (missing, 0)), (2, (1, missing))]:
        rows = [{"text": "a", "label": "x", "id": identity} for identity in ids]
        with pytest.raises(InputError, match=f"row {lacking}: has no id, but row {3 - lacking} has one"):
            read_examples(write_jsonl(tmp_path / "t.jsonl", rows))


def test_labels_that_may_stand_for_none_are_told_and_kept(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("text,label\none,NA\ntwo,a\nthree,NA\nfour,null\nfive,none\n")
    with caplog.at_level("WARNING", logger="inversedmixup"):
        assert len(read_examples(tmp_path / "t.csv")) == 5
    assert [message.partition(": ")[2].partition(";")[0] for message in caplog.messages] == [
        "2 row(s) have the label 'NA'", "1 row(s) have the label 'null'",
    ]  # fmt: skip


def test_texts_without_labels_that_are_left_out_are_counted_when_asked(tmp_path, caplog):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": text} for text in ("x" * 3000, "one", None, 7, "")])
    with caplog.at_level("WARNING", logger="inversedmixup"):
        assert list(iter_texts([path])) == ["one"]
        assert not caplog.messages
        assert [text for text, _ in iter_sourced(path)] == ["one"]
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "1 row(s) left out, text over 2000 characters: row 1", "2 row(s) left out, empty text: row 3, 5",
        "1 row(s) left out, not a text: row 4",
    ]  # fmt: skip


def test_class_labels_in_parquet_have_their_names(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    columns = {"text": ["a b", "c d", "e f"], "label": [1, 0, -1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "t.parquet")
    assert [(e.text, e.label) for e in read_examples(tmp_path / "t.parquet")] == [("a b", "yes"), ("c d", "no")]


@pytest.mark.parametrize("labels", [[0, 1], [0.0, 1.0], [0.5, 1.5], [True, False], ["0", 1], [-1, 1]])
def test_label_columns_of_every_type(tmp_path, labels):
    read = as_examples(["one text", "another"], labels)
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "one text", "label": v} for v in labels])
    assert [e.label for e in read] == [e.label for e in read_examples(path)]


LANGUAGES = [
    "где моя посылка", "私の荷物はどこですか", "أين طردي", "वह कहाँ है", "ou est mon cafe\u0301", "👩‍👩‍👧‍👦 🏳️‍🌈",
    "\u202eright to left\u202c", "z̸a̴l̷g̵o̶ t̸e̵x̶t̷", "\ufeffmark", "x\u200by\u2028z", "\x01\x1b[31mred", "\U0010ffff end",
]  # fmt: skip


@pytest.mark.parametrize(
    "rows",
    [
        [(text, f"class {at % 2}") for at, text in enumerate(LANGUAGES)],
        [("the same text", "a"), ("the same text", "b")] * 6,
        [(f"one text {at}", f"class {at}") for at in range(12)],
        [(f"text {at}", f"class {at // 2}") for at in range(2000)],
        [("=1+1", "=a"), ("+x", "+b"), ("@y z", "=a"), ("-z", "+b")],
    ],
    ids=["languages", "all the same", "one row a class", "a thousand classes", "formulas"],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_odd_training_sets_run_through(tmp_path, tiny_pair_folder, rows, suffix):
    train = write_jsonl(tmp_path / "t.jsonl", [{"text": text, "label": label} for text, label in rows])
    quick = {**QUICK, "n": 32, "tries": 1.0, "pair": tiny_pair_folder, "pairs": "cross-class", "include_original": True}
    out = tmp_path / f"out{suffix}"
    summary = run_augment_job(str(train), str(out), build(AugmentJobConfig, quick)).summary
    assert summary["tried"] == 32
    read = [record for _, record in iter_records(out)]
    assert [(r["text"], r["label"]) for r in read[: len(rows)]] == [(" ".join(t.split()), lab) for t, lab in rows]
    assert set(read[0]) == {field.name for field in dataclasses.fields(Row)}
    json.dumps(summary, allow_nan=False)


def test_half_characters_on_the_command_line_are_refused(tmp_path, train_file, capsys, tiny_pair_folder):
    assert main(["augment", str(train_file), "-o", str(tmp_path / "\udcff.jsonl"), "--pair", tiny_pair_folder]) == 2
    assert "not UTF-8" in capsys.readouterr().err
    with pytest.raises(InputError, match="half a character"):
        InversedMixup(tiny_pair_folder).strip("a \udcff", "b")


@pytest.mark.parametrize("labels", [np.array(["a", "b"] * 3, dtype="S"), np.array(["2020", "2021"] * 3, "datetime64")])
def test_bytes_and_dates_of_numpy_are_no_labels(labels):
    with pytest.raises(InputError, match="not a name or a number"):
        as_examples([f"text {at}" for at in range(6)], labels)


def test_a_missing_number_is_missing_in_any_precision():
    labels = np.array([1, 2, np.nan] * 2, dtype=np.float32)
    assert {row.label for row in as_examples([f"text {at}" for at in range(6)], labels)} == {"1", "2"}


def test_labels_that_are_one_number_and_two_names_are_told(tmp_path, caplog):
    (tmp_path / "x.csv").write_text("text,label\none,1\ntwo,1.0\n")
    check_classes(read_examples(tmp_path / "x.csv"), "x.csv")
    assert "labels '1' and '1.0' are two classes" in caplog.text


def test_a_key_or_column_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "one", "label": "a", "label": "b"}\n')
    with pytest.raises(InputError, match=r"row 1: the key 'label' is there twice"):
        read_examples(tmp_path / "x.jsonl")
    table = pa.Table.from_arrays([pa.array(["one"]), pa.array(["a"]), pa.array(["b"])], ["text", "label", "label"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="the column 'label' is there twice"):
        read_examples(tmp_path / "x.parquet")


def test_a_column_that_nobody_looks_at_damages_no_parquet_file(tmp_path):
    late = pa.array([2**60, 2**60], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["one", "two"], "label": ["a", "b"], "when": late}), tmp_path / "x.parquet")
    assert [row.label for row in read_examples(tmp_path / "x.parquet")] == ["a", "b"]
    assert list(iter_texts([tmp_path / "x.parquet"], "text")) == ["one", "two"]
    assert [row.text for row in iter_unlabelled(tmp_path / "x.parquet", text_column="text")] == ["one", "two"]
    pq.write_table(pa.table({"text": ["one", "two"], "other": ["a", "b"]}), tmp_path / "y.parquet")
    with pytest.raises(InputError, match=r"no column 'label' \(found: text, other\)"):
        read_examples(tmp_path / "y.parquet")


def test_numbers_of_numpy_are_options():
    made = build(AugmentJobConfig, {"n": np.int64(3), "temperature": np.float32(0.5)})
    assert (made.n, made.temperature) == (3, 0.5)
    with pytest.raises(InputError, match="n: expected int"):
        build(AugmentJobConfig, {"n": np.array([1, 2])})


@pytest.mark.parametrize(
    ("kind", "name", "value", "said"),
    [
        (AugmentJobConfig, "train_encoder", "Full", "is not one of full, head"),
        (AugmentJobConfig, "accept_labels", "agreed", "is not one of auto, agree, parents, any"),
        (AugmentJobConfig, "n", "8", "expected int"), (LabelJobConfig, "dtype", "fp32", "is not one of"),
        (LabelJobConfig, "min_confidence", "high", "expected float"), (AlignConfig, "lora", True, "expected int"),
        (AlignConfig, "compile", "alway", "is not one of"), (AlignConfig, "teach", "word", "is not one of"),
    ],
)  # fmt: skip
def test_options_are_checked_however_they_are_made(kind, name, value, said):
    with pytest.raises(InputError, match=f"^{name}: .*{said}") as built:
        build(kind, {name: value})
    with pytest.raises(InputError) as direct:
        kind(**{name: value})
    assert str(direct.value) == str(built.value)


def test_a_number_is_of_its_kind_however_it_is_given():
    made = AugmentJobConfig(lam=0.5, tolerance=1, n=np.int64(3))
    assert (made.lam, made.tolerance, made.n) == ("0.5", 1.0, 3)
    assert [type(value) for value in (made.lam, made.tolerance, made.n)] == [str, float, int]


def test_small_misuse_in_python_is_one_line(tiny_pair_folder, tmp_path):
    mixer = InversedMixup(tiny_pair_folder)
    (tmp_path / "file").write_text("")
    for misuse in (
        lambda: mixer.mix(None, "b"), lambda: mixer.mix("a", "b", steps=2.5), lambda: mixer.mix("a", "b", lams="x"),
        lambda: mixer.fit(None, ["a"]), lambda: mixer.fit(["one", "two"]), lambda: mixer.fit({"one": 1}),
        lambda: mixer.save_pretrained(tmp_path / "file"),
    ):  # fmt: skip
        with pytest.raises(InputError):
            misuse()
