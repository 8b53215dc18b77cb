"""The explorer without its page: strips, candidates, the map, curation."""

import dataclasses
import re
import sys
from importlib.machinery import ModuleSpec
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inversedmixup.augment_job import AugmentJobConfig, run_augment_job
from inversedmixup.cli import main
from inversedmixup.errors import InputError
from inversedmixup.explore import fragments
from inversedmixup.explore.curation import (
    BY_HAND,
    Decision,
    Filters,
    curated,
    decide,
    export,
    pair_name,
    select,
)
from inversedmixup.explore.explorer import LAMS, Explorer, open_explorer
from inversedmixup.explore.fragments import MARKS, training_map
from inversedmixup.judges.panel import adjusted
from inversedmixup.models.pair import PairOptions
from inversedmixup.report.evidence import gather
from inversedmixup.row_file import iter_rows
from inversedmixup.schema import Example
from inversedmixup.stages.augment import AugmentConfig
from test_augment_job import QUICK
from test_cli import refused
from test_run_report import HOSTILE, make_row
from tiny import LABELS, SENTENCES

CLASSES = ["a", "b"]
EVIDENCE = gather([Example("0", "one", "a"), Example("1", "two", "b")], [])


@pytest.fixture(scope="module")
def explorer(tiny_encoder, tiny_llm):
    from tiny import make_pair

    examples = [Example(str(at), text, label) for at, (text, label) in enumerate(zip(SENTENCES, LABELS, strict=True))]
    rows = [
        make_row(0, text="one", parents=["0", "6"], intruded=True, label="refund"),
        make_row(1, text="two", parents=["6", "0"], label="delivery"),
        make_row(2, text="three", parents=["0", "1"], label="delivery", kept=False, reject_reason="empty"),
    ]
    return Explorer(make_pair(tiny_encoder, tiny_llm), examples, rows=rows)


def test_a_strip_grows_to_every_lambda_and_is_remembered(explorer):
    grown = list(explorer.strip(SENTENCES[0], SENTENCES[7]))
    assert [len(strip.points) for strip in grown] == [7, 14, 21]
    assert [point.lam for point in grown[-1].points] == list(LAMS)
    assert grown[-1].finished
    assert sum(grown[-1].points[3].label_probs.values()) == pytest.approx(1, abs=1e-3)
    assert list(explorer.strip(f" {SENTENCES[0]} ", SENTENCES[7])) == [grown[-1]]


def test_a_strip_that_was_stopped_is_not_remembered(explorer):
    next(iter(explorer.strip("my own words", SENTENCES[1])))
    assert len(list(explorer.strip("my own words", SENTENCES[1]))) == 3


@pytest.mark.parametrize("text", ["", "  ", None, "x" * 2001, "\ud800 hi", "\0 hi"])
def test_a_sentence_that_cannot_be_mixed_is_refused(explorer, text):
    with pytest.raises(InputError, match=r"the first sentence h(as|olds)"):
        list(explorer.strip(text, SENTENCES[1]))


def test_candidates_come_best_first_with_the_verdict_of_the_gate(explorer):
    rows = explorer.candidates(SENTENCES[0], SENTENCES[7], 0.5)
    assert [row.cycle_similarity for row in rows] == sorted((row.cycle_similarity for row in rows), reverse=True)
    assert all(row.kept == (row.reject_reason is None) for row in rows)
    assert rows == explorer.candidates(SENTENCES[0], SENTENCES[7], 0.5)


def test_uneven_rows_do_not_make_texts_look_like_the_largest_class(tiny_encoder, tiny_llm):
    from tiny import make_pair

    rows = [(text, label) for at, (text, label) in enumerate(zip(SENTENCES, LABELS, strict=True)) if at < 6 or at == 7]
    examples = [Example(str(at), text, label) for at, (text, label) in enumerate(rows)]  # 6 and 1
    explorer = Explorer(make_pair(tiny_encoder, tiny_llm), examples)
    *_, strip = explorer.strip(rows[0][0], rows[-1][0])
    model = explorer.pair.task_model
    for point in strip.points:
        raw = model.predict_proba(model.encode([point.text]))
        expected = adjusted(raw, np.array([6, 1]) / 7)[0]
        assert list(point.label_probs.values()) == pytest.approx(expected, abs=1e-3)


def test_the_way_on_the_map_leads_from_parent_to_parent(explorer):
    *_, strip = explorer.strip(SENTENCES[0], SENTENCES[7])
    places = explorer.places()
    mixed, reread = explorer.places_of(strip)
    np.testing.assert_allclose(mixed[[0, -1]], places[[0, 7]], atol=1e-4)
    np.testing.assert_allclose(mixed[10], places[[0, 7]].mean(axis=0), atol=1e-4)  # PCA keeps straight lines straight
    assert reread.shape == (21, 2)
    assert (places.min(), places.max()) == (0, 1)


def keys(page):
    """The legend of a map: every mark as it is drawn, with its name."""
    caption = page[page.index("<figcaption>") :]
    return re.findall(r'<svg[^>]* class="(\w+)">\s*(<.*?/>)\s*</svg>(?:<span dir="auto">)?([^<]*)<', caption, re.DOTALL)


@pytest.fixture
def with_classes(tiny_encoder, tiny_llm):
    """Makes an explorer of rows in so many classes, a row each."""
    from tiny import make_pair

    def made(many):
        examples = [Example(str(at), f"row {at}", f"class {at:02}") for at in range(many)]
        return Explorer(make_pair(tiny_encoder, tiny_llm), examples)

    return made


def test_twenty_classes_have_marks_that_differ_without_colour(with_classes):
    drawn = with_classes(MARKS)
    found = keys(training_map(drawn, None, "PCA"))
    assert [name for _, _, name in found] == drawn.evidence.classes
    assert len({mark for _, mark, _ in found}) == MARKS == 20


def test_of_more_classes_the_map_shows_those_of_the_two_parents(with_classes):
    drawn = with_classes(MARKS + 1)
    assert [name for *_, name in keys(training_map(drawn, None, "PCA"))] == ["one of 21 classes"]
    strip = next(iter(drawn.strip("row 20", "row 3")))
    assert drawn.labels_of(strip) == ("class 20", "class 03")
    page = training_map(drawn, strip, "PCA")
    assert [name for *_, name in keys(page)] == ["class 03", "class 20", "one of 19 other classes"]
    assert len({mark for _, mark, _ in keys(page)}) == 3
    assert [page.count(f'<g class="{colour}">') for colour in ("class0", "class1", "other")] == [1, 1, 19]
    typed = next(iter(drawn.strip("words of my own", "row 3")))
    assert drawn.labels_of(typed)[0] in drawn.classes


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#0f0f11", "#27272a"])  # Gradio's: light, dark, a block in the dark
def test_every_mark_stands_out_on_the_page_in_both_modes(page):
    style = (files("inversedmixup.explore") / "page.css").read_text(encoding="utf-8")
    rules = [rule for rule in style.split("}") if ".map .class" in rule or ".map g:not" in rule]
    colours = {colour for rule in rules for colour in re.findall("#[0-9a-f]{6}", rule)}
    assert len(colours) == 7
    assert not [rule for rule in rules if "opacity" in rule]
    for colour in colours:
        low, high = sorted((luminance(colour), luminance(page)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_few_rows_are_offered_no_map_that_fails_on_them(explorer, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None, origin="there"))
    assert Explorer(explorer.pair, explorer.examples[:4] + explorer.examples[6:7]).maps == ["PCA", "UMAP"]
    assert Explorer(explorer.pair, explorer.examples[:3] + explorer.examples[6:7]).maps == ["PCA"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_map_drawn_by_umap(explorer):
    pytest.importorskip("umap", reason="umap-learn is not installed (make test-extras)")
    *_, strip = explorer.strip(SENTENCES[0], SENTENCES[7])
    places = explorer.places("UMAP")
    mixed, reread = explorer.places_of(strip, "UMAP")
    assert (places.shape, places.min(), places.max()) == ((len(SENTENCES), 2), 0, 1)
    assert (mixed.shape, reread.shape) == ((21, 2), (21, 2))
    np.testing.assert_allclose(mixed[[0, -1]], places[[0, 7]], atol=1e-4)  # the way begins and ends at its parents
    assert 0 <= min(mixed.min(), reread.min()) <= max(mixed.max(), reread.max()) <= 1
    few = Explorer(explorer.pair, explorer.examples[:4] + explorer.examples[6:7])
    assert few.places("UMAP").shape == (5, 2)


@pytest.mark.parametrize(
    ("filters", "ids"),
    [({}, "012"), ({"state": "kept"}, "01"), ({"state": "rejected"}, "2"), ({"label": "refund"}, "0"),
     ({"reason": "empty"}, "2"), ({"pair": pair_name(("delivery", "refund"))}, "01"), ({"words": "T"}, "12"),
     ({"intruded": True}, "0"), ({"state": "changed by you"}, "")],
)  # fmt: skip
def test_filters(explorer, filters, ids):
    found = select(explorer.rows, {}, Filters(**filters), explorer.evidence, explorer.classes)
    assert [row.id for row in found] == [f"aug-{at}" for at in ids]


def test_filters_see_the_rows_as_they_were_decided(explorer):
    decisions = decide({}, explorer.rows[0], kept=False)
    found = list(select(explorer.rows, decisions, Filters("changed by you"), explorer.evidence, explorer.classes))
    assert [(row.id, row.kept, row.reject_reason) for row in found] == [("aug-0", False, BY_HAND)]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([True, False, "a", "b"])), max_size=20))
@settings(deadline=None)
def test_decisions_are_the_last_word_on_each_row_and_undone_ones_leave_no_trace(clicks):
    rows = [make_row(at, kept=at % 2 == 0, reject_reason=None if at % 2 == 0 else "empty") for at in range(4)]
    decisions, last = {}, {}
    for at, what in clicks:
        change = {"kept": what} if isinstance(what, bool) else {"label": what}
        decisions = decide(decisions, rows[at], **change)
        last.setdefault(at, {}).update(change)
    for at, row in enumerate(rows):
        after, wanted = curated(row, decisions, EVIDENCE, CLASSES), last.get(at, {})
        assert after.kept == wanted.get("kept", row.kept)
        assert after.label == wanted.get("label", row.label)
        assert after.kept == (after.reject_reason is None)
        if row.id not in decisions:
            assert after == row


def test_a_row_that_nobody_labelled_is_kept_once_it_has_a_label(tmp_path):
    row = make_row(0, label="", label_probs=dict.fromkeys(CLASSES, 0.0), kept=False, reject_reason="not_judged")
    with pytest.raises(InputError, match="aug-0 has no label; choose one"):
        decide({}, row, kept=True)
    decisions = decide(decide({}, row, label="b"), row, kept=True)
    assert export([row], decisions, tmp_path / "curated.jsonl", EVIDENCE, CLASSES) == 1
    assert next(iter_rows(tmp_path / "curated.jsonl")).label == "b"


@pytest.mark.parametrize(
    ("changes", "label", "intruded"),
    [({"intruded": True, "label": "b"}, "a", False), ({}, "b", True), ({"lam": 0.5}, "b", False),
     ({"parents": ["1", "0"]}, "b", False), ({}, "c", True)],
)  # fmt: skip
def test_a_row_that_a_person_relabelled_says_so_and_whether_that_is_what_the_mix_says(changes, label, intruded):
    row = make_row(0, **{"label": "a", **changes})
    after = curated(row, decide({}, row, label=label), EVIDENCE, [*CLASSES, "c"])
    assert (after.label, after.intruded) == (label, intruded)
    assert after.labels == {**row.labels, "person": label}
    assert row.labels["person"] is None
    assert curated(row, decide({}, row, kept=False), EVIDENCE, CLASSES).labels == row.labels


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_export_holds_the_curated_rows(tmp_path, suffix):
    rows = [make_row(at, text=text) for at, text in enumerate(HOSTILE)]
    decisions = {"aug-0": Decision(kept=False), "aug-1": Decision(label="b")}
    path = tmp_path / f"curated{suffix}"
    assert export(rows, decisions, path, EVIDENCE, CLASSES) == len(rows) - 1
    labels = {**rows[1].labels, "person": "b"}
    relabelled = dataclasses.replace(
        rows[1], label="b", label_probs={"a": 0.0, "b": 1.0}, labels=labels, intruded=True
    )  # fmt: skip
    assert list(iter_rows(path)) == [relabelled, *rows[2:]]


@pytest.mark.parametrize("repeated", [False, True])
def test_what_is_exported_of_a_run_without_decisions_is_its_output(train_file, tiny_pair_folder, tmp_path, repeated):
    output, path = tmp_path / "out.jsonl", tmp_path / "curated.jsonl"
    own = AugmentJobConfig(**QUICK, pair=tiny_pair_folder, include_original=repeated)
    run_augment_job(str(train_file), str(output), own)
    explorer = open_explorer(str(output), PairOptions(tiny_pair_folder), text_column="text", label_column="label")
    assert len(explorer.originals) == (len(SENTENCES) if repeated else 0)
    export(explorer.rows, {}, path, explorer.evidence, explorer.classes, originals=explorer.originals)
    assert list(iter_rows(path)) == list(iter_rows(output))


def test_candidates_between_rows_of_a_file_are_judged_as_augment_would_by_default(train_file, tiny_pair_folder):
    models = PairOptions(tiny_pair_folder)
    explorer = open_explorer(str(train_file), models, text_column="text", label_column="label")
    assert explorer.gate.accepted == AugmentConfig().accepted == "any"


def test_a_row_that_nobody_labelled_can_be_given_any_class(explorer):
    rows = [make_row(0, label=""), make_row(1, label="delivery")]
    shown = [re.findall(r"<option[^>]*>", fragments.table(explorer, [row], {}, 1)) for row in rows]
    # what is shown as chosen cannot be chosen: a browser tells of no change
    assert [option for option in shown[0] if "selected" in option] == ['<option value="" selected>']
    assert [option for option in shown[1] if "selected" in option] == ['<option value="delivery" selected>']
    assert len(shown[0]) == 1 + len(shown[1]) == 1 + len(explorer.classes)


def test_what_a_visitor_exports_is_gone_when_the_page_closes(explorer, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed")
    from gradio_client import Client

    from inversedmixup.explore.page import launch

    for place in ("ours", "gradio", "visitor"):
        (tmp_path / place).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "ours"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    page = launch(explorer)
    try:
        client = Client(page.local_url, download_files=str(tmp_path / "visitor"), verbose=False)
        client.predict(".jsonl", api_name="/save_curated")
        assert [path.name for path in (tmp_path / "ours").rglob("curated.*")] == ["curated.jsonl"]
        client.close()
    finally:
        page.close(verbose=False)
    left = [path for place in ("ours", "gradio") for path in (tmp_path / place).rglob("*") if path.is_file()]
    assert left == []
    assert [path.name for path in (tmp_path / "visitor").rglob("*.jsonl")] == ["curated.jsonl"]


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "inversedmixup.explore.page", raising=False)
    assert main(["explore"]) == 2
    assert "pip install gradio" in capsys.readouterr().err


def test_labels_that_a_fitted_pair_does_not_know_are_refused(train_file, tmp_path, tiny_pair):
    tiny_pair.task_model.set_classes(["delivery", "refund", "other"])
    tiny_pair.save(tmp_path / "fitted", encoder=True)
    with pytest.raises(InputError, match="label 'account' does not occur"):
        open_explorer(str(train_file), PairOptions(str(tmp_path / "fitted")), text_column="text", label_column="label")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 80])
def test_a_host_that_cannot_be_bound_is_one_line_before_any_model_is_loaded(capsys, monkeypatch, host):
    monkeypatch.setattr("inversedmixup.models.pair.Pair.load", None)
    assert f"host {host!r} cannot be bound here" in refused(capsys, "explore", "--host", host)
