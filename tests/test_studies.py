import dataclasses
import gc
import json
import shutil
import weakref
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from conftest import write_jsonl
from inversedmixup.baselines import Split
from inversedmixup.cli import main as command_line
from inversedmixup.errors import InputError
from inversedmixup.judges.prompt import Prompt
from inversedmixup.models.pair import Pair
from inversedmixup.models.word_head import WordHead
from inversedmixup.schema import Example
from inversedmixup.stages.align import AlignConfig
from studies import amounts, architectures, common, compare, evidence, labels, merge, misalignment, probes, retention
from studies.families import Size
from tiny import LABELS, SENTENCES


@pytest.fixture
def data(tmp_path):
    rows = [{"text": text, "label": label} for text, label in zip(SENTENCES, LABELS, strict=True)]
    (tmp_path / "toy").mkdir()
    for part in ("train", "test"):
        write_jsonl(tmp_path / "toy" / f"{part}.jsonl", rows)
    return tmp_path


@pytest.fixture
def shipped(tiny_pair_folder, monkeypatch):
    """The tiny pair in the place of the one that ships."""
    monkeypatch.setattr("inversedmixup.models.pair.default_pair_folder", lambda: Path(tiny_pair_folder))
    return Pair.load()


@pytest.fixture
def unseen(data):
    """The toy's test rows are not its training rows, of which none may be measured on."""
    lines = (data / "toy" / "test.jsonl").read_text().splitlines()
    (data / "toy" / "test.jsonl").write_text(
        "".join(line.replace('"text": "', '"text": "so ') + "\n" for line in lines)
    )
    return data


def test_label_policies_are_compared_on_the_texts_of_the_evidence(unseen, shipped, tmp_path, monkeypatch, capsys):
    (tmp_path / "study.yaml").write_text("n: 6\ntries: 1\ncandidates: 1\njudge_steps: 2\ndownstream_steps: 5\n")

    def study(module, *more):
        where = [str(unseen), "-o", str(tmp_path / "out"), "--config", str(tmp_path / "study.yaml"), "--sets", "toy"]
        monkeypatch.setattr("sys.argv", ["study", *where, "--draws", "3", *more])
        module.main()

    study(evidence, "--splits", "1", "--methods", "inversed-soft,inversed-cross-pooled", "--reference")
    known = {run["method"]: run["accuracy"] for run in map(json.loads, (tmp_path / "out/runs.jsonl").open())}
    with monkeypatch.context() as patch:
        patch.setattr("inversedmixup.stages.augment.RowWriter.written", None)  # its texts are there
        study(labels, "--splits", "1")
    runs = {run["method"]: run for run in map(json.loads, (tmp_path / "out/labels/runs.jsonl").open())}
    assert list(runs) == ["equal-steps", *labels.POLICIES]
    for policy, method in (("interpolated", "inversed-soft"), ("hard reference", evidence.REFERENCE)):
        assert runs[policy]["accuracy"] == known[method]
    assert runs["equal-steps"]["accuracy"] == known["equal-steps"]
    assert runs["hard reference"]["label_error"] == runs["drop reference"]["label_error"] == 0
    assert runs["interpolated"]["coverage"] == 1
    rows = json.loads((tmp_path / "out/labels/labels.json").read_text())
    assert {row.get("judge") or row["policy"] for row in rows} == {*labels.JUDGES, *labels.POLICIES}
    own = {row["judge"]: row["over_sets"] for row in rows if "judge" in row}
    assert own["reference"] == {"precision": 1, "coverage": 1}
    assert "frozen, 3: precision / coverage" in capsys.readouterr().out
    with monkeypatch.context() as patch:  # a cell of an earlier study is not made again
        patch.setattr(labels, "cell", lambda *_: pytest.fail("made again"))
        finished = (tmp_path / "out/labels/cells.jsonl").rename(tmp_path / "cells.jsonl")
        shutil.rmtree(tmp_path / "out/labels")
        study(labels, "--splits", "1", "--finished", str(finished))
    assert (tmp_path / "out/labels/cells.jsonl").read_bytes() == finished.read_bytes()
    monkeypatch.setattr(labels, "POLICIES", {name: labels.POLICIES[name] for name in ("interpolated", "pool")})
    study(labels, "--splits", "2", "--first-split", "1")
    assert {run["split"] for run in map(json.loads, (tmp_path / "out/labels/runs.jsonl").open())} == {1}


def test_fewer_pairs_are_the_first_of_the_most(unseen, shipped, tmp_path, monkeypatch):
    def study(module, folder, n, *more):
        settings = tmp_path / "study.yaml"
        settings.write_text(f"{{n: {n}, tries: 1, candidates: 1, judge_steps: 2, augmented_weight: 0.25}}")
        where = [str(unseen), "-o", str(tmp_path / folder), "--config", str(settings), "--sets", "toy"]
        monkeypatch.setattr("sys.argv", ["study", *where, "--draws", "3", "--splits", "1", *more])
        module.main()
        file = tmp_path / folder / ("amounts" if module is amounts else "") / "runs.jsonl"
        return {run["method"]: run for run in map(json.loads, file.open())}

    methods = "inversed-cross-pooled,inversed-reconstruction-pooled,generate-pooled"
    few = study(evidence, "few", 32, "--methods", methods)
    asked = ["--pairs", "0", "32", "64", "--weights", "0.25", "0.5"]
    asked += ["--sources", "mixed", "rewritten", "prompted"]
    many = study(amounts, "many", 1, *asked)
    kinds = ("copies", "mixed", "rewritten", "prompted")
    names = [f"{kind} {pairs} × {w}" for kind in kinds for pairs in (0, 32, 64) for w in (0.25, 0.5)]
    assert list(many) == ["equal-steps", *names]
    for name, method in (
        ("equal-steps", "equal-steps"), ("mixed 32 × 0.25", "inversed-cross-pooled"),
        ("rewritten 32 × 0.25", "inversed-reconstruction-pooled"), ("prompted 32 × 0.25", "generate-pooled"),
    ):  # fmt: skip
        assert {key: many[name][key] for key in ("accuracy", "nll", "added")} == {
            key: few[method][key] for key in ("accuracy", "nll", "added")
        }
    assert many["mixed 0 × 0.5"]["nll"] == many["equal-steps"]["nll"]
    assert many["copies 64 × 0.5"]["added"] == 64 >= many["mixed 64 × 0.5"]["added"] > many["mixed 32 × 0.5"]["added"]
    monkeypatch.setattr(amounts, "cell", lambda *_: pytest.fail("made again"))
    asked += ["--plot", str(tmp_path / "amounts.png")]
    assert study(amounts, "more", 1, *asked, "--finished", str(tmp_path / "many/amounts/runs.jsonl")) == many
    assert (tmp_path / "amounts.png").stat().st_size > 1000


def test_a_finished_cell_is_not_made_again(tmp_path):
    made = []

    def make(*one):
        made.append(one)
        return {"cell": list(one)}

    for _ in range(2):
        assert common.run_grid([("a", 1), ("b", 2)], make, common.study_run(tmp_path, {"n": 1}, [None])) == [
            {"cell": ["a", 1]},
            {"cell": ["b", 2]},
        ]
    assert made == [("a", 1), ("b", 2)]
    with pytest.raises(InputError, match="other settings"):
        common.study_run(tmp_path, {"n": 2}, [None])


def test_a_study_of_many_encoders_holds_one(shipped):
    rows, encoder = [Example("0", "a text", "a")], Pair.load().task_model
    assert common.encode(encoder, rows) is common.encode(encoder, rows)
    held = weakref.ref(encoder)
    del encoder
    common.encode(shipped.task_model, rows)
    gc.collect()
    assert held() is None


def test_an_adaptor_is_degraded_as_told(tiny_pair):
    h = torch.nn.functional.normalize(torch.randn(5, 24), dim=1)
    for degrees in (30, 90):
        turned = misalignment.rotation(degrees, 0)(h)
        assert torch.allclose(turned.norm(dim=1), torch.ones(5), atol=1e-5)
        assert torch.allclose((turned * h).sum(1), torch.full((5,), float(np.cos(np.deg2rad(degrees)))), atol=1e-4)
    added = misalignment.noise(0.5, 0)(h) - h
    assert torch.allclose(added.norm(dim=1), torch.full((5,), 0.5), atol=1e-5)


@pytest.mark.parametrize("condition", ["as shipped", "noise 0.5", "rotation 30", "stage 2 not refined", "pair"])
def test_every_condition_is_measured(data, shipped, tiny_pair_folder, condition, tmp_path):
    condition = f"pair {tiny_pair_folder}" if condition == "pair" else condition
    record = misalignment.cell(data, 4, "toy", 4, 0, condition)
    assert 0 <= record["intrusion"] <= 1
    assert record["condition"] == condition.replace(str(Path(tiny_pair_folder).parent) + "/", "")
    assert json.loads(json.dumps(record)) == record
    rows = misalignment.summarise([record])
    misalignment.plot(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_every_condition_gains_on_the_encoder_as_it_ships(data, shipped, monkeypatch):
    """After stage 2 the pair's own encoder knows the labelled rows by heart, and no text adds as much to it."""
    measured = []
    monkeypatch.setattr(misalignment, "gained_accuracy", lambda encoder, *_: measured.append(encoder) or 0.0)
    for condition in ("as shipped", "stage 2 not refined"):
        misalignment.cell(data, 4, "toy", 4, 0, condition)
    assert {id(encoder) for encoder in measured} == {id(misalignment.reference(data / "toy" / "train.jsonl")[0])}


@pytest.fixture(params=[False, True], ids=["llm alone", "word head"])
def with_or_without_words(request, tiny_pair, tmp_path, monkeypatch):
    """A tiny pair, as it is and with a word head, in the place of the one that ships."""
    if request.param:
        llm = tiny_pair.llm
        ids = [set(row) - llm.wordless() for row in llm.targets(SENTENCES, 64)]
        tiny_pair.word_head = WordHead.for_texts(
            ids, embedding_dim=tiny_pair.task_model.dim, vocabulary=llm.vocabulary, seed=0
        )
    tiny_pair.save(tmp_path / "pair", encoder=False)
    monkeypatch.setattr("inversedmixup.models.pair.default_pair_folder", lambda: tmp_path / "pair")
    return Pair.load()


def test_label_retention_by_stage_and_choice(data, with_or_without_words, monkeypatch):
    quick = {
        stage: dataclasses.replace(config, task_steps=2, follow_steps=min(config.follow_steps, 1), refine_steps=0)
        for stage, config in retention.STAGES.items()
    }
    monkeypatch.setattr(retention, "STAGES", quick)
    record = retention.cell(with_or_without_words, data, "toy", 4, 0, n=5, candidates=2)
    assert list(record["stages"]) == list(quick)
    rows = retention.summarise([record, {**record, "seed": 1}])
    corrected = [row for row in rows if row["choice"].startswith("corrected")]
    assert bool(corrected) == (with_or_without_words.word_head is not None)  # nothing else tells what a text lacks
    assert len(rows) == len(quick) * 2 * (1 + bool(corrected) + len(retention.AGREEMENT))
    for row in rows:
        assert row["seeds"] == 2
        assert 0 <= row["retention"] <= 1
        assert 0 <= row["own_retention"] <= 1
        assert (row["token_f1"] is None) == (row["what"] == "cross-class")
    by_cosine = [row["cosine"] for row in rows if row["choice"] == "best of 2, class agreement × 0"]
    by_class = [row["cosine"] for row in rows if row["choice"] == "best of 2, class agreement × 1"]
    assert all(one >= two - 1e-4 for one, two in zip(by_cosine, by_class, strict=True))


def test_an_encoder_that_stands_still_is_worth_what_it_was(data, tiny_pair):
    model = tiny_pair.task_model
    record = probes.cell(model, model, data, "toy", 12, 18)
    assert (record["train"], record["test"]) == (12, 18)
    assert record["original"] == record["moved"]
    assert record["agreement"] == pytest.approx(1)
    whole = probes.cell(model, model, data, "toy", 18, 18)  # the test rows are the training rows
    assert whole["original"]["retrieval"] == 1


def test_a_study_goes_on_from_the_runs_of_an_earlier_one(unseen, shipped, tmp_path, monkeypatch):
    def study(folder, *more):
        command = ["evidence", str(unseen), "-o", str(tmp_path / folder), "--sets", "toy", "--draws", "3", *more]
        monkeypatch.setattr("sys.argv", [*command, "--methods", "duplicate"])
        evidence.main()
        return [json.loads(line) for line in (tmp_path / folder / "runs.jsonl").read_text().splitlines()]

    first = study("first", "--splits", "1")
    told = [{**record, "accuracy": 0.125} for record in first]
    (tmp_path / "told.jsonl").write_text("".join(json.dumps(record) + "\n" for record in told))
    second = study("second", "--splits", "2", "--finished", str(tmp_path / "told.jsonl"), "--reference")
    again = [record for record in second if record["split"] == 0]
    assert [record for record in again if record["method"] != evidence.REFERENCE] == told
    methods = ["duplicate", "equal-steps", evidence.REFERENCE]
    assert [record["method"] for record in second] == methods * 2


def test_two_processes_share_a_grid(unseen, shipped, tmp_path, monkeypatch):
    def study(folder, *more):
        command = ["evidence", str(unseen), "-o", str(tmp_path / folder), "--sets", "toy", "--draws", "3", *more]
        monkeypatch.setattr("sys.argv", [*command, "--methods", "duplicate"])
        evidence.main()
        return tmp_path / folder / "runs.jsonl"

    def told(file):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        return [{**record, "seconds": 0} for record in records]

    whole = study("whole", "--splits", "3")
    parts = study("a", "--splits", "2"), study("b", "--splits", "3", "--first-split", "1")
    assert {record["split"] for record in told(parts[1])} == {1, 2}
    for file in parts:  # split 1 is in both: what it took is all that tells them apart
        file.write_text("".join(json.dumps(record) + "\n" for record in told(file)))
    monkeypatch.setattr("sys.argv", ["merge", *map(str, parts), "-o", str(tmp_path / "both")])
    merge.main()
    assert told(tmp_path / "both" / "runs.jsonl") == told(whole)
    assert (tmp_path / "both" / "summary.json").read_bytes() == (tmp_path / "whole" / "summary.json").read_bytes()
    parts[0].write_text(parts[0].read_text().replace('"accuracy": ', '"accuracy": 1'))
    with pytest.raises(InputError, match=r"toy / 3 / .* / 1 / .* differ"):
        merge.main()


def test_training_rows_that_were_not_drawn_are_labelled_as_if_nobody_had(unseen, shipped, tmp_path, monkeypatch):
    settings = tmp_path / "quick.yaml"
    settings.write_text("{n: 4, judge_steps: 2, task_steps: 2}")
    command = ["evidence", str(unseen), "-o", str(tmp_path / "out"), "--sets", "toy", "--draws", "3", "--splits", "1"]
    monkeypatch.setattr("sys.argv", [*command, "--config", str(settings), "--methods", "equal-steps", "--unlabelled"])
    heard = []
    label = Split.labelled
    monkeypatch.setattr(Split, "labelled", lambda split, texts: heard.append((split, texts)) or label(split, texts))
    evidence.main()
    (split, texts), record = heard[0], json.loads((tmp_path / "out" / "runs.jsonl").read_text().splitlines()[-1])
    assert (record["method"], record["added"]) == (evidence.PSEUDO, 4)
    assert set(texts) <= set(SENTENCES) - {row.text for row in split.examples}


def test_methods_with_described_classes_have_a_name_of_their_own(unseen, shipped, tmp_path, monkeypatch):
    (tmp_path / "quick.yaml").write_text("{n: 4, judge_steps: 2, task_steps: 2}")
    (tmp_path / "toy.yaml").write_text("refund: my\n")
    asked, init = set(), Prompt.__init__
    monkeypatch.setattr(
        Prompt, "__init__", lambda self, llm, names, **how: asked.add(tuple(names)) or init(self, llm, names, **how)
    )
    monkeypatch.setattr("sys.argv", [
        "evidence", str(unseen), "-o", str(tmp_path / "out"), "--sets", "toy", "--draws", "3", "--splits", "1",
        "--config", str(tmp_path / "quick.yaml"), "--methods", "duplicate,descriptions,inversed-cross-pooled",
        "--descriptions", str(tmp_path),
    ])  # fmt: skip
    evidence.main()
    records = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert [record["method"] for record in records] == [
        "descriptions",
        "equal-steps",
        "inversed-cross-pooled-described",
    ]
    assert asked == {("account", "delivery", "my")}


def test_what_a_study_cannot_use_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs.jsonl").write_text("")
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path / "runs.jsonl"), "ours", "theirs"])
    with pytest.raises(SystemExit, match="2"):
        common.run(compare.main)
    assert capsys.readouterr().err == "error: no split of 10 shots, frozen, has runs of both ours and theirs\n"


def test_methods_are_compared_on_the_splits_that_both_have(tmp_path, monkeypatch, capsys):
    def run(name, split, method, accuracy):
        place = {"set": name, "shots": "10", "protocol": "frozen", "split": split, "seed": split, "method": method}
        return {**place, "accuracy": accuracy, "macro_f1": accuracy, "ece": 0.1, "nll": 0.5}

    records = [
        run(name, split, method, 0.5 + 0.1 * (method == "ours") + 0.01 * split + 0.02 * at)
        for at, name in enumerate(("x", "y", "z"))
        for split in range(4)
        for method in ("ours", "theirs")
        if (name, split, method) != ("z", 3, "theirs")
    ]
    found = compare.compare(records, "ours", "theirs")
    assert (found["splits"], found["sets"]["z"]["splits"]) == (11, 3)
    assert found["difference"] == pytest.approx(0.1)
    assert found["interval"] == pytest.approx((0.1, 0.1))
    assert compare.compare(records, "theirs", "ours")["difference"] == pytest.approx(-0.1)
    with pytest.raises(InputError, match="no split of 50 shots"):
        compare.compare(records, "ours", "theirs", shots="50")
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path / "runs.jsonl"), "ours", "theirs"])
    compare.main()
    assert "+10.0" in capsys.readouterr().out


def test_a_kind_of_llm_learns_from_scratch_and_is_measured(data, tiny_encoder, monkeypatch, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("train-0.parquet", "validation.parquet"):
        pq.write_table(pa.table({"text": SENTENCES}), corpus / name)
    monkeypatch.setattr(architectures, "AlignConfig", partial(AlignConfig, encoder=tiny_encoder))
    plan = architectures.Plan(Size(32, 1, 2, 300), minutes=0.01, rows=4, walks=1, set="toy", seeds=2, n=4)
    record = architectures.cell("bert2bert", corpus, data, tmp_path / "out", plan)
    assert record["sentences"] > 0
    assert len(record["gains"]) == 2
    assert record == architectures.cell("bert2bert", corpus, data, tmp_path / "out", plan)  # the training is finished
    line = [str(cell) for column in architectures.table([record]).columns for cell in column.cells]
    assert line[0] == "bert2bert"
    with pytest.raises(InputError, match=r"train\*\.parquet"):
        architectures.corpus_files(tmp_path)


def test_the_papers_settings_run_through(tiny_encoder, tiny_llm, train_file, corpus_file, tmp_path):
    settings, pair = Path(__file__).parents[1] / "studies" / "paper", str(tmp_path / "pair")
    few = [("--hidden", "8"), ("--sentences", "8"), ("--batch-size", "4"), ("--validation-rows", "2")]
    few += [("--encoder", tiny_encoder), ("--llm", tiny_llm), ("--compile", "never")]
    assert (
        command_line(["align", str(corpus_file), "-o", pair, "--config", str(settings / "align.yaml"), *chain(*few)])
        == 0
    )
    out = tmp_path / "more.jsonl"
    less = ["--task-steps", "2", "--refine-steps", "1", "--max-tokens", "8", "--n", "6", "--tolerance", "1"]
    given = ["augment", str(train_file), "-o", str(out), "--pair", pair, "--config", str(settings / "augment.yaml")]
    assert command_line([*given, *less]) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows
    for row in rows:  # the interpolated label, of any pair and ratio
        assert sorted(row["label_probs"].values())[-1] in (1, pytest.approx(max(row["lam"], 1 - row["lam"]), abs=1e-4))
    record = json.loads((tmp_path / "pair" / "pair.json").read_text(encoding="utf-8"))
    assert (record["adaptor"]["soft_tokens"], record["prompt"]) == (
        1,
        "Given the embedding {soft}, generate the original sentence: ",
    )
