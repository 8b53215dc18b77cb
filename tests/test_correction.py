"""Correction: taught by align, kept apart from writing, never further from what was wanted."""

import contextlib
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from inversedmixup.cli import main
from inversedmixup.errors import InputError
from inversedmixup.models.pair import Pair
from inversedmixup.models.sampling import GREEDY
from inversedmixup.options import build
from inversedmixup.stages.align import AlignConfig, run_align
from inversedmixup.stages.lessons import Correcting
from tiny import SENTENCES

SHAPE = {"soft_tokens": 2, "hidden": 16, "layers": 1}
QUICK = {
    "batch_size": 8, "chunk": 32, "validation_rows": 6, "validate_every": 1000, "warmup_steps": 2, "max_tokens": 8,
    "learning_rate": 3e-3,
}  # fmt: skip


@pytest.fixture(scope="module", params=[0, 2], ids=["frozen", "lora"])
def taught(request, tiny_encoder, tiny_llm, tmp_path_factory):
    """A pair that has learnt to write, and the same pair when it has learnt to correct."""
    folder = tmp_path_factory.mktemp("taught")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES * 6), encoding="utf-8")
    models = {"encoder": tiny_encoder, "llm": tiny_llm, "lora": request.param, "encoder_lora": request.param}
    run_align([corpus], folder / "pair", build(AlignConfig, QUICK, SHAPE, models, {"sentences": 40}))
    correct = build(AlignConfig, QUICK, {"teach": "correct", "start": str(folder / "pair"), "sentences": 48})
    record = run_align([corpus], folder / "corrects", correct)
    return folder, corpus, correct, record


def test_the_pair_stays_as_it_was_and_gains_a_corrector(taught):
    folder, _, _, record = taught
    assert {"cosine_before", "cosine", "token_f1"} <= set(record)
    for name in ("adaptor.safetensors", "lora/adapter_model.safetensors", "encoder_lora/adapter_model.safetensors"):
        if (folder / "pair" / name).exists():
            assert (folder / "pair" / name).read_bytes() == (folder / "corrects" / name).read_bytes()
    before, after = Pair.load(folder / "pair"), Pair.load(folder / "corrects")
    assert after.config.corrector is not None
    assert after.config.training["sentences"] == before.config.training["sentences"]
    assert after.config.training["correction"]["sentences"] == 48
    wanted = before.task_model.encode(SENTENCES)
    assert before.invert(wanted) == after.invert(wanted)
    assert (folder / "corrects" / "correction_lora").exists() == (before.config.lora_rank > 0)


def test_loading_a_pair_takes_nothing_from_the_callers_random_state(taught):
    before = torch.get_rng_state()
    Pair.load(taught[0] / "corrects")
    assert torch.equal(torch.get_rng_state(), before)


def test_corrected_texts_are_never_further_away(taught):
    pair = Pair.load(taught[0] / "corrects")
    wanted = pair.task_model.encode(SENTENCES)
    texts = pair.invert(wanted, dataclasses.replace(GREEDY, max_tokens=8))
    found = pair.task_model.encode(texts)
    better, reread = pair.correct(wanted, texts, found, steps=3, max_tokens=8)
    assert torch.allclose(reread, pair.task_model.encode(better), atol=1e-5)
    before, after = (functional.cosine_similarity(one, wanted, dim=1) for one in (found, reread))
    assert (after >= before - 1e-6).all()
    # writing is as it was: the weights for correcting are put away again
    assert pair.invert(wanted, dataclasses.replace(GREEDY, max_tokens=8)) == texts
    assert not any(weight.requires_grad for weight in pair.llm.model.parameters())


def test_it_learns(taught, tmp_path):
    folder, corpus, config, _ = taught
    start = Pair.load(folder / "pair")
    start.add_corrector(text_tokens=8, seed=0)
    untaught = lesson_loss(start)
    run_align([corpus], tmp_path, dataclasses.replace(config, sentences=800, learning_rate=1e-2))
    pair = Pair.load(tmp_path)
    assert lesson_loss(pair) < untaught - 0.3
    if pair.config.lora_rank:
        one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("lora", "correction_lora"))
        assert not all(torch.equal(one[name], two[name]) for name in one)
        # what it corrects with is not what it writes with
        assert lesson_loss(pair, correcting=False) > lesson_loss(pair)


@torch.no_grad()
def lesson_loss(pair, *, correcting=True):
    wanted = pair.task_model.encode(SENTENCES)
    texts = pair.invert(wanted, dataclasses.replace(GREEDY, max_tokens=8))
    soft = pair.correction(pair.adaptor(wanted), wanted, pair.task_model.encode(texts), texts)
    with pair.llm.correcting() if correcting else contextlib.nullcontext():
        return pair.llm.loss(soft, pair.llm.targets(SENTENCES, 8)).item()


def test_an_interrupted_lesson_resumes_to_the_same_corrector(taught, tmp_path, monkeypatch):
    folder, corpus, config, _ = taught
    real, steps = Correcting.backward, []

    def interrupted(self, *arguments):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Correcting, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_align([corpus], tmp_path, config)
    monkeypatch.undo()
    run_align([corpus], tmp_path, config)
    for name in ("corrector.safetensors", "correction_lora/adapter_model.safetensors"):
        if (folder / "corrects" / name).exists():
            whole, resumed = load_file(folder / "corrects" / name), load_file(tmp_path / name)
            assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_corrector_survives_stage_two_and_saving(taught, tmp_path, examples):
    from inversedmixup import InversedMixup

    mixer = InversedMixup.from_pretrained(taught[0] / "corrects")
    quick = {"task_steps": 2, "follow_steps": 1, "refine_steps": 1, "tolerance": 1.0}
    mixer.fit([e.text for e in examples], [e.label for e in examples], **quick)
    mixer.save_pretrained(tmp_path)
    again = Pair.load(tmp_path)
    wanted = again.task_model.encode(SENTENCES)
    texts = again.invert(wanted, dataclasses.replace(GREEDY, max_tokens=8))
    assert len(again.correct(wanted, texts, again.task_model.encode(texts), steps=1, max_tokens=8)[0]) == len(texts)


def test_invert_reports_corrected_beside_greedy(taught, capsys):
    folder, corpus, *_ = taught
    command = ["invert", str(corpus), "--rows", "6", "--evaluate", "--correct", "2", "--candidates", "3", "--json"]
    assert main([*command, "--max-tokens", "8", "--pair", str(folder / "corrects")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [result[way]["decodes"] for way in ("greedy", "reranked", "corrected")] == [1, 3, 3]
    assert result["corrected"]["cosine"] >= result["greedy"]["cosine"] - 1e-6


def test_without_evaluate_the_corrected_texts_are_shown_and_written(taught, tmp_path, capsys):
    folder, corpus, *_ = taught
    out = tmp_path / "out.jsonl"
    command = ["invert", str(corpus), "--rows", "18", "--max-tokens", "8", "--pair", str(folder / "corrects"), "--json"]
    assert main([*command, "--correct", "3", "--output", str(out)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    cosine = sum(json.loads(line)["cosine"] for line in out.read_text().splitlines()) / 18
    assert cosine == pytest.approx(result["corrected"]["cosine"], abs=1e-3)
    assert result["sample_way"] == "corrected"


def test_a_pair_with_nothing_to_correct_with_is_refused_before_any_work(
    taught, tiny_pair_folder, train_file, tmp_path, capsys
):
    _, corpus, *_ = taught
    out = str(tmp_path / "o.jsonl")
    for command in (["invert", str(corpus)], ["mix", "a", "b"], ["augment", str(train_file), "-o", out]):
        assert main([*command, "--correct", "1", "--pair", tiny_pair_folder]) == 2
        assert "--teach words" in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl.run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"start": None}, "--start"), ({"lora": 4}, "lora is that of the pair"), ({"hidden": 8}, "hidden is that")],
)
def test_settings_that_mean_nothing_to_the_lesson_are_refused(taught, tmp_path, change, message):
    _, corpus, config, _ = taught
    with pytest.raises(InputError, match=message):
        run_align([corpus], tmp_path, dataclasses.replace(config, **change))


def test_a_pair_that_corrects_can_be_taught_further_but_not_in_place(taught, tmp_path):
    folder, corpus, config, _ = taught
    again = dataclasses.replace(config, start=str(folder / "corrects"), sentences=16)
    run_align([corpus], tmp_path, again)
    assert Pair.load(tmp_path).corrector is not None
    with pytest.raises(InputError, match="choose another output"):
        run_align([corpus], tmp_path / "x", dataclasses.replace(config, start=str(tmp_path / "x")))
