import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import write_jsonl
from inversedmixup.data import MAX_CHARACTERS, iter_texts, label_name, read_examples
from inversedmixup.errors import InputError, unfinished
from inversedmixup.labelled import check_classes, sample_numbers, sample_rows, take_shots
from inversedmixup.mixer import as_examples
from inversedmixup.row_file import check_output
from inversedmixup.schema import Example

ROWS = [{"text": "one, two", "label": "a"}, {"text": 'three "four"', "label": "b"}]


def test_formats_read_the_same(tmp_path):
    import pandas as pd

    write_jsonl(tmp_path / "t.jsonl", ROWS)
    pd.DataFrame(ROWS).to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame(ROWS).to_parquet(tmp_path / "t.parquet")
    read = [read_examples(tmp_path / f"t.{suffix}") for suffix in ("jsonl", "csv", "parquet")]
    assert read[0] == read[1] == read[2]
    assert [e.text for e in read[0]] == ["one, two", 'three "four"']


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbftext,label\r\nhello,a\r\n")
    assert read_examples(tmp_path / "t.csv")[0].text == "hello"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.jsonl", None, "no such file"),
        ("t.xyz", b"", "cannot tell the format"),
        ("t.jsonl", b'{"text": "x"}\n', "no column 'label'.*--label-column"),
        ("t.jsonl", b'{"body": "x", "label": "a"}\n', "no column 'text' .found: body, label.*--text-column"),
        ("t.jsonl", b'{"text": "ok", "label": "a"}\n{oops\n', "row 2: not JSON"),
        ("t.jsonl", b"[1]\n", "row 1: expected an object"),
        ("t.jsonl", b'{"text": "ok", "label": "a"}\n{"text": "caf\xe9", "label": "a"}\n', "row 2: not UTF-8.*iconv"),
        ("t.jsonl", b'{"text": 5, "label": "a"}\n', "row 1: the text is a int"),
        ("t.jsonl", b"", "no usable row"),
        ("t.csv", b"text,label\na,b,c\n", "row 2: more cells"),
        ("t.csv", b"text,label\nmy parcel\nis late,delivery\n", "row 2: fewer cells.*line break"),
        ("t.csv", b"id,text,label,,\n1,one, two,a,\n", "row 2: more cells"),
        ("t.csv", b"sep=;\ntext;label\na\n", "row 3: fewer cells"),
        ("t.csv", b"text,label\na\0,b\n", "row 2: holds a NUL"),
        ("t.csv", b'text,label\n"never closed,b\n', "not CSV"),
        ("t.jsonl.gz", b"", "is packed; unpack it first"),
        ("t.csv", b"\x1f\x8b\x08\0", "is packed; unpack it first"),
        ("t.parquet", b"nothing of the kind", "no Parquet file"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_file_and_row(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_examples(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unusable_rows_are_left_out_and_counted(tmp_path, caplog):
    rows = [
        *ROWS, {"text": "", "label": "a"}, {"text": None, "label": "a"}, {"text": "x" * 100_000, "label": "a"},
        {"text": "fine", "label": None}, {"text": "fine", "label": math.nan},
    ]  # fmt: skip
    with caplog.at_level("WARNING", logger="inversedmixup"):
        read = read_examples(write_jsonl(tmp_path / "t.jsonl", rows))
    assert [e.text for e in read] == [r["text"] for r in ROWS]
    assert "2 row(s) left out, empty text: row 3, 4" in caplog.text
    assert f"1 row(s) left out, text over {MAX_CHARACTERS} characters: row 5" in caplog.text
    assert "2 row(s) left out, no label: row 6, 7" in caplog.text


def test_a_row_of_json_may_lack_what_is_null(tmp_path, caplog):
    path = write_jsonl(tmp_path / "t.jsonl", [*ROWS, {"text": "unknown"}, {"label": "a"}])
    assert [e.text for e in read_examples(path)] == [r["text"] for r in ROWS]
    assert "1 row(s) left out, no label: row 3" in caplog.text
    assert "1 row(s) left out, empty text: row 4" in caplog.text
    assert list(iter_texts([path])) == [*(r["text"] for r in ROWS), "unknown"]


@pytest.mark.parametrize(
    ("value", "name"),
    [(1, "1"), (1.0, "1"), (True, "True"), ("  a ", "a"), ("cafe\u0301", "caf\u00e9"), (None, None), ("", None)],
)
def test_labels_of_every_type_become_names(value, name):
    assert label_name(value) == name


def test_one_class_is_refused(tmp_path):
    rows = read_examples(write_jsonl(tmp_path / "t.jsonl", [ROWS[0]] * 3))
    with pytest.raises(InputError, match="every row has the label 'a'"):
        check_classes(rows, "t.jsonl")


@given(shots=st.integers(1, 6), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_shots_are_per_class_distinct_and_depend_on_the_seed_alone(examples_module, shots, seed):
    chosen = take_shots(examples_module, shots, seed=seed)
    assert chosen == take_shots(examples_module, shots, seed=seed)
    assert len({e.id for e in chosen}) == len(chosen) == 3 * shots


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), count=st.integers(1, 100), each=st.integers(1, 8),
    seed=st.integers(0, 50),
)  # fmt: skip
@settings(deadline=None)
def test_a_sample_keeps_every_class_and_is_a_plain_draw_where_that_does(sizes, count, each, seed):
    names = np.random.default_rng(9).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = [Example(str(at), f"text {at}", f"class {name}") for at, name in enumerate(names)]
    sample = sample_rows(rows, count, each=each, seed=[seed, 1])
    assert [row for row in rows if row in sample] == sample == sample_rows(rows, count, each=each, seed=[seed, 1])
    assert len(sample) == min(len(rows), max(count, len(sizes)))
    least, there = max(1, min(each, count // len(sizes))), Counter(row.label for row in sample)
    wanted = {f"class {name}": min(size, least) for name, size in enumerate(sizes)}
    assert all(there[name] >= few for name, few in wanted.items())
    plain = [rows[at] for at in sorted(np.random.default_rng([seed, 1]).permutation(len(rows))[:count])]
    if all(sum(row.label == name for row in plain) >= few for name, few in wanted.items()):
        assert sample == plain


@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6), count=st.integers(12, 100), seed=st.integers(0, 50))
@settings(deadline=None)
def test_half_of_a_sample_is_shared_evenly(sizes, count, seed):
    numbers = np.random.default_rng(9).permutation(np.repeat(np.arange(len(sizes)), sizes))
    taken = sample_numbers(numbers, count, seed=seed)
    assert len(set(taken.tolist())) == len(taken) == min(count, len(numbers))
    even = count // (2 * len(sizes))
    assert (np.bincount(numbers[taken], minlength=len(sizes)) >= np.minimum(sizes, even)).all()


@pytest.fixture(scope="module")
def examples_module():
    from conftest import LABELS, SENTENCES

    return as_examples(SENTENCES, LABELS)


def test_corpora_are_streamed(tmp_path):
    path = tmp_path / "big.txt"
    path.write_text("first line\n\n" + "second line\n" * 3 + "x" * (MAX_CHARACTERS + 1) + "\n", encoding="utf-8")
    stream = iter_texts([path])
    assert next(stream) == "first line"
    assert list(stream) == ["second line"] * 3


def test_an_output_of_unknown_format_is_refused_before_any_work():
    with pytest.raises(InputError, match=r"end it in \.jsonl"):
        check_output("out.xlsx")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 240, "é" * 120])
def test_an_output_name_that_leaves_no_room_for_those_made_from_it_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"the name has \d+ bytes"):
        check_output(tmp_path / f"{name}.csv")
    with pytest.raises(InputError, match="File name too long"):
        list(iter_texts([tmp_path / f"{name * 2}.csv"]))
    longest = check_output(tmp_path / ("x" * 231 + ".csv"))
    unfinished(longest.with_name(f"{longest.name}.config.json")).touch()


def test_data_sets_and_frames_are_read_with_their_class_names():
    import datasets
    import pandas as pd

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": ["a b", "c d"], "label": [1, 0]}, features=features)
    assert [e.label for e in as_examples(table)] == ["yes", "no"]
    frame = pd.DataFrame({"text": ["a b", "c d"], "label": [3, 4]})
    assert [e.label for e in as_examples(frame)] == ["3", "4"]
    assert [e.label for e in as_examples(frame["text"], frame["label"])] == ["3", "4"]
    missing = pd.Series(["a b", pd.NA, "c d"], dtype="string")
    assert [e.text for e in as_examples(missing, ["x", "x", "y"])] == ["a b", "c d"]
    with pytest.raises(InputError, match="2 texts but 1 labels"):
        as_examples(["a", "b"], ["x"])


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40).filter(lambda t: t.strip())
)
@settings(max_examples=60, deadline=None)
def test_any_unicode_text_survives_jsonl(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("u") / "t.jsonl"
    path.write_text(json.dumps({"text": text, "label": "a"}) + "\n", encoding="utf-8")
    assert read_examples(path)[0].text == " ".join(text.split())
