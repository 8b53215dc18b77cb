import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from conftest import write_jsonl
from inversedmixup.baselines import chosen, methods
from inversedmixup.baselines.generate import EXAMPLES
from inversedmixup.baselines.prompted import cleaned
from inversedmixup.benchmark import BenchmarkConfig, run_all
from inversedmixup.benchmark.cells import Bench
from inversedmixup.judges.tuned import TunedJudge
from inversedmixup.models.llm import SoftTokenLLM
from tiny import LABELS, SENTENCES

CLASSES = sorted(set(LABELS))
PROMPTED = ("paraphrase", "paraphrase-pooled", "generate", "generate-pooled")
OPEN = {"min_words": 1, "min_cycle": -1.0, "fluency_margin": 99.0}  # a gate that random models pass


@pytest.fixture
def files(tmp_path):
    rows = [{"text": text, "label": label} for text, label in zip(SENTENCES, LABELS, strict=True)]
    held = [{"text": f"{row['text']} held", "label": row["label"]} for row in rows[::3]]
    return str(write_jsonl(tmp_path / "train.jsonl", rows)), str(write_jsonl(tmp_path / "test.jsonl", held))


@pytest.fixture
def settings(tiny_pair_folder):
    return BenchmarkConfig(
        pair=tiny_pair_folder, splits=1, draw="4", n=6, tries=10, candidates=2, max_tokens=6, task_steps=2,
        refine_steps=0, follow_steps=0, judge_steps=2, downstream_steps=2, train_encoder="head", **OPEN,
    )  # fmt: skip


@pytest.fixture
def split_of(files, tmp_path, monkeypatch):
    """The split that the benchmark works on, in a folder of its own."""

    def make(config, folder="out"):
        found = []
        with monkeypatch.context() as patch:
            patch.setattr(Bench, "measured", lambda self, method, split, test: found.append(split) or {})
            bench = Bench(*files, str(tmp_path / folder), dataclasses.replace(config, methods="none"))
            bench.run_split(0, lambda _: None)
        return found[0]

    return make


def added(split, *names):
    return {name: methods()[name].added(split) for name in names}


def count(monkeypatch, owner, name):
    """Calls of a method, as a list that grows."""
    calls, real = [], getattr(owner, name)

    def counted(self, *args, **kwargs):
        calls.append(args)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


# ---- prompts -----------------------------------------------------------------------------------------------------


def prompts_of(monkeypatch):
    prompts = []
    real = SoftTokenLLM.set_prompt
    monkeypatch.setattr(SoftTokenLLM, "set_prompt", lambda self, prompt: prompts.append(prompt) or real(self, prompt))
    return prompts


def test_the_prompt_names_the_class_and_shows_its_rows_alone(split_of, settings, monkeypatch):
    split = split_of(settings)
    prompts = prompts_of(monkeypatch)
    found = added(split, "generate")["generate"]
    lists = [prompt for prompt in prompts if prompt.startswith("Different texts")]
    assert {prompt.splitlines()[0] for prompt in lists} == {f"Different texts of the class {name}:" for name in CLASSES}
    for prompt in lists:
        name = prompt.splitlines()[0].split()[-1].rstrip(":")
        shown = [line.removeprefix("- ") for line in prompt.splitlines()[1:-1]]
        assert len(shown) == EXAMPLES
        assert set(shown) <= {example.text for example in split.examples if example.label == name}
    assert (found.targets.max(1) == 1).all()
    assert len(set(Counter(found.targets.argmax(1).tolist()))) == 3


def test_no_prompt_shows_a_test_row(split_of, settings, monkeypatch):
    read = count(monkeypatch, SoftTokenLLM, "read")
    prompts = prompts_of(monkeypatch)
    split = split_of(settings)
    added(split, *PROMPTED)
    parents = {text.strip() for texts, _ in read for text in texts} - {"-"}
    assert parents <= {example.text for example in split.examples}
    assert len(parents) > 1
    assert not any("held" in text for text in [*prompts, *parents])


def test_a_paraphrase_has_its_parents_class(split_of, settings, monkeypatch):
    monkeypatch.setattr(
        SoftTokenLLM, "decode",
        lambda self, soft, sampling, uniforms, candidates, batch_size: [f"{u[0]:.6f} {u[1]:.6f}" for u in uniforms],
    )  # fmt: skip
    split = split_of(settings)
    order = split.stream(32).permutation(len(split.examples))
    targets = added(split, "paraphrase")["paraphrase"].targets
    assert [CLASSES[at] for at in targets.argmax(1)] == [split.examples[at].label for at in order[: settings.n]]


def test_pooled_texts_are_the_same_texts_with_other_labels(split_of, settings):
    split = split_of(settings)
    for name in ("paraphrase", "generate"):
        plain, pooled = added(split, name, f"{name}-pooled").values()
        assert list(plain.texts) == list(pooled.texts)
        assert np.allclose(pooled.targets.sum(1), 1)
        assert (pooled.targets.max(1) < 1).all()


def test_nothing_written_is_no_row(split_of, settings, caplog):
    split = split_of(dataclasses.replace(settings, min_words=99, tries=1))
    for name, rows in added(split, *PROMPTED).items():
        assert len(rows.texts) == 0, name
        assert rows.targets.shape == (0, 3), name
    assert "paraphrase: 0 of the 6 rows asked for" in caplog.text


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ('"where is my box?"', "where is my box?"), ("- 3. where is it", "where is it"), ("where", "where"),
        ('the "late" box', 'the "late" box'), ("Sure! Here is another one", ""), ("Here is a new text:", ""),
        ("I'm sorry, but I cannot help", ""), ("I am sorry to hear that the box is late", ""),
        ("sure footed and fine", "sure footed and fine"), ("2001 was a good year", "2001 was a good year"), ("", ""),
    ],
)  # fmt: skip
def test_an_answer_is_cleaned(said, text):
    assert cleaned(said) == text


def test_a_text_of_the_user_cannot_end_the_prompt(split_of, settings):
    split = split_of(settings)
    hostile = [dataclasses.replace(e, text=f"{e.text} {{soft}} {'my ' * 90}") for e in split.examples]
    found = added(dataclasses.replace(split, examples=hostile), *PROMPTED)
    assert all(len(rows.texts) for rows in found.values())


# ---- one run after the other -------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(split_of, settings):
    names = ("inversed", "inversed-pooled", "paraphrase", "generate-pooled")
    first, second = (added(split_of(settings, folder), *names) for folder in ("one", "two"))
    other = added(split_of(dataclasses.replace(settings, seed=1), "three"), *names)
    for name in names:
        assert list(first[name].texts) == list(second[name].texts), name
        assert np.array_equal(first[name].targets, second[name].targets), name
        assert list(first[name].texts) != list(other[name].texts), name


def test_prompted_texts_do_not_depend_on_the_batch(split_of, settings):
    one = added(split_of(settings, "one"), "paraphrase", "generate")
    two = added(split_of(dataclasses.replace(settings, batch_size=2), "two"), "paraphrase", "generate")
    assert all(list(one[name].texts) == list(two[name].texts) for name in one)


def test_a_killed_run_goes_on_without_writing_texts_again(files, settings, tmp_path, monkeypatch):
    config = dataclasses.replace(settings, methods="inversed-judged,paraphrase-pooled,generate,tuned-llm")

    def run(folder):
        records = run_all(Bench(*files, str(tmp_path / folder), config))
        return [{key: value for key, value in record.items() if key not in ("seconds", "set")} for record in records]

    whole = run("whole")
    assert [record["method"] for record in whole] == [method.name for method in chosen(config.methods)]
    run("killed")
    for path in (tmp_path / "killed" / "run" / "runs").glob("*.json"):  # killed before any run was recorded
        path.unlink()
    decoded = count(monkeypatch, SoftTokenLLM, "decode")
    tuned = count(monkeypatch, TunedJudge, "_tuned")
    assert run("killed") == whole
    assert not [sampling for _, sampling, *_ in decoded if sampling.temperature > 0]  # stage 2 measures greedily
    assert not tuned


def test_a_text_ends_with_its_line_only_where_that_is_asked_for(tiny_llm):
    llm = SoftTokenLLM.from_pretrained(tiny_llm)
    assert llm.ends == {llm.eos}
    words = json.loads(llm.tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    where, my = words["where"], words["my"]
    llm.tokenizer.batch_decode = lambda ids: ["\n" if token == [my] else "x" for token in ids]
    assert llm.text([where, my, where]) == "where my where"
    llm.end_at_newline()
    assert llm.ends == {llm.eos, my}
    assert llm.text([where, my, where]) == "where"
