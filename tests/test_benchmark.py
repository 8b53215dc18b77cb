"""The benchmark's protocol on tiny random models: the same splits for every method, one file a run, resumable."""

import dataclasses
import gc
import itertools
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from conftest import write_jsonl
from inversedmixup import baselines, benchmark
from inversedmixup.augment_job import AugmentJobConfig, run_augment_job
from inversedmixup.baselines import BASELINE, Added, Method
from inversedmixup.benchmark import BenchmarkConfig, estimate, run_all, run_benchmark
from inversedmixup.benchmark.cells import Bench
from inversedmixup.benchmark.estimate import estimated_seconds, in_words
from inversedmixup.benchmark.records import MEASURES
from inversedmixup.benchmark.splits import FOLDS, LARGEST, draw_rows, parse_draw, shared_rows
from inversedmixup.cli import main
from inversedmixup.commands import benchmark as benchmark_command
from inversedmixup.errors import InputError
from inversedmixup.models.task_model import HEAD_ROWS
from inversedmixup.options import build
from inversedmixup.schema import Example
from inversedmixup.stages.downstream import scores
from server import serving
from test_augment_job import QUICK
from tiny import LABELS, SENTENCES, make_encoder

ROWS = [Example(str(at), f"text {at}", "abc"[at % 3]) for at in range(60)]
TEST = [Example(f"t{at}", f"test {at}", "abc"[at % 3]) for at in range(9)]


@pytest.fixture
def config(tiny_pair_folder):
    def make(**options):
        own = {"n": 6, "pair": tiny_pair_folder, "splits": 2, "methods": "none,duplicate"}
        return build(BenchmarkConfig, {**QUICK, **own}, options)

    return make


def run(train, test, output, config):
    return run_all(Bench(train, test, output, config))


# ---- splits --------------------------------------------------------------------------------------------------------


@given(number=st.integers(0, 30), seed=st.integers(0, 5))
def test_the_folds_of_one_repetition_hold_every_row_out_once(number, seed):
    first = number - number % FOLDS
    held = [draw_rows(ROWS, [], parse_draw("cv"), first + at, seed=seed)[1] for at in range(FOLDS)]
    assert sorted(row.id for fold in held for row in fold) == sorted(row.id for row in ROWS)
    train, test = draw_rows(ROWS, [], parse_draw("cv"), number, seed=seed)
    assert not {row.id for row in train} & {row.id for row in test}
    assert len(train) + len(test) == len(ROWS)


@pytest.mark.parametrize(
    ("draw", "sizes"),
    [("4", {"a": 4, "b": 4, "c": 4}), ("10%", {"a": 2, "b": 2, "c": 2}), ("full", {"a": 20, "b": 20, "c": 20})],
)
def test_a_draw_takes_so_many_rows_of_each_class(draw, sizes):
    train, test = draw_rows(ROWS, TEST, parse_draw(draw), 3, seed=0)
    assert Counter(row.label for row in train) == sizes
    assert test == TEST


def test_a_long_tail_falls_by_its_ratio_in_an_order_of_the_split():
    rows = [Example(str(at), f"text {at}", "abcde"[at % 5]) for at in range(5 * LARGEST)]
    orders = set()
    for number in range(8):
        counts = Counter(row.label for row in draw_rows(rows, TEST, parse_draw("tail:50"), number, seed=0)[0])
        assert sorted(counts.values(), reverse=True) == [100, 38, 14, 5, 2]
        orders.add(tuple(name for name, _ in counts.most_common()))
    assert len(orders) > 1


@given(number=st.integers(0, 50), seed=st.integers(0, 5), draw=st.sampled_from(["3", "40%", "tail:60", "cv"]))
def test_a_split_depends_on_its_seed_and_number_alone(number, seed, draw):
    kind = parse_draw(draw)
    one, two = (draw_rows(ROWS, TEST, kind, number, seed=seed) for _ in range(2))
    assert one == two
    assert one[0] != draw_rows(ROWS, TEST, kind, number + 1, seed=seed)[0]


@pytest.mark.parametrize("draw", ["10", "3", "40%", "full", "tail:1", "tail:30"])
def test_splits_share_as_many_rows_as_expected(draw):
    rows = [Example(str(at), f"text {at}", label) for at, label in enumerate("a" * 240 + "b" * 50 + "c" * 10)]
    kind, splits = parse_draw(draw), 80
    drawn = [{row.id for row in draw_rows(rows, TEST, kind, number, seed=3)[0]} for number in range(splits)]
    shared = [len(one & other) for one, other in itertools.combinations(drawn, 2)]
    expected = shared_rows(rows, kind, splits, seed=3)
    assert expected == pytest.approx(np.mean(shared) / np.mean([len(ids) for ids in drawn]), abs=0.01)
    assert (expected == 1) == (draw == "full")


def test_test_rows_of_classes_that_were_not_drawn_are_left_out():
    train, test = draw_rows(ROWS[:1], TEST, parse_draw("full"), 0, seed=0)
    assert {row.label for row in test} == {train[0].label}


@pytest.mark.parametrize("draw", ["0", "-1", "0%", "101%", "tail:0.5", "tail", "half", ""])
def test_an_unknown_draw_is_refused(draw):
    with pytest.raises(InputError, match="draw"):
        parse_draw(draw)


# ---- runs ----------------------------------------------------------------------------------------------------------


def test_every_run_is_a_file_and_is_not_done_again(train_file, tmp_path, config, monkeypatch):
    test = str(write_jsonl(tmp_path / "test.jsonl", [{"text": "refund the box", "label": "refund"}]))
    arguments = str(train_file), test, str(tmp_path / "toy")
    first = run(*arguments, config(draw="4"))
    assert [(record["split"], record["method"]) for record in first] == [
        (split, method) for split in range(2) for method in (BASELINE, "none", "duplicate")
    ]
    assert {(record["set"], record["shots"], record["protocol"]) for record in first} == {("toy", "4", "fine-tuned")}
    short = {record["method"]: record["steps"] for record in first}
    assert short["none"] < short[BASELINE] == short["duplicate"] == QUICK["downstream_steps"]
    assert json.loads((tmp_path / "toy/run/runs/000-none.json").read_text())["value"] == first[1]

    def never(*_):
        raise AssertionError("done again")

    with monkeypatch.context() as patch:
        patch.setattr("inversedmixup.benchmark.cells.Bench.measured", never)
        assert run(*arguments, config(draw="4")) == first
        assert run(*arguments, config(draw="4", splits=1, methods="none")) == first[:2]
    more = run(*arguments, config(draw="4", splits=3, methods="none,duplicate,oversample"))
    assert [record for record in more if record["split"] < 2 and record["method"] != "oversample"] == first
    with pytest.raises(InputError, match="other settings"):
        run(*arguments, config(draw="3"))


def test_finished_runs_that_are_not_asked_for_are_told_of(train_file, tmp_path, config, caplog):
    def shown(**options):
        caplog.clear()
        return list(run_benchmark(str(train_file), None, str(tmp_path / "toy"), config(**options))["methods"])

    shown(methods="none,duplicate")
    assert "not shown" not in caplog.text
    assert shown(methods="eda", splits=1) == [BASELINE, "eda"]
    assert "toy: finished runs of duplicate, none are not shown; name them in --methods, too" in caplog.text
    assert "toy: finished runs of 2 splits, of which 1 are shown; --splits 2 shows all" in caplog.text
    assert shown(methods="none,duplicate,eda") == [BASELINE, "none", "duplicate", "eda"]
    assert "shown" not in caplog.text


def test_a_refused_encoder_leaves_the_folder_free(train_file, tmp_path, config):
    arguments = str(train_file), None, str(tmp_path / "toy")
    with pytest.raises(InputError, match="encoder of size 16 does not fit"):
        run_benchmark(*arguments, config(encoder=make_encoder(tmp_path, dim=16)))
    run_benchmark(*arguments, config(splits=1, methods="none"))


def test_several_processes_find_what_one_finds(train_file, tmp_path, config):
    found = [
        run(str(train_file), None, str(tmp_path / str(processes) / "toy"), config(processes=processes, dtype="float32"))
        for processes in (1, 2)
    ]
    for one, two in zip(*found, strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


@pytest.mark.parametrize("encoder", ["full", "head"])
def test_a_temperature_changes_how_sure_and_not_what_is_said(train_file, tmp_path, config, encoder):
    settings = config(methods="temperature", splits=2, train_encoder=encoder)
    plain, scaled = (
        [record for record in run(str(train_file), None, str(tmp_path / "toy"), settings) if record["method"] == name]
        for name in (BASELINE, "temperature")
    )
    assert len(plain) == len(scaled) == 2
    for one, other in zip(plain, scaled, strict=True):
        assert (one["accuracy"], one["recall"], one["steps"]) == (other["accuracy"], other["recall"], other["steps"])
        assert one["nll"] != other["nll"]


@pytest.mark.parametrize("encoder", ["full", "head"])
def test_a_run_measures_what_it_says(train_file, tmp_path, config, encoder):
    records = run(str(train_file), None, str(tmp_path / "toy"), config(train_encoder=encoder))
    for record in records:
        assert record["test"] + record["train"] == 18
        assert set(record["recall"]) <= {"delivery", "refund", "account"}
        assert record["added"] == (6 if record["method"] == "duplicate" else 0)
        assert bool(record["steps"]) == (encoder == "full")


def test_a_test_file_and_cross_validation_exclude_each_other(train_file, tmp_path, config):
    with pytest.raises(InputError, match="needs a test file"):
        run(str(train_file), None, str(tmp_path / "toy"), config(draw="4"))
    with pytest.raises(InputError, match="test_rows: are rows of a test file"):
        run(str(train_file), None, str(tmp_path / "toy"), config(test_rows=3))
    with pytest.raises(InputError, match="leave the test file away"):
        run(str(train_file), str(train_file), str(tmp_path / "toy"), config(draw="cv"))


def test_an_unknown_method_is_refused_with_the_known_ones(config):
    with pytest.raises(InputError, match="'magic' is not one of none, equal-steps"):
        config(methods="none,magic")


def test_a_classifier_of_its_own_is_measured_alike(train_file, tmp_path, config, monkeypatch):
    def always_first(split, texts):
        return np.eye(len(split.classes))[[0] * len(texts)]

    known = {**baselines.methods(), "first": Method("first", "says the first class", classify=always_first)}
    monkeypatch.setattr(baselines, "methods", lambda: known)
    rows = [{"text": f"{label} please", "label": label} for label in ("account", "delivery", "refund")]
    test = str(write_jsonl(tmp_path / "test.jsonl", rows))
    records = run(str(train_file), test, str(tmp_path / "toy"), config(methods="first", splits=1))
    assert records[1]["recall"] == {"account": 1.0, "delivery": 0.0, "refund": 0.0}
    assert records[1]["accuracy"] == pytest.approx(1 / 3, abs=1e-3)


def test_rows_of_the_test_file_are_not_trained_on(train_file, tmp_path, config, caplog):
    rows = [json.loads(line) for line in train_file.read_text().splitlines()]
    bench = Bench(str(train_file), str(write_jsonl(tmp_path / "test.jsonl", rows[:4])), str(tmp_path / "toy"), config())
    assert {row.text for row in bench.rows} == {row["text"] for row in rows[4:]}
    assert "4 rows are in the test file too, and not trained on" in caplog.text
    with pytest.raises(InputError, match=r"train.jsonl: every row is in the test file too; measure on"):
        Bench(str(train_file), str(train_file), str(tmp_path / "toy"), config())


def test_a_text_is_not_on_both_sides_of_a_fold():
    rows = [Example(str(at), f"text {at % 20}", "ab"[at % 2]) for at in range(60)]
    train, test = draw_rows(rows, [], parse_draw("cv"), 0, seed=0)
    assert not {row.text for row in train} & {row.text for row in test}


@pytest.mark.parametrize("labels", [["a", "a", "b", "b"], ["a"] * 40 + ["b"]])
def test_rows_that_cannot_be_split_are_refused_before_the_first_run(tmp_path, config, labels):
    rows = [{"text": f"my parcel {at}", "label": label} for at, label in enumerate(labels)]
    train = str(write_jsonl(tmp_path / "few.jsonl", rows))
    with pytest.raises(InputError, match=r"few.jsonl: split \d of draw cv has .* give more rows"):
        run_benchmark(train, None, str(tmp_path / "toy"), config(splits=5, methods="none"))
    assert not list((tmp_path / "toy").rglob("runs/*.json"))


def test_a_method_that_mixes_within_a_class_is_refused_before_the_first_run_where_none_has_two_rows(
    train_file, tmp_path, config, monkeypatch
):
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "quite another", "label": LABELS[0]}])
    monkeypatch.setattr(benchmark, "run_all", lambda _: pytest.fail("ran"))
    for name in ("inversed-same-class", "inversed-pooled", "inversed-reconstruction", "inversed-reconstruction-pooled"):
        own = config(methods=f"duplicate,{name}", draw="1")
        with pytest.raises(InputError, match=f"method {name}: mixes two rows of a class, and split 0 of draw 1 has"):
            run_benchmark(str(train_file), str(test), str(tmp_path / "toy"), own)


def test_texts_to_replay_that_are_not_there_are_refused_before_any_work(train_file, tmp_path, config):
    with pytest.raises(InputError, match=r"^\S*none.txt: no such file"):
        run_benchmark(str(train_file), None, str(tmp_path / "toy"), config(unlabelled=str(tmp_path / "none.txt")))
    assert not (tmp_path / "toy").exists()


def test_a_class_that_a_fold_lacks_may_be_described(tmp_path, config):
    rows = [{"text": text, "label": label} for text, label in zip(SENTENCES, LABELS, strict=True)]
    rows += [{"text": "open on sunday", "label": "hours"}]
    train = str(write_jsonl(tmp_path / "t.jsonl", rows))
    (tmp_path / "d.yaml").write_text("hours: when the shop is open\n")
    own = {"splits": 5, "methods": "inversed", "labels": "hard:task", "descriptions": str(tmp_path / "d.yaml")}
    run_benchmark(train, None, str(tmp_path / "toy"), config(**own))
    (tmp_path / "d.yaml").write_text("our: when the shop is open\n")
    with pytest.raises(InputError, match="'our' is not a class"):
        run_benchmark(train, None, str(tmp_path / "toy"), config(**own, overwrite=True))


def test_overwriting_deletes_nothing_that_a_benchmark_did_not_write(train_file, tmp_path, config):
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "config.json").write_text('{"of": "another program"}')
    (folder / "precious.txt").write_text("kept")
    run(str(train_file), None, str(folder), config(splits=1))
    run(str(train_file), None, str(folder), config(splits=1, n=4, overwrite=True))
    assert (folder / "config.json").read_text() == '{"of": "another program"}'
    assert (folder / "precious.txt").read_text() == "kept"


def test_a_benchmark_that_was_thrown_away_leaves_no_verdict(train_file, tmp_path, config, monkeypatch):
    arguments, said = (str(train_file), None, str(tmp_path / "toy")), tmp_path / "toy" / "benchmark.json"
    run_benchmark(*arguments, config(splits=1))
    monkeypatch.setattr("inversedmixup.benchmark.run_all", None)
    for options in ({"splits": 1}, {"splits": 2}):
        with pytest.raises(TypeError):
            run_benchmark(*arguments, config(**options))
        assert said.exists()
    with pytest.raises(TypeError):
        run_benchmark(*arguments, config(splits=1, n=4, overwrite=True))
    assert not said.exists()


def test_a_run_of_a_method_that_had_other_means_is_done_again(train_file, tmp_path, config, monkeypatch):
    said, counted = {"synonyms": "none"}, []
    known = baselines.methods()
    known["eda"] = dataclasses.replace(
        known["eda"], facts=lambda: said, added=lambda split: counted.append(1) or Added(["my parcel"], np.eye(3)[:1])
    )
    monkeypatch.setattr(baselines, "methods", lambda: known)
    arguments = str(train_file), None, str(tmp_path / "toy"), config(splits=1, methods="eda")
    assert run(*arguments)[1]["synonyms"] == "none"
    run(*arguments)
    assert len(counted) == 1
    said["synonyms"] = "WordNet"
    assert run(*arguments)[1]["synonyms"] == "WordNet"
    assert len(counted) == 2


def test_a_killed_process_is_told_of_in_one_line(train_file, tmp_path, config, monkeypatch):
    monkeypatch.setattr("inversedmixup.benchmark._one_split", _killed)
    with pytest.raises(InputError, match=r"one of the 2 processes was killed.*lower --processes"):
        run(str(train_file), None, str(tmp_path / "toy"), config(processes=2))


def _killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_interrupt_does_not_wait_for_what_the_processes_do(train_file, tmp_path, config, monkeypatch):
    monkeypatch.setattr("inversedmixup.benchmark._one_split", _slow)
    folder = tmp_path / "toy"

    def interrupt():
        while not list(folder.glob("begun-*")):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGUSR1)

    # not SIGINT: who runs tests in several processes has that ignored in them
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(str(train_file), None, str(folder), config(processes=2, splits=5))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not list(folder.glob("ended-*"))


def _slow(train, test, output, config, number):
    (Path(output) / f"begun-{number}").touch()
    time.sleep(30)
    (Path(output) / f"ended-{number}").touch()


def test_a_process_ends_with_its_parent(monkeypatch):
    ended = []
    monkeypatch.setattr(benchmark, "parent_process", lambda: SimpleNamespace(join=lambda: ended.append("joined")))
    monkeypatch.setattr("os._exit", ended.append)
    benchmark._end_with_parent()
    assert ended == ["joined", 1]


def test_a_benchmark_goes_on_in_a_folder_of_another_name(train_file, tmp_path, config, monkeypatch):
    first = run(str(train_file), None, str(tmp_path / "toy"), config())
    (tmp_path / "toy").rename(tmp_path / "other")
    more = run(str(train_file), None, str(tmp_path / "other"), config(splits=3))
    assert {record["set"] for record in more} == {"other"}
    assert [{**record, "set": "toy"} for record in more if record["split"] < 2] == first
    monkeypatch.chdir(tmp_path / "other")
    assert run(str(train_file), None, ".", config(splits=3)) == more


# ---- scores --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(5, 40))
def test_scores_lie_where_they_must(seed, classes, n):
    rng = np.random.default_rng(seed)
    probs, truth = rng.dirichlet(np.ones(classes), size=n), rng.integers(classes, size=n)
    found = scores(probs, truth)
    assert 0 <= found["ece"] <= 1
    assert found["nll"] == pytest.approx(log_loss(truth, probs, labels=range(classes)), abs=1e-3)
    assert found["accuracy"] == pytest.approx((probs.argmax(1) == truth).mean(), abs=1e-4)


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    probs = np.array([[0.8, 0.2]] * 10)
    assert scores(probs, np.array([0] * 8 + [1] * 2))["ece"] == pytest.approx(0, abs=1e-6)
    assert scores(probs, np.array([0] * 5 + [1] * 5))["ece"] == pytest.approx(0.3, abs=1e-6)
    assert scores(probs, np.array([0] * 10))["ece"] == pytest.approx(0.2, abs=1e-6)


# ---- the verdict ---------------------------------------------------------------------------------------------------


def test_the_command_prints_a_verdict_and_keeps_it(train_file, tmp_path, tiny_pair_folder, capsys):
    own = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    out = tmp_path / "bench"
    arguments = [str(train_file), "-o", str(out), "--pair", tiny_pair_folder, *own, "--n=6", "--methods=duplicate"]
    assert main(["benchmark", *arguments, "--splits=3", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["verdicts"] == [printed["methods"]["duplicate"]["verdict"]["sentence"]]
    assert "over the same rows alone, trained as long" in printed["verdicts"][0]
    assert "3 splits of 14 training and 4 test rows" in printed["verdicts"][0]
    assert {name: found["added"] for name, found in printed["methods"].items()} == {BASELINE: 0, "duplicate": 6}
    assert all(0 <= found["rare_recall"] <= 1 for found in printed["methods"].values())  # 5, 5 and 4 rows
    assert json.loads((out / "benchmark.json").read_text())["verdicts"] == printed["verdicts"]
    assert main(["benchmark", *arguments, "--splits=1"]) == 0
    shown = capsys.readouterr().out
    assert "equal-steps: the same rows alone, trained as long" in shown
    assert "One split shows no spread" in shown


def test_a_report_shows_the_verdict_of_a_benchmark_of_the_same_rows_and_no_other(train_file, tmp_path, config, capsys):
    out, page = tmp_path / "out.jsonl", tmp_path / "report.html"
    settings = config(methods="inversed", splits=1, n=3)
    run_benchmark(str(train_file), None, str(tmp_path / "bench"), settings)
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(train_file.read_text(encoding="utf-8").splitlines()[1:]) + "\n", encoding="utf-8")
    command = ["report", str(out), "-o", str(page), "--benchmark", str(tmp_path / "bench")]
    job = build(AugmentJobConfig, {**QUICK, "pair": settings.pair, "n": 4, "overwrite": True})
    run_augment_job(str(train_file), str(out), job)
    assert main(command) == 0
    shown = page.read_text(encoding="utf-8")
    assert "<strong>Verdict of the benchmark:</strong> It cannot be told whether inversed helps" in shown
    assert "The benchmark had other settings: n 3 (here 4)." in shown
    run_augment_job(str(other), str(out), job)
    assert main(command) == 2
    assert "is a benchmark of other rows" in capsys.readouterr().err


def test_the_table_has_gains_in_points_rows_added_and_the_recall_of_rare_classes(capsys):
    means = {**dict.fromkeys(MEASURES, 0.5), "rare_recall": 0.25, "added": 1234.0}
    verdict = {"gain": 0.0361, "interval": [-0.0049, 0.0771], "word": "cannot tell"}
    methods = {BASELINE: {**means, "added": 0.0}, "eda": {**means, "verdict": verdict}}
    benchmark_command.show({"methods": methods, "verdicts": [], "output": "bench"})
    header, baseline, eda, *_ = capsys.readouterr().out.splitlines()
    assert "recall of rare classes" in header
    assert re.split(r" {2,}", baseline.strip()) == [BASELINE, *["0.500"] * 4, "0.250", "0"]
    shown = [*["0.500"] * 4, "0.250", "1,234", "+3.6", "−0.5 … +7.7", "cannot tell"]
    assert re.split(r" {2,}", eda.strip()) == ["eda", *shown]
    del means["rare_recall"]
    benchmark_command.show({"methods": {BASELINE: means}, "verdicts": [], "output": "bench"})
    assert "rare classes" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("draw", "overlap"), [("10", (10 * 10 / 990 + 10) / 20), ("50%", 0.5), ("full", 1), ("cv", 1 / FOLDS)]
)
def test_a_verdict_reckons_with_the_rows_that_splits_share_where_classes_are_uneven(tmp_path, config, draw, overlap):
    rows = [{"text": f"my parcel {at}", "label": "rare" if at % 100 == 0 else "frequent"} for at in range(1000)]
    train = str(write_jsonl(tmp_path / "train.jsonl", rows))
    test = str(write_jsonl(tmp_path / "test.jsonl", [{"text": "my refund", "label": "rare"}]))
    bench = Bench(train, None if draw == "cv" else test, str(tmp_path / "toy"), config(draw=draw, methods="none"))
    assert bench.overlap == pytest.approx(overlap)


def test_class_weights_weigh_the_baseline_as_the_method_of_that_name_does(train_file, tmp_path, config):
    lines = train_file.read_text(encoding="utf-8").splitlines()
    given = tmp_path / "lopsided.jsonl"
    given.write_text("\n".join([*lines[:9], *lines[-4:]]) + "\n", encoding="utf-8")
    plain, even = (
        run(str(given), None, str(tmp_path / name), config(methods="class-weights", splits=2, class_weights=even))
        for name, even in (("plain", False), ("even", True))
    )
    measures = [{name: record[name] for name in MEASURES} for record in plain if record["method"] == "class-weights"]
    copied = run(str(given), None, str(tmp_path / "copied"), config(methods="oversample", splits=2, class_weights=True))
    as_ever = run(str(given), None, str(tmp_path / "as-ever"), config(methods="oversample", splits=2))
    assert [record["nll"] for record in copied if record["method"] == "oversample"] == [
        record["nll"] for record in as_ever if record["method"] == "oversample"
    ]
    for method in (BASELINE, "class-weights"):
        assert [{name: record[name] for name in MEASURES} for record in even if record["method"] == method] == measures
    assert [record["nll"] for record in plain if record["method"] == BASELINE] != [one["nll"] for one in measures]


@pytest.mark.parametrize("encoder", ["full", "head"])
def test_class_weights_reach_the_batches_that_are_mixed(train_file, tmp_path, config, encoder):
    lines = train_file.read_text(encoding="utf-8").splitlines()
    given = tmp_path / "lopsided.jsonl"
    given.write_text("\n".join([*lines[:9], *lines[-4:]]) + "\n", encoding="utf-8")
    own = {"methods": "word-mixup,sentence-mixup,tmix,ssmix", "splits": 1, "train_encoder": encoder}
    plain, even = (
        run(str(given), None, str(tmp_path / name), config(class_weights=weighted, **own))
        for name, weighted in (("plain", False), ("even", True))
    )
    assert len(plain) == 5
    assert all(one["nll"] != other["nll"] for one, other in zip(plain, even, strict=True))


# ---- the estimate --------------------------------------------------------------------------------------------------


def test_processes_are_timed_with_the_threads_that_each_will_have(train_file, tmp_path, config, monkeypatch):
    bench, seen = Bench(str(train_file), None, str(tmp_path / "toy"), config(processes=2)), []

    def measured(_):
        seen.append(torch.get_num_threads())
        return estimate.Speeds(1.0, 0.0, 0.0, 0.0, 0.0)

    monkeypatch.setattr(estimate, "measured_speeds", measured)
    monkeypatch.setattr(estimate.os, "cpu_count", lambda: 6)
    before = torch.get_num_threads()
    estimated_seconds(bench, [bench.methods])
    assert seen == [3]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("encoder", ["head", "full"])
def test_what_a_method_reads_by_itself_is_in_the_estimate(train_file, tmp_path, config, monkeypatch, encoder):
    own = {"methods": "eda,aeda,tmix,ssmix,word-mixup,oversample", "train_encoder": encoder, "downstream_steps": 10}
    bench = Bench(str(train_file), None, str(tmp_path / "toy"), config(**own))
    by_name = {method.name: method for method in bench.methods}
    speeds = estimate.measured_speeds(bench)
    assert set(speeds.mixed) == {"tmix", "ssmix", "word-mixup"}
    mixed = {"tmix": 1e3, "ssmix": 1e4, "word-mixup": 1e5}
    monkeypatch.setattr(estimate, "measured_speeds", lambda _: estimate.Speeds(1e-6, 1.0, 0.0, 0.0, 0.0, mixed))

    def added_by(name):
        both, one = (estimated_seconds(bench, [[by_name[name]] * times]) for times in (2, 1))
        return round(both - one)

    measured_on = 0 if encoder == "head" else round(len(bench.rows) / 5)
    assert {name: added_by(name) for name in mixed} == {name: 10 * each + measured_on for name, each in mixed.items()}
    assert added_by("oversample") == measured_on
    split, _ = bench.split(0)
    for name in ("eda", "aeda"):  # encoded once where the encoder does not learn; else read in training steps alone
        rows = len(by_name[name].added(split).texts)
        assert rows > bench.config.n
        assert added_by(name) == (rows if encoder == "head" else measured_on)


def test_what_a_tuned_judge_reads_is_in_the_estimate(train_file, tmp_path, config, monkeypatch):
    methods = "inversed-soft,inversed-cross-pooled,inversed-cross-incontext,tuned-llm"
    bench = Bench(str(train_file), None, str(tmp_path / "toy"), config(methods=methods, n=10, train_encoder="head"))
    assert estimate.measured_speeds(bench).heard > 0
    monkeypatch.setattr(estimate, "measured_speeds", lambda _: estimate.Speeds(0.0, 0.0, 0.0, 0.0, 1.0))
    read = {method.name: estimated_seconds(bench, [[method]]) for method in bench.methods}
    assert read == pytest.approx(
        {BASELINE: 0, "inversed-soft": 0, "inversed-cross-pooled": 13, "inversed-cross-incontext": 26,
         "tuned-llm": len(bench.rows) / 5}
    )  # fmt: skip


def test_another_data_seed_draws_other_folds():
    first, second = ([draw_rows(ROWS, [], parse_draw("cv"), at, seed=seed)[1] for at in range(10)] for seed in (0, 1))
    assert not any(held in second for held in first)


def test_a_copy_that_differs_in_case_is_not_measured_on(train_file, tmp_path, config, caplog):
    first = json.loads(train_file.read_text(encoding="utf-8").splitlines()[0])
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": first["text"].upper() + " !", "label": first["label"]}])
    bench = Bench(str(train_file), str(test), str(tmp_path / "toy"), config())
    assert first["text"] not in [row.text for row in bench.rows]
    assert "1 rows are in the test file too" in caplog.text


def test_more_splits_take_longer_and_a_finished_benchmark_is_not_estimated(train_file, tmp_path, config, caplog):
    bench = Bench(str(train_file), None, str(tmp_path / "toy"), config())
    assert estimated_seconds(bench, [bench.methods] * 4) > estimated_seconds(bench, [[], []]) == 0
    caplog.set_level("INFO")
    run_benchmark(str(train_file), None, str(tmp_path / "toy"), config())
    assert "for 6 runs" in caplog.text
    caplog.clear()
    run_benchmark(str(train_file), None, str(tmp_path / "toy"), config())
    assert "runs" not in caplog.text
    run_benchmark(str(train_file), None, str(tmp_path / "toy"), config(methods="none,duplicate,oversample"))
    assert "for 2 runs" in caplog.text


@pytest.mark.parametrize(("n", "encoder", "steps"), [(6, "full", None), (60, "full", 5), (60, "head", None)])
def test_steps_that_do_not_look_at_every_row_are_told_of_once(train_file, tmp_path, config, caplog, n, encoder, steps):
    own = {"n": n, "train_encoder": encoder, "downstream_steps": 4, "methods": "none"}
    run_benchmark(str(train_file), None, str(tmp_path / "toy"), config(**own))
    told = [record.getMessage() for record in caplog.records if "some are never trained on" in record.getMessage()]
    assert len(told) == (steps is not None)
    assert all(f"look at 64 rows, of 14 training rows and {n}" in one for one in told)
    assert all(f"--downstream-steps {steps} looks at all" in one for one in told)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.3, "a second or two"), (42.3, "about 42 seconds"), (700, "about 12 minutes"), (9000, "about 2.5 hours")],
)
def test_a_time_in_words(seconds, words):
    assert in_words(seconds) == words


# ---- methods -------------------------------------------------------------------------------------------------------


@pytest.fixture
def split(tiny_pair_folder, train_file, tmp_path, config):
    bench = Bench(str(train_file), None, str(tmp_path / "toy"), config(candidates=1, tries=6.0, judge_steps=2))
    return bench.split(0)[0]


def test_a_pair_that_has_seen_labels_is_named(tiny_pair, train_file, tmp_path, config, caplog):
    tiny_pair.task_model.set_classes(["a", "b"])
    tiny_pair.save(tmp_path / "fitted", encoder=True)
    Bench(str(train_file), None, str(tmp_path / "toy"), config(pair=str(tmp_path / "fitted")))
    assert f"pair {tmp_path / 'fitted'} has been fitted to labelled rows" in caplog.text


def test_prompts_ask_the_llm_that_a_pair_carries(tiny_pair, tmp_path, config):
    tiny_pair.config.own_llm = True
    with torch.no_grad():
        tiny_pair.llm.model.get_input_embeddings().weight[0] = 7.0
    tiny_pair.save(tmp_path / "pair", encoder=True)
    llm = config(pair=str(tmp_path / "pair")).load_llm()
    assert llm.model.get_input_embeddings().weight[0].eq(7.0).all()


def test_what_a_method_adds_is_labelled(split, train_file):
    split = dataclasses.replace(split, config=dataclasses.replace(split.config, unlabelled=str(train_file)))
    for method in baselines.methods().values():
        if method.added is None:
            continue
        added = method.added(split)
        assert added.targets.shape == (len(added.texts), 3), method.name
        assert np.allclose(added.targets.sum(1), 1, atol=1e-3), method.name
        assert all(text.strip() for text in added.texts), method.name


def test_variants_share_texts_and_a_resumed_run_does_not_write_them_again(split, monkeypatch):
    methods = baselines.methods()
    soft, pooled = (methods[name].added(split) for name in ("inversed-soft", "inversed-cross-pooled"))
    assert soft.texts == pooled.texts
    assert not np.allclose(soft.targets, pooled.targets)

    def never(*_, **__):
        raise AssertionError("written again")

    monkeypatch.setattr("inversedmixup.stages.augment.write_mixes", never)
    again = methods["inversed-soft"].added(split)
    assert again.texts == soft.texts
    assert np.array_equal(again.targets, soft.targets)


def test_what_a_judge_says_does_not_depend_on_what_it_was_asked_before():
    class Judge:
        name = "rounds"

        def probabilities(self, texts, embeddings):
            asked.append(list(texts))
            return np.full((len(texts), 2), len(texts), dtype=float)  # as if the batch decided

    asked = []
    judge, whole = baselines.Remembering(Judge()), torch.empty(3, 0)
    assert judge.probabilities(["a", "b"], whole[:2]).tolist() == [[2, 2]] * 2
    assert judge.probabilities(["a", "b", "c"], whole).tolist() == [[3, 3]] * 3
    judge.probabilities(["a", "b"], whole[:2])[:] = 0  # the caller's own
    assert judge.probabilities(["a", "b"], whole[:2]).tolist() == [[2, 2]] * 2
    assert asked == [["a", "b"], ["a", "b", "c"]]


def test_the_tuned_judge_is_made_once_and_asked_the_same_once(split, monkeypatch):
    asked = []
    judge = split.dear("tuned").judge
    real = judge.probabilities
    monkeypatch.setattr(
        judge, "probabilities", lambda texts, embeddings: asked.append(tuple(texts)) or real(texts, embeddings)
    )
    methods = baselines.methods()
    for name in ("inversed-judged", "inversed-mitigated", "inversed-cross-pooled"):
        methods[name].added(split)
    methods["tuned-llm"].classify(split, ["where is my parcel"])
    assert len(asked) == len(set(asked)) > 1


def test_inversed_is_what_augment_does(train_file, tmp_path, config, split):
    from inversedmixup.augment_job import AugmentJobConfig, run_augment_job

    train, test = tmp_path / "half.jsonl", tmp_path / "out.jsonl"
    write_jsonl(train, [{"id": row.id, "text": row.text, "label": row.label} for row in split.examples])
    own = {"n": 6, "tries": 6.0, "candidates": 1, "pair": split.config.pair, "seed": split.config.seed}
    run_augment_job(str(train), str(test), build(AugmentJobConfig, {**QUICK, **own}))
    rows = [json.loads(line) for line in test.read_text().splitlines()]
    assert baselines.methods()["inversed"].added(split).texts == [row["text"] for row in rows]


def test_a_long_grid_of_ratios_is_no_file_name(tiny_pair_folder, train_file, tmp_path, config):
    grid = "grid:" + ",".join(f"{at / 100:.2f}" for at in range(50, 101))
    own = config(methods="inversed", splits=1, lam=grid, labels="soft", pairs="same-class", refine_steps=0)
    assert len(run(str(train_file), None, str(tmp_path / "toy"), own)) == 2


def test_edits_of_many_rows_are_as_many_as_a_frozen_encoders_head_learns_from(config):
    rows = [Example(str(at), f"some words of row {at}", "ab"[at % 2]) for at in range(3000)]
    made = {}
    for encoder in ("head", "full"):
        own = config(train_encoder=encoder, downstream_steps=150)
        split = SimpleNamespace(
            examples=rows, classes=["a", "b"], config=own, stream=lambda use: np.random.default_rng(use)
        )
        made[encoder] = len(baselines.methods()["aeda"].added(split).texts)
    assert made == {"head": HEAD_ROWS - 3000, "full": own.n}


def test_a_paid_answer_is_not_paid_for_again_by_a_killed_benchmark(train_file, tmp_path, config, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    with serving(lambda body: (200, json.dumps({"label": "refund"}))) as endpoint:
        own = config(
            methods="inversed", splits=1, labels="hard:api", api_model="m", api_url=endpoint.url, tries=1.0,
            candidates=1,
        )  # fmt: skip
        run(str(train_file), None, str(tmp_path / "toy"), own)
        paid = len(endpoint.requests)
        (tmp_path / "toy/run/runs/000-inversed.json").unlink()
        run(str(train_file), None, str(tmp_path / "toy"), own)
        assert len(endpoint.requests) == paid > 0


def test_no_model_of_a_split_stays(train_file, tmp_path, config):
    settings = config(methods="inversed-cross-pooled", splits=3, judge_steps=2, train_encoder="head")
    bench, alive = Bench(str(train_file), None, str(tmp_path / "toy"), settings), []
    gc.collect()
    gc.disable()
    try:
        for number in range(3):
            bench.run_split(number, lambda _: None)
            alive.append(sum(type(one).__name__ == "LlamaModel" for one in gc.get_objects()))
    finally:
        gc.enable()
    assert len(set(alive)) == 1
