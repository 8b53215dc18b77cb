"""The main job on tiny random models: same bytes, whatever happens on the way."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import write_jsonl
from inversedmixup import identity
from inversedmixup.augment_job import AugmentJobConfig, run_augment_job
from inversedmixup.errors import InputError
from inversedmixup.files import iter_records
from inversedmixup.gate import GateConfig
from inversedmixup.identity import files_digest
from inversedmixup.judges.panel import adjusted
from inversedmixup.label_job import LabelJobConfig, run_label_job
from inversedmixup.models.pair import Pair
from inversedmixup.options import build
from inversedmixup.report.results import read_run
from inversedmixup.row_file import RowFile
from inversedmixup.runs import Lock, RunFolder
from inversedmixup.schema import Example, Row
from inversedmixup.stages.augment import AugmentConfig, Tally, check_rows
from inversedmixup.stages.downstream import original_weights, paired
from inversedmixup.stages.writer import write_mixes
from server import serving, text_of
from tiny import LABELS, SENTENCES

QUICK = {
    "n": 40, "tries": 2.0, "candidates": 2, "max_tokens": 8, "task_steps": 3, "follow_steps": 2, "refine_steps": 1,
    "downstream_steps": 3, "min_cycle": -1.0, "fluency_margin": 99.0, "accept_labels": "any", "tolerance": 1.0,
    "labels": "soft", "pairs": "same-class",
}  # fmt: skip


@pytest.fixture
def config(tiny_pair_folder):
    def make(**options):
        return build(AugmentJobConfig, {**QUICK, "pair": tiny_pair_folder}, options)

    return make


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_files_may_be_paths(train_file, tmp_path, config):
    result = run_augment_job(train_file, tmp_path / "out.jsonl", config(n=4))
    assert result.summary["output"] == str(tmp_path / "out.jsonl")


def test_every_row_has_the_schema(train_file, tmp_path, config):
    out = tmp_path / "out.jsonl"
    result = run_augment_job(str(train_file), str(out), config(labels="llm", pairs="cross-class", force_judge=True))
    rows, rejected = rows_of(out), rows_of(tmp_path / "out.rejected.jsonl")
    assert rows
    assert len(rows) == result.summary["kept"]
    assert len(rows) + len(rejected) == result.summary["tried"]
    names = {field.name for field in dataclasses.fields(Row)}
    for row in rows + rejected:
        assert set(row) == names
        assert set(row["label_probs"]) == set(LABELS)
        assert sum(row["label_probs"].values()) == pytest.approx(1, abs=1e-3)
        assert row["label"] == row["labels"]["llm"]
        assert len(row["parents"]) == 2
        assert 0 <= row["lam"] <= 1
        assert 0 <= row["lam_realised"] <= 1
        assert row["kept"] == (row["reject_reason"] is None)
    assert all(LABELS[int(a)] != LABELS[int(b)] for a, b in (row["parents"] for row in rows))


def test_the_same_command_gives_the_same_bytes(train_file, tmp_path, config):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (first, second):
        run_augment_job(str(train_file), str(path), config())
    assert first.read_bytes() == second.read_bytes()


def test_batch_size_does_not_change_the_texts(train_file, tmp_path, config):
    outs = []
    for size in (1, 7, 64):
        path = tmp_path / f"{size}.jsonl"
        run_augment_job(str(train_file), str(path), config(batch_size=size))
        outs.append(path.read_bytes())
    assert outs[0] == outs[1] == outs[2]


def test_another_seed_gives_other_rows(train_file, tmp_path, config):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    run_augment_job(str(train_file), str(first), config(seed=1))
    run_augment_job(str(train_file), str(second), config(seed=2))
    assert first.read_bytes() != second.read_bytes()


def test_a_lost_or_damaged_shard_is_made_again_and_the_others_are_not(train_file, tmp_path, config, monkeypatch):
    out = tmp_path / "out.jsonl"
    run_augment_job(str(train_file), str(out), config())
    before = out.read_bytes()
    shards = sorted((tmp_path / "out.jsonl.run" / "shards").iterdir())
    shards[0].write_text(shards[0].read_text().replace("parents", "parrots", 1))
    untouched = shards[1].stat().st_mtime_ns
    run_augment_job(str(train_file), str(out), config())
    assert out.read_bytes() == before
    assert shards[1].stat().st_mtime_ns == untouched


def test_killed_in_the_middle_it_gives_the_same_bytes_and_redoes_nothing_finished(train_file, tmp_path, config):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    options = {**dataclasses.asdict(config(n=90, tries=1.0, dtype="float32"))}
    run_augment_job(str(train_file), str(whole), build(AugmentJobConfig, options))
    code = (
        "import sys, json; from inversedmixup.augment_job import *; from inversedmixup.options import build; "
        "run_augment_job(sys.argv[1], sys.argv[2], build(AugmentJobConfig, json.loads(sys.argv[3])))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(train_file), str(killed), json.dumps(options)], env=os.environ.copy()
    )
    first_shard = tmp_path / "killed.jsonl.run" / "shards" / "000000.json"
    deadline = time.monotonic() + 120
    while not first_shard.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first_shard.exists()
    finished = first_shard.stat().st_mtime_ns
    run_augment_job(str(train_file), str(killed), build(AugmentJobConfig, options))
    assert killed.read_bytes() == whole.read_bytes()
    assert first_shard.stat().st_mtime_ns == finished


def test_a_test_file_of_training_rows_is_named(train_file, tmp_path, config, caplog):
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": SENTENCES[at], "label": LABELS[at]} for at in (0, 0, 1)])
    with test.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "quite another", "label": LABELS[0]}) + "\n")
    run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config(test=str(test)))
    assert "test.jsonl: 3 of 4 rows are training rows too" in caplog.text


def test_a_finished_run_holds_its_folder_no_longer(train_file, tmp_path, config):
    run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config(test=str(train_file)))
    assert (tmp_path / "out.jsonl.run").resolve() not in Lock._held


def test_other_settings_for_the_same_output_are_refused_unless_overwritten(train_file, tmp_path, config):
    out = tmp_path / "out.jsonl"
    run_augment_job(str(train_file), str(out), config())
    with pytest.raises(InputError, match="other settings"):
        run_augment_job(str(train_file), str(out), config(lam="0.5"))
    assert run_augment_job(str(train_file), str(out), config(lam="0.5", overwrite=True)).summary["kept"]


def test_what_a_refusal_advises_is_not_refused_where_nothing_was_finished(train_file, tmp_path, config):
    out = str(tmp_path / "out.jsonl")
    with pytest.raises(InputError, match=r"stage 2 spoilt reconstruction.* or use --train-encoder head"):
        run_augment_job(str(train_file), out, config(tolerance=-2.0))
    assert run_augment_job(str(train_file), out, config(train_encoder="head")).summary["kept"]


def test_a_finished_run_grows_and_is_the_same_as_one_so_large_from_the_start(train_file, tmp_path, config, caplog):
    caplog.set_level("INFO")
    # a class that lacks rows: what it is drawn for must not depend on how many rows are wanted
    lines = train_file.read_text(encoding="utf-8").splitlines()
    given = tmp_path / "lopsided.jsonl"
    given.write_text("\n".join(lines[:-3]) + "\n", encoding="utf-8")
    small, large = config(n=30, pairs="balanced"), config(n=70, pairs="balanced")
    grown, whole = tmp_path / "grown.jsonl", tmp_path / "whole.jsonl"
    run_augment_job(str(given), str(grown), small)
    before = [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "grown.jsonl.run" / "shards").iterdir())]
    assert before
    run_augment_job(str(given), str(grown), large)
    assert "finished work is taken up again (n: 30 there, 70 now)" in caplog.text
    assert [(path, path.stat().st_mtime_ns) for path, _ in before] == before
    run_augment_job(str(given), str(whole), large)
    assert grown.read_bytes() == whole.read_bytes()
    run_augment_job(str(given), str(grown), small)  # and back
    assert len(rows_of(grown)) == 30


def test_another_gate_or_test_file_takes_finished_rows_again(train_file, tmp_path, config, monkeypatch):
    out = tmp_path / "out.jsonl"
    first = run_augment_job(str(train_file), str(out), config(test=str(train_file))).summary
    monkeypatch.setattr("inversedmixup.stages.augment.RowWriter.written", None)  # nothing is written
    monkeypatch.setattr("inversedmixup.stages.warmup.run_warmup", None)
    wordy = config(min_words=8, n=20, tries=2.0, test=str(train_file))
    summary = run_augment_job(str(train_file), str(out), wordy).summary
    assert summary["rejected"]["too_short"] > first["rejected"].get("too_short", 0)
    moved = shutil.copy(train_file, tmp_path / "moved.jsonl")
    with monkeypatch.context() as patch:  # the same rows in another place
        patch.setattr("inversedmixup.job.run_downstream", lambda *_: pytest.fail("measured again"))
        run_augment_job(str(train_file), str(out), dataclasses.replace(wordy, test=str(moved)))
    half = write_jsonl(tmp_path / "half.jsonl", rows_of(train_file)[::2])
    shorter = run_augment_job(str(train_file), str(out), dataclasses.replace(wordy, test=str(half))).summary
    assert shorter["test_rows"] == len(rows_of(half)) < summary["test_rows"]
    assert "accuracy_with" not in run_augment_job(str(train_file), str(out), config(min_words=8, n=20)).summary


def test_a_choice_that_was_not_finished_has_no_report(train_file, tmp_path, config, monkeypatch):
    out = tmp_path / "out.jsonl"
    run_augment_job(str(train_file), str(out), config())
    monkeypatch.setattr("inversedmixup.augment_job.run_augment", None)
    with pytest.raises(TypeError):
        run_augment_job(str(train_file), str(out), config(n=20))
    with pytest.raises(InputError, match="the run is not finished"):
        read_run(out)


def test_a_damaged_config_leaves_no_summary_of_other_settings(tmp_path):
    RunFolder(tmp_path, {"n": 1})
    (tmp_path / "summary.json").write_text("{}")
    RunFolder(tmp_path, {"n": 1})
    assert (tmp_path / "summary.json").exists()
    (tmp_path / "config.json").write_text("{ damaged")
    RunFolder(tmp_path, {"n": 2})
    assert not (tmp_path / "summary.json").exists()


def test_what_a_run_records_of_its_gate_is_what_applied(train_file, tmp_path, config):
    out = str(tmp_path / "out.jsonl")
    run_augment_job(str(train_file), out, config(accept_labels="auto"))
    settings = read_run(out).settings
    assert settings["accept_labels"] == "agree"  # labels soft
    assert "--accept-labels" not in read_run(out).provenance["command"]
    assert build(GateConfig, {"accept_labels": settings["accept_labels"]}).accepted == "agree"


def test_test_texts_are_not_replayed(train_file, tmp_path, config, monkeypatch):
    texts = tmp_path / "texts.txt"
    texts.write_text("one more sentence\nHello, there!\n", encoding="utf-8")
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "hello there", "label": LABELS[0]}])
    seen = []
    monkeypatch.setattr("inversedmixup.stages.warmup._refine", lambda *given: seen.append(given[4]))
    given = config(unlabelled=str(texts), test=str(test))
    run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), given)
    assert seen == [["one more sentence"]]
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "one more sentence", "label": LABELS[0]}])
    with pytest.raises(InputError, match="the test rows, which stage 2 must not read"):
        run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), dataclasses.replace(given, test=str(other)))


def test_uneven_classes_are_told_and_the_task_model_is_heard_evened(train_file, tmp_path, config, caplog, tiny_pair):
    caplog.set_level("INFO")
    lines = train_file.read_text(encoding="utf-8").splitlines()
    given = tmp_path / "lopsided.jsonl"
    given.write_text("\n".join([*lines[:8], lines[-1]]) + "\n", encoding="utf-8")  # 6, 2 and 1 rows
    out = tmp_path / "out.jsonl"
    run_augment_job(str(given), str(out), config(pairs="any"))
    assert "the largest class has 6 rows, the smallest 1: where rare classes matter as much" in caplog.text
    model = Pair.load_task_model(f"{out}.run/model")
    rows = rows_of(out)
    probs = model.predict_proba(model.encode([row["text"] for row in rows]))
    shares = np.array([{"delivery": 6, "refund": 2, "account": 1}[name] for name in model.classes]) / 9
    expected = [model.classes[at] for at in adjusted(probs, shares).argmax(1)]
    assert [row["labels"]["task"] for row in rows] == expected
    caplog.clear()
    run_augment_job(str(given), str(out), config(pairs="any", class_weights=True, test=str(train_file)))
    assert "the largest class" not in caplog.text
    assert "finished work is taken up again" in caplog.text


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_every_class_counts_the_same_where_weights_are_even(numbers):
    examples = [Example(str(at), "a", "abcd"[number]) for at, number in enumerate(numbers)]
    weights = original_weights(examples, "abcd", even=True)
    assert weights.mean() == pytest.approx(1)
    totals = np.bincount(numbers, weights=weights)
    assert totals[totals > 0] == pytest.approx(len(numbers) / len(set(numbers)))
    assert (original_weights(examples, "abcd", even=False) == 1).all()


def test_a_run_is_not_taken_up_in_another_precision(train_file, tmp_path, config, monkeypatch):
    out = str(tmp_path / "out.jsonl")
    run_augment_job(str(train_file), out, config(dtype="auto"))
    run_augment_job(str(train_file), out, config(dtype="float32"))  # what auto came to here
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    with pytest.raises(InputError, match="dtype: 'float32' there, 'bfloat16' now"):
        run_augment_job(str(train_file), out, config(dtype="auto"))


def test_a_test_file_gives_accuracy_with_and_without_at_equal_steps(train_file, tmp_path, config):
    summary = run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config(test=str(train_file))).summary
    assert 0 <= summary["accuracy_without"] <= 1
    assert 0 <= summary["accuracy_with"] <= 1
    assert summary["steps"] == QUICK["downstream_steps"]
    differ = (summary["became_right"] - summary["became_wrong"]) / summary["test_rows"]
    assert summary["accuracy_with"] - summary["accuracy_without"] == pytest.approx(differ, abs=2e-4)
    assert 0 < summary["p_value"] <= 1
    json.dumps(summary)


@pytest.mark.parametrize(("better", "worse", "p"), [(12, 6, 0.2379), (6, 12, 0.2379), (0, 0, 1.0), (0, 6, 0.0312)])
def test_two_models_on_the_same_rows_are_compared_by_those_on_which_they_differ(better, worse, p):
    without, with_rows = np.zeros(120, dtype=bool), np.zeros(120, dtype=bool)
    without[:60] = with_rows[:60] = True
    with_rows[60 : 60 + better] = True
    with_rows[:worse] = False
    assert paired(without, with_rows) == {"became_right": better, "became_wrong": worse, "p_value": p}


def test_what_an_earlier_version_measured_without_it_is_measured_again(
    train_file, tmp_path, config, monkeypatch
):  # fmt: skip
    own, given = config(test=str(train_file)), (str(train_file), str(tmp_path / "out.jsonl"))
    with monkeypatch.context() as patch:
        before = {"accuracy_with": 0.5, "accuracy_without": 0.5, "test_rows": 18}
        patch.setattr("inversedmixup.job.run_downstream", lambda *_: before)
        assert "p_value" not in run_augment_job(*given, own).summary
    assert "p_value" in run_augment_job(*given, own).summary


def test_a_head_alone_takes_no_steps(train_file, tmp_path, config):
    solved = config(test=str(train_file), train_encoder="head")
    assert run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), solved).summary["steps"] == 0


def test_a_test_label_unseen_in_training_is_refused_by_name(train_file, tmp_path, config):
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "hello there", "label": "martian"}])
    with pytest.raises(InputError, match="martian"):
        run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config(test=str(test)))


def test_originals_are_repeated_only_when_asked(train_file, tmp_path, config):
    out = tmp_path / "out.jsonl"
    run_augment_job(str(train_file), str(out), config())
    assert not {row["text"] for row in rows_of(out)} & set(SENTENCES)
    run_augment_job(str(train_file), str(out), config(include_original=True))
    assert [row["text"] for row in rows_of(out)][: len(SENTENCES)] == SENTENCES


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_output_formats_hold_the_same_rows(train_file, tmp_path, config, suffix):
    import pandas as pd

    run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config())
    run_augment_job(str(train_file), str(tmp_path / f"table.{suffix}"), config())
    read = pd.read_csv if suffix == "csv" else pd.read_parquet
    table = read(tmp_path / f"table.{suffix}")
    assert table["text"].tolist() == [row["text"] for row in rows_of(tmp_path / "out.jsonl")]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_row_file_appears_whole_or_not_at_all(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    with pytest.raises(KeyError), RowFile(path, ["a", "b"]) as file:
        file.write(dataclasses.asdict(a_row(0)) | {}["broken"])
    assert list(tmp_path.iterdir()) == []
    many = RowFile.BATCH + 3 if suffix == "parquet" else 3
    with RowFile(path, ["a", "b"]) as file:
        for number in range(many):
            file.write(dataclasses.asdict(a_row(number)))
    assert len(list(iter_records(path))) == many


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), max_size=30))
def test_the_tally_equals_numbers_over_held_rows(seen):
    tally = Tally()
    for lam, realised, kept in seen:
        row = dataclasses.replace(a_row(0), lam=lam, lam_realised=realised, intruded=kept, kept=kept)
        tally.add(row if kept else dataclasses.replace(row, reject_reason="duplicate"))
    kept_rows = np.array([(lam, realised) for lam, realised, kept in seen if kept])
    summary = tally.summary()
    assert (summary["tried"], summary["kept"]) == (len(seen), len(kept_rows))
    assert sum(summary["rejected"].values()) == len(seen) - len(kept_rows)
    if len(kept_rows) >= 3 and kept_rows.std(axis=0).min() > 1e-3:
        assert summary["lam_correlation"] == pytest.approx(np.corrcoef(kept_rows.T)[0, 1], abs=1e-3)


def test_intrusion_of_the_rows_kept_is_told_apart_from_that_of_the_rows_tried():
    tally = Tally()
    for number in range(39):  # as 30 kept of 39, where the gate took just the intruded ones away
        out = {"intruded": True, "kept": False, "reject_reason": "label_contradicted"} if number >= 30 else {}
        tally.add(dataclasses.replace(a_row(number), **out))
    summary = tally.summary()
    assert (summary["intrusion_rate_kept"], summary["intrusion_rate"]) == (0, pytest.approx(9 / 39, abs=1e-3))
    assert Tally().summary()["intrusion_rate_kept"] is None


def test_near_copies_among_the_first_rows_are_counted_in_the_summary(train_file, tmp_path, config, monkeypatch):
    words = itertools.count()

    def copying(*given):
        written = write_mixes(*given)
        return dataclasses.replace(written, texts=[f"{SENTENCES[0]} {next(words)}" for _ in written.texts])

    monkeypatch.setattr("inversedmixup.report.evidence.SEARCHED", 5)
    monkeypatch.setattr("inversedmixup.stages.augment.write_mixes", copying)
    summary = run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config(max_parent_overlap=2.0)).summary
    assert summary["kept"] > 5
    assert (summary["near_copies"], summary["near_copies_searched"]) == (5, 5)


def a_row(number):
    return Row(
        f"aug-{number}", f"text {number}", "a", {"a": 0.7, "b": 0.3}, ["0", "1"], 0.7, 0.6, 0.9, -3.0,
        {"soft": "a", "task": "b", "llm": None}, False, 0,
    )  # fmt: skip


def test_stage_two_that_spoils_reconstruction_is_an_error_that_says_what_to_change(train_file, tmp_path, config):
    with pytest.raises(InputError, match=r"token F1 fell .* --encoder-learning-rate"):
        run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config(tolerance=-2.0))


def test_a_full_disk_is_one_clear_line(train_file, tmp_path, config, monkeypatch):
    import errno

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "shard")

    monkeypatch.setattr("inversedmixup.runs.RunFolder.write", full)
    with pytest.raises(InputError, match=r"No space left on device.*finished work is kept"):
        run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config())


def test_the_input_is_never_overwritten(train_file, tmp_path, config):
    before = train_file.read_bytes()
    with pytest.raises(InputError, match="would replace the input"):
        run_augment_job(str(train_file), str(train_file), config())
    with pytest.raises(InputError, match="would replace the input"):
        run_augment_job(str(train_file), str(tmp_path / "o.jsonl"), config(unlabelled=str(tmp_path / "o.jsonl")))
    assert train_file.read_bytes() == before


def test_what_can_be_refused_is_refused_before_the_run_is_recorded(train_file, tmp_path, config):
    with pytest.raises(InputError, match="lam"):
        run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config(lam="beta"))
    assert run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config()).summary["kept"]


def test_two_rows_of_one_id_are_shown():
    rows = [Example("7", "the cat sat", "a"), Example("8", "a dog ran", "b"), Example("7", "one bird", "b")]
    with pytest.raises(InputError, match=r"holds '7' twice \(rows 'the cat sat' and 'one bird'\)"):
        check_rows(rows, AugmentConfig(labels="soft"))


def test_a_changed_pair_is_a_changed_run(train_file, tmp_path, config, tiny_pair):
    folder = tmp_path / "pair"
    tiny_pair.save(folder, encoder=False)
    run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config(pair=str(folder)))
    tiny_pair.adaptor.net[0].weight.data.mul_(2)
    tiny_pair.save(folder, encoder=False)
    with pytest.raises(
        InputError, match=r"the files of the pair or its models, --unlabelled or --descriptions have changed"
    ):
        run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config(pair=str(folder)))


def test_files_that_lie_elsewhere_now_are_those_of_the_run(train_file, tmp_path, config, tiny_pair_folder, monkeypatch):
    (tmp_path / "more.txt").write_text("one more sentence\n", encoding="utf-8")
    (tmp_path / "d.yaml").write_text("refund: money back\n", encoding="utf-8")
    names = {"unlabelled": "more.txt", "descriptions": "d.yaml"}
    out = str(tmp_path / "out.jsonl")
    run_augment_job(str(train_file), out, config(**{name: str(tmp_path / file) for name, file in names.items()}))
    shutil.copytree(tiny_pair_folder, tmp_path / "moved" / "pair")
    for file in names.values():
        (tmp_path / file).rename(tmp_path / "moved" / file)
    monkeypatch.chdir(tmp_path / "moved")
    monkeypatch.setattr("inversedmixup.stages.augment.RowWriter.written", None)  # nothing is written
    monkeypatch.setattr("inversedmixup.stages.warmup.run_warmup", None)
    run_augment_job(str(train_file), out, config(pair="pair", **names))
    assert read_run(out).settings["places"] == {"pair": "pair", **names}
    with pytest.raises(InputError, match="the files of the pair or its models"):
        run_augment_job(str(train_file), out, config(pair="pair", unlabelled=names["unlabelled"]))


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_other_weights_under_the_same_path_are_another_run(train_file, tmp_path, config, tiny_pair, part):
    folder = tmp_path / part
    shutil.copytree(getattr(tiny_pair.config, part), folder)
    given = config(**{part: str(folder)})
    run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), given)
    before = files_digest(given)
    assert part in before
    weights = next(folder.rglob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert files_digest(given) != before
    with pytest.raises(InputError, match=r"the files of the pair or its models"):
        run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), given)


def test_a_large_file_is_looked_at_all_over(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "BLOCK", 8)
    monkeypatch.setattr(identity, "BLOCKS", 5)
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "weights.bin"
    (tmp_path / "model" / ".cache" / "notes").mkdir(parents=True)
    found = set()
    for place in [*range(8), *range(992, 1000), 500]:
        data = bytearray(1000)
        data[place] = 1
        file.write_bytes(data)
        (tmp_path / "model" / ".cache" / "notes" / "times").write_text(str(place % 2))  # no part of the model
        found.add(identity.model_digest(tmp_path / "model"))
    assert len(found) == 17


def test_files_of_a_run_beside_the_pair_change_nothing(train_file, tmp_path, config, tiny_pair):
    tiny_pair.save(tmp_path / "pair", encoder=False)
    (tmp_path / "pair" / "embeddings").mkdir()
    (tmp_path / "pair" / "embeddings" / "kept.safetensors").write_bytes(b"0")
    options = config(pair=str(tmp_path / "pair"))
    run_augment_job(str(train_file), str(tmp_path / "o.jsonl"), options)
    (tmp_path / "pair" / "embeddings" / "kept.safetensors").unlink()
    run_augment_job(str(train_file), str(tmp_path / "o.jsonl"), options)


def test_the_correlation_of_a_constant_ratio_is_unknown_however_many_rows():
    tally, row = Tally(), dataclasses.replace(a_row(0), lam=0.7)
    for number in range(20_000):
        tally.add(dataclasses.replace(row, lam_realised=number % 7 / 7))
    assert tally.lam_correlation() is None


@pytest.mark.parametrize(
    "options",
    [{"shots": 0}, {"seed": -1}, {"data_seed": -1}, {"candidates": 0}, {"top_p": 0.0}, {"augmented_weight": -1.0},
     {"n": 0}, {"batch_size": 0}, {"temperature": -1.0}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_by_name(train_file, tmp_path, config, options):
    with pytest.raises(InputError, match=next(iter(options))):
        run_augment_job(str(train_file), str(tmp_path / "out.jsonl"), config(**options))


def test_at_half_and_half_the_first_parent_leads(train_file, tmp_path, config, examples):
    out = tmp_path / "out.jsonl"
    run_augment_job(str(train_file), str(out), config(lam="0.5", pairs="cross-class"))
    assert all(row["label"] == LABELS[int(row["parents"][0])] for row in rows_of(out))


def test_augmented_rows_of_no_weight_change_nothing(train_file, tmp_path, config):
    summary = run_augment_job(
        str(train_file), str(tmp_path / "o.jsonl"), config(test=str(train_file), augmented_weight=0.0)
    ).summary
    assert summary["accuracy_with"] > 0


# ---- judges ------------------------------------------------------------------------------------------------------


def test_a_judge_that_is_worse_is_refused_with_the_run_kept_and_forced_with_a_flag(
    train_file, tmp_path, config, capsys
):
    from inversedmixup.cli import main

    arguments = ["augment", str(train_file), "-o", str(tmp_path / "out.jsonl"), "--pair", config().pair]
    arguments += [part for name, value in QUICK.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert main([*arguments, "--labels", "llm"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--labels llm: judge llm is right on" in said
    assert "use --labels soft --pairs same-class, --labels drop:llm or another judge (with --overwrite or" in said
    assert not (tmp_path / "out.jsonl").exists()
    shard = tmp_path / "out.jsonl.run" / "shards" / "000000.json"
    before = shard.read_bytes()
    # what the line says works, and nothing is made again
    assert main([*arguments, "--labels", "llm", "--force-judge"]) == 0
    assert shard.read_bytes() == before
    assert (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("job", ["augment", "label"])
def test_classes_that_the_llm_cannot_tell_apart_are_refused_before_anything_is_fitted(
    job, train_file, tmp_path, config, tiny_pair_folder, monkeypatch
):
    train = tmp_path / "two.jsonl"
    write_jsonl(train, [{"text": text, "label": "好坏"[at % 2]} for at, text in enumerate(SENTENCES)])
    monkeypatch.setattr("inversedmixup.models.task_model.TaskModel.fit", lambda *_, **__: pytest.fail("fitted"))
    settings, out = {"pair": tiny_pair_folder, "labels": "hard:llm"}, tmp_path / "out.jsonl"
    with pytest.raises(InputError, match=r"'坏' and '好' are the same to LLM"):
        (
            run_augment_job(train, out, config(**settings))
            if job == "augment"
            else run_label_job(train, train_file, out, build(LabelJobConfig, settings))
        )


def test_the_task_model_is_cross_validated_before_it_labels(train_file, tmp_path, config):
    out = tmp_path / "out.jsonl"
    options = {"labels": "mitigated:task", "pairs": "cross-class", "accept_labels": "any", "force_judge": True}
    judge = run_augment_job(str(train_file), str(out), config(**options)).summary["judge"]
    assert (judge["name"], judge["n"]) == ("task", len(SENTENCES))
    for row in rows_of(out):
        assert row["label"] == (row["labels"]["task"] if row["intruded"] else row["labels"]["soft"])
        assert (max(row["label_probs"].values()) == 1.0) or not row["intruded"]


def test_contradicted_rows_are_dropped(train_file, tmp_path, config):
    out = tmp_path / "out.jsonl"
    options = {"labels": "drop:task", "pairs": "cross-class", "accept_labels": "any"}
    summary = run_augment_job(str(train_file), str(out), config(**options)).summary
    assert not any(row["intruded"] for row in rows_of(out))
    dropped = [row for row in rows_of(tmp_path / "out.rejected.jsonl") if row["reject_reason"] == "intruded"]
    assert len(dropped) == summary["rejected"].get("intruded", 0)
    assert all(row["intruded"] for row in dropped)


def test_what_an_endpoint_judged_before_it_broke_is_not_asked_again(train_file, tmp_path, config, monkeypatch):
    from inversedmixup.judges import api

    monkeypatch.setattr(api, "RETRIES", 0)
    seen, broken = [], True

    def answer(body):
        seen.append(text_of(body))
        return (503, "down") if broken and len(seen) > 30 else (200, '{"label": "refund"}')

    out = tmp_path / "out.jsonl"
    with serving(answer) as endpoint:
        options = {
            "labels": "api",
            "api_model": "m",
            "api_url": endpoint.url,
            "force_judge": True,
            "accept_labels": "any",
        }
        with pytest.raises(InputError, match="what it judged is kept"):
            run_augment_job(str(train_file), str(out), config(**options))
        broken, paid = False, set(seen[:30])
        seen.clear()
        run_augment_job(str(train_file), str(out), config(**options))
    assert seen
    assert not paid & set(seen)
    assert {row["label"] for row in rows_of(out)} <= {"refund"}
    # answers outlive even a run that is thrown away
    memory = tmp_path / "out.jsonl.run" / "judgements.jsonl"
    kept = memory.read_bytes()
    RunFolder(memory.parent, {"other": "settings"}, overwrite=True)
    assert memory.read_bytes() == kept


def test_a_judge_that_decides_is_not_overruled_by_the_task_model():
    assert build(AugmentConfig, {}).accepted == "any"
    assert build(AugmentConfig, {"labels": "soft"}).accepted == "agree"
    assert build(AugmentConfig, {"labels": "drop:llm"}).accepted == "any"
    assert build(AugmentConfig, {"labels": "hard:task", "accept_labels": "agree"}).accepted == "agree"


def test_a_changed_file_of_unlabelled_texts_is_a_changed_run_wherever_it_lies(tmp_path, monkeypatch, config):
    monkeypatch.setenv("HOME", str(tmp_path))
    digests = []
    for text in ("one", "two"):
        write_jsonl(tmp_path / "more.jsonl", [{"text": text}])
        digests.append(files_digest(config(unlabelled="~/more.jsonl"))["unlabelled"])
    assert len(set(digests)) == 2


def test_a_task_model_that_diverges_is_one_line(train_file, tmp_path, config):
    with pytest.raises(InputError, match="the task model diverged in training; lower --encoder-learning-rate"):
        run_augment_job(
            str(train_file), str(tmp_path / "o.jsonl"),
            config(encoder_learning_rate=5e10, task_steps=20, train_encoder="full"),
        )  # fmt: skip


def test_an_output_folder_that_vanishes_is_one_line(train_file, tmp_path, config, monkeypatch):
    write = RowFile.write

    def gone(self, row):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        write(self, row)

    monkeypatch.setattr(RowFile, "write", gone)
    with pytest.raises(InputError, match="cannot be written"):
        run_augment_job(str(train_file), str(tmp_path / "out" / "o.jsonl"), config())


def test_classes_of_one_row_get_no_row_within_the_class_and_that_is_told(tmp_path, examples, config, caplog):
    rows = [{"text": e.text, "label": e.label} for e in examples] + [{"text": "a box came", "label": "solo"}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    run_augment_job(str(tmp_path / "train.jsonl"), str(tmp_path / "o.jsonl"), config(pairs="same-class", labels="soft"))
    assert "nothing is written for classes of one row (solo)" in caplog.text
