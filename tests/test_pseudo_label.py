"""`inversedmixup label`: sentences that somebody has, labelled by the judges."""

import dataclasses
import json

import datasets
import pytest

from conftest import write_jsonl
from inversedmixup import InputError, InversedMixup, job, label_job
from inversedmixup.augment_job import AugmentJobConfig, run_augment_job
from inversedmixup.baselines import Split
from inversedmixup.baselines.pseudo_label import of_texts
from inversedmixup.benchmark import BenchmarkConfig
from inversedmixup.cli import main
from inversedmixup.data import iter_texts, iter_unlabelled, read_examples
from inversedmixup.files import iter_records
from inversedmixup.label_job import LabelJobConfig, run_label_job
from inversedmixup.options import build
from inversedmixup.report.results import is_run
from inversedmixup.stages import pseudo_label
from inversedmixup.stages.trust import check_alone
from inversedmixup.stages.warmup import fit_task_model
from test_augment_job import QUICK
from test_cli import refused
from tiny import LABELS, SENTENCES

TEXTS = [
    "the box is late", "refund my money please", "my login fails", "where is the courier", "i want money",
    "reset the account mail", "when will my refund arrive",
]  # fmt: skip
EASY = {"train_encoder": "head", "labels": "pool:task+probe", "force_judge": True}


@pytest.fixture
def texts_file(tmp_path):
    return write_jsonl(tmp_path / "texts.jsonl", [{"id": f"t{at}", "text": text} for at, text in enumerate(TEXTS)])


@pytest.fixture
def settings(tiny_pair_folder):
    return {**EASY, "pair": tiny_pair_folder}


def written(path):
    return [record for _, record in iter_records(path)]


def test_the_files_may_be_paths(train_file, texts_file, tmp_path, settings):
    made = run_label_job(train_file, texts_file, tmp_path / "out.jsonl", build(LabelJobConfig, settings))
    assert made["output"] == str(tmp_path / "out.jsonl")


def test_every_text_comes_back_in_its_place_with_what_each_judge_says(train_file, texts_file, tmp_path, settings):
    out = tmp_path / "out.jsonl"
    made = run_label_job(str(train_file), str(texts_file), str(out), build(LabelJobConfig, settings))
    rows = written(out)
    assert [(row["id"], row["text"]) for row in rows] == [(f"t{at}", text) for at, text in enumerate(TEXTS)]
    for row in rows:
        assert sum(row["label_probs"].values()) == pytest.approx(1, abs=1e-3)
        assert row["label"] == max(row["label_probs"], key=row["label_probs"].get) == row["labels"]["pool"]
        assert row["labels"]["task"] in LABELS
        assert row["labels"]["soft"] is None
    assert made["labelled"] == made["asked"] == len(TEXTS)
    assert sum(made["classes"].values()) == len(TEXTS)
    assert made["judge"]["n"] == len(SENTENCES)


def test_labels_are_those_that_the_judges_give_new_texts(train_file, texts_file, tmp_path, settings):
    """Like the benchmark's: the same rows, the same pool."""
    out = tmp_path / "out.jsonl"
    run_label_job(str(train_file), str(texts_file), str(out), build(LabelJobConfig, settings | {"labels": "hard:task"}))
    config = build(LabelJobConfig, settings)
    examples = read_examples(train_file)
    model = config.load_task_model()
    fit_task_model(model, examples, sorted(set(LABELS)), config, lambda _: None)
    said = model.predict_proba(model.encode(TEXTS)).argmax(axis=1)
    assert [row["label"] for row in written(out)] == [model.classes[at] for at in said]


@pytest.mark.parametrize("name", ["o.jsonl", "o.rejected.jsonl"])
def test_a_file_that_no_run_wrote_is_not_replaced(train_file, texts_file, tmp_path, settings, name):
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=f"{name}: is there already"):
        run_label_job(str(train_file), str(texts_file), str(tmp_path / "o.jsonl"), build(LabelJobConfig, settings))
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("edited", [False, True])
def test_pages_of_the_run_that_is_replaced_do_not_speak_of_the_new_rows(
    train_file, texts_file, tmp_path, settings, edited, caplog
):
    out, card, report = (tmp_path / name for name in ("o.jsonl", "README.md", "o.report.html"))
    run_augment_job(str(train_file), str(out), build(AugmentJobConfig, {**QUICK, "pair": settings["pair"]}))
    assert card.exists()
    assert report.exists()
    if edited:
        card.write_text(card.read_text(encoding="utf-8") + "mine\n", encoding="utf-8")
    config = build(LabelJobConfig, settings | {"overwrite": True})
    run_label_job(str(train_file), str(texts_file), str(out), config)
    assert not report.exists()
    assert card.exists() == edited
    assert ("README.md was changed by hand, and stays" in caplog.text) == edited


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_other_formats_come_in_and_go_out(train_file, tmp_path, settings, suffix):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["=1+1 is my login", *TEXTS]) + "\n", encoding="utf-8")
    out, lines = tmp_path / f"out{suffix}", tmp_path / "out.jsonl"
    for path in (out, lines):
        config = build(LabelJobConfig, settings)
        run_label_job(str(train_file), str(texts), str(path), config)
    if suffix == ".csv":
        assert out.read_text(encoding="utf-8").splitlines()[1].startswith("0,'=1+1")
    there = [(row["id"], row["text"], row["label"]) for row in written(out)]
    assert there == [(row["id"], row["text"], row["label"]) for row in written(lines)]
    assert there[0][1] == "=1+1 is my login"


def test_lines_are_texts_whatever_the_column_is_called(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one text\n\nanother\n", encoding="utf-8")
    found = [(row.id, row.text) for row in iter_unlabelled(path, text_column="body")]
    assert found == [("0", "one text"), ("2", "another")]  # its number in the file
    assert list(iter_texts([path], "body")) == ["one text", "another"]


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(train_file, texts_file, tmp_path, settings, monkeypatch):
    monkeypatch.setattr(pseudo_label, "SHARD_TEXTS", 2)
    config = build(LabelJobConfig, settings)
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    run_label_job(str(train_file), str(texts_file), str(whole), config)
    label, calls = pseudo_label._labelled, []

    def until_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return label(*arguments)

    monkeypatch.setattr(pseudo_label, "_labelled", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_label_job(str(train_file), str(texts_file), str(stopped), config)
    assert not stopped.exists()
    run_label_job(str(train_file), str(texts_file), str(stopped), config)
    assert len(calls) == 5  # the two that were finished are not done again
    assert stopped.read_bytes() == whole.read_bytes()


def test_what_is_known_or_unsure_is_set_aside_with_its_reason(train_file, tmp_path, settings, caplog):
    given = [SENTENCES[0].upper(), *TEXTS, TEXTS[0] + " !"]
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in given])
    out = tmp_path / "out.jsonl"
    config = build(LabelJobConfig, settings | {"labels": "hard:task", "min_confidence": 1.0})
    made = run_label_job(str(train_file), str(texts), str(out), config)
    assert made["rejected"] == {"unsure": len(TEXTS), "known": 1, "duplicate": 1}
    assert "none of the 9 texts got a label" in caplog.text
    assert written(out) == []
    aside = written(tmp_path / "out.rejected.jsonl")
    assert [row["reject_reason"] for row in aside] == ["known"] + ["unsure"] * len(TEXTS) + ["duplicate"]
    for row in aside:  # the class alone is the label, and how sure the judge was is known all the same
        assert row["label_probs"][row["label"]] == 1
        assert 1 / 3 <= row["confidence"] < 1


def test_texts_without_words_are_known_by_their_signs(tmp_path, settings):
    rows = [{"text": text, "label": label} for text, label in zip(SENTENCES, LABELS, strict=True)]
    train = write_jsonl(tmp_path / "train.jsonl", [*rows, {"text": "!!", "label": "refund"}])
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "??"}, {"text": "!!"}])
    made = run_label_job(str(train), str(texts), str(tmp_path / "out.jsonl"), build(LabelJobConfig, settings))
    assert (made["labelled"], made["rejected"]) == (1, {"known": 1})


def test_a_judge_that_abstains_labels_nothing(train_file, texts_file, tmp_path, settings, monkeypatch):
    hear = pseudo_label.Panel.hear

    def silent(panel, texts, embeddings):
        return {name: probs * float("nan") for name, probs in hear(panel, texts, embeddings).items()}

    monkeypatch.setattr(pseudo_label.Panel, "hear", silent)
    made = run_label_job(str(train_file), str(texts_file), str(tmp_path / "out.jsonl"), build(LabelJobConfig, settings))
    assert made["rejected"] == {"not_judged": len(TEXTS)}


def test_rows_that_are_measured_on_are_not_trained_on(train_file, tmp_path, settings, monkeypatch):
    """And those set aside leave the others their places in the shards."""
    monkeypatch.setattr(pseudo_label, "SHARD_TEXTS", 2)
    monkeypatch.setattr(label_job._LabelJob, "shard_rows", 2)
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": t, "label": LABELS[0]} for t in (TEXTS[0], TEXTS[3])])
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    trained = []
    measure = job.run_downstream

    def watched(fresh, examples, rows, *rest, **options):
        trained.extend(row.text for row in rows)
        return measure(fresh, examples, rows, *rest, **options)

    monkeypatch.setattr(job, "run_downstream", watched)
    config = build(LabelJobConfig, settings | {"test": str(test)})
    made = run_label_job(str(train_file), str(texts), str(tmp_path / "out.jsonl"), config)
    assert made["rejected"] == {"known": 2}
    assert trained == [text for text in TEXTS if text not in (TEXTS[0], TEXTS[3])]
    assert made["test_rows"] == 2


def test_the_task_model_of_a_run_is_no_pair_to_write_with(train_file, texts_file, tmp_path, settings, caplog):
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    config = build(LabelJobConfig, settings | {"train_encoder": "full", "task_steps": 4})
    run_label_job(str(train_file), str(texts_file), str(whole), config)
    run_label_job(str(train_file), str(texts_file), str(out), config)
    folder = tmp_path / "out.jsonl.run"
    with pytest.raises(InputError, match="adaptor"):
        config.load_pair(folder / "task_model")
    for record in (folder / "shards").iterdir():
        record.unlink()
    run_label_job(str(train_file), str(texts_file), str(out), config)  # by the fitted task model
    assert out.read_bytes() == whole.read_bytes()
    head = folder / "task_model" / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-1] + b"x")
    run_label_job(str(train_file), str(texts_file), str(out), config)
    assert "fitted again" in caplog.text


def test_a_run_of_label_is_none_of_augment(train_file, texts_file, tmp_path, settings, capsys):
    out = tmp_path / "out.jsonl"
    run_label_job(str(train_file), str(texts_file), str(out), build(LabelJobConfig, settings))
    assert "of another command there is no report" in refused(capsys, "report", out, "-o", tmp_path / "r.html")
    assert not is_run(out)
    again = label_job.LabelJobConfig(**{**settings, "seed": 1})
    with pytest.raises(InputError, match="other settings"):
        run_label_job(str(train_file), str(texts_file), str(out), again)


def test_texts_that_have_grown_take_finished_labels_again(train_file, tmp_path, settings, monkeypatch, caplog):
    monkeypatch.setattr(pseudo_label, "SHARD_TEXTS", 2)
    texts, out, whole = tmp_path / "texts.txt", tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    config = build(LabelJobConfig, settings)
    texts.write_text("".join(f"{text}\n" for text in TEXTS[:5]))
    run_label_job(str(train_file), str(texts), str(out), config)
    texts.write_text("".join(f"{text}\n" for text in [*TEXTS[:3], "another one", *TEXTS[4:]]))
    run_label_job(str(train_file), str(texts), str(whole), config)
    label, asked = pseudo_label._labelled, []
    monkeypatch.setattr(pseudo_label, "_labelled", lambda part, *more: asked.append(len(part)) or label(part, *more))
    with caplog.at_level("INFO"):
        run_label_job(str(train_file), str(texts), str(out), config)
    assert sum(asked) == len(TEXTS) - 2  # the first block was there
    assert out.read_bytes() == whole.read_bytes()
    assert "finished work is taken up again (the texts to label have changed)" in caplog.text


def test_a_higher_bar_takes_finished_labels_again(train_file, texts_file, tmp_path, settings, monkeypatch):
    out = tmp_path / "out.jsonl"
    run_label_job(str(train_file), str(texts_file), str(out), build(LabelJobConfig, settings))
    monkeypatch.setattr("inversedmixup.judges.panel.Panel.hear", None)  # nobody is asked again
    high = build(LabelJobConfig, settings | {"min_confidence": 1.0})
    assert run_label_job(str(train_file), str(texts_file), str(out), high)["rejected"]["unsure"]


def test_accuracy_is_measured_with_and_without_the_new_rows(train_file, texts_file, tmp_path, settings, capsys):
    arguments = ["label", train_file, texts_file, "-o", tmp_path / "out.jsonl", "--pair", settings["pair"]]
    arguments += ["--train-encoder", "head", "--labels", "pool:task+probe", "--force-judge", "--test", train_file]
    assert main([str(word) for word in arguments]) == 0
    shown, said = capsys.readouterr()
    for expected in ("labelled 7 of 7", "judge task+probe is right on", "accuracy on 18 test rows", "classes: "):
        assert expected in shown
    assert "18 of 18 rows are training rows too" in " ".join(said.split())
    assert main([*map(str, arguments), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"accuracy_with", "accuracy_without", "judge", "labelled", "seconds", "sample"} <= set(summary)


def test_where_nothing_is_labelled_no_empty_table_is_shown(train_file, tmp_path, settings, capsys):
    arguments = ["label", train_file, train_file, "-o", tmp_path / "out.jsonl", "--pair", settings["pair"]]
    arguments += ["--train-encoder", "head", "--labels", "pool:task", "--force-judge"]
    assert main([str(word) for word in arguments]) == 0
    shown = capsys.readouterr().out
    assert "labelled 0 of 18; left out 18 known" in shown
    assert "confidence" not in shown
    assert "classes:" not in shown


@pytest.mark.parametrize("labels", ["soft", "mitigated:task", "drop:task"])
def test_labels_that_need_parents_are_refused(train_file, texts_file, tmp_path, capsys, settings, labels):
    line = refused(
        capsys, "label", train_file, texts_file, "-o", tmp_path / "o.jsonl", "--labels", labels, "--pair",
        settings["pair"],
    )  # fmt: skip
    assert "lies between no two rows" in line
    assert not (tmp_path / "o.jsonl.run").exists()


def test_inputs_are_not_replaced_and_empty_ones_refused(train_file, texts_file, tmp_path, capsys, settings):
    pair = ["--pair", settings["pair"]]
    for read in (train_file, texts_file):
        assert "would replace the input" in refused(capsys, "label", train_file, texts_file, "-o", read, *pair)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    line = refused(capsys, "label", train_file, empty, "-o", tmp_path / "o.jsonl", *pair)
    assert line.endswith("no usable row; every row needs a text")
    line = refused(capsys, "label", train_file, texts_file, "-o", tmp_path / "o.jsonl", "--min-confidence", "80", *pair)
    assert "is a probability; must be at most 1" in line


COUNTS = {"a": 30, "b": 10}


def record(accuracy, n=40, coverage=1.0):
    return {"name": "task", "n": n, "accuracy": accuracy, "coverage": coverage}


@pytest.mark.parametrize("accuracy", [0.8, 0.7])  # 0.75 would be right by naming the largest class
def test_a_judge_about_as_good_as_the_largest_class_passes(accuracy):
    check_alone(record(accuracy), "hard:task", COUNTS, force=False)


@pytest.mark.parametrize(
    ("counts", "accuracy", "reason"),
    [
        (COUNTS, 0.5, "always saying 'a' would be on 75%"),
        ({"a": 20, "b": 20}, 0.5, "always saying 'a' would be on 50%"),
        (COUNTS, None, "nobody knows whether it is to be trusted"),
    ],
)
def test_a_judge_that_knows_nothing_is_refused_unless_forced(counts, accuracy, reason, caplog):
    with pytest.raises(InputError, match=reason):
        check_alone(record(accuracy), "hard:task", counts, force=False)
    check_alone(record(accuracy), "hard:task", counts, force=True)
    assert reason in caplog.text


def test_the_library_labels_what_it_is_given(tiny_pair_folder):
    mixer = InversedMixup.from_pretrained(tiny_pair_folder)
    with pytest.raises(InputError, match="call fit"):
        mixer.label(TEXTS)
    mixer.fit(SENTENCES, LABELS, train_encoder="head", refine_steps=0)
    rows = mixer.label([*TEXTS, " "], labels="pool:task+probe", force_judge=True)
    assert rows["id"] == [str(at) for at in range(len(TEXTS))]
    assert set(rows["label"]) <= set(LABELS)
    assert mixer.labelled_["labelled"] == len(TEXTS)
    again = mixer.label(datasets.Dataset.from_dict({"text": TEXTS}), labels="pool:task+probe", force_judge=True, seed=3)
    assert again["text"] == TEXTS
    with pytest.raises(InputError, match="put it in brackets"):
        mixer.label("my parcel is late")


def test_the_benchmark_asks_for_texts_before_anything_runs(train_file, tmp_path, capsys, settings):
    arguments = ["benchmark", train_file, "-o", tmp_path / "out", "--methods", "pseudo-label", "--pair"]
    line = refused(capsys, *arguments, settings["pair"])
    assert line.endswith("give a file of them with --unlabelled")
    line = refused(capsys, *arguments, settings["pair"], "--unlabelled", tmp_path / "none.jsonl")
    assert "no such file" in line
    (tmp_path / "empty.txt").write_text("\n")
    line = refused(capsys, *arguments, settings["pair"], "--unlabelled", tmp_path / "empty.txt")
    assert line.endswith("no usable row; every row needs a text")


def test_the_benchmark_takes_no_text_that_is_trained_or_measured_on(examples, monkeypatch):
    monkeypatch.setattr(Split, "labelled", lambda split, texts: texts)
    split = Split(examples, sorted(set(LABELS)), BenchmarkConfig(n=4), None, None, "000", frozenset(["my login fails"]))
    texts = [SENTENCES[0].upper(), *TEXTS, TEXTS[0] + "!", "My login fails!"]
    taken = of_texts(split, texts)
    assert len(taken) == 4
    everything = of_texts(dataclasses.replace(split, config=BenchmarkConfig(n=99)), texts)
    assert {text.rstrip("!") for text in everything} == set(TEXTS) - {"my login fails"}
    assert len(everything) == len(TEXTS) - 1


def test_a_seed_below_nothing_is_refused(train_file, texts_file, tmp_path, capsys):
    assert main(["label", str(train_file), str(texts_file), "-o", str(tmp_path / "out.jsonl"), "--seed=-1"]) == 2
    assert "seed -1: must be at least 0" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl.run").exists()
