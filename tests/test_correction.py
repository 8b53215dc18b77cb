"""Correction: taught by align, kept apart from writing, never further from what was wanted."""

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


def test_an_interrupted_lesson_resumes_to_the_same_corrector(taught, tmp_path):
    _, corpus, config, _ = taught
    run_align([corpus], tmp_path / "run", dataclasses.replace(config, sentences=24))
    (tmp_path / "run" / "pair.json").unlink()
    run_align([corpus], tmp_path / "run", dataclasses.replace(config, sentences=48, learning_rate=3e-3))
    # the learning rate depends on the budget, so the first half differs; a second resumption must not
    again = tmp_path / "again"
    run_align([corpus], again, dataclasses.replace(config, sentences=24))
    (again / "attempts.json").unlink()
    (again / "pair.json").unlink()
    run_align([corpus], again, dataclasses.replace(config, sentences=48))
    one, two = (load_file(path / "corrector.safetensors") for path in (tmp_path / "run", again))
    assert all(torch.equal(one[name], two[name]) for name in one)


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


def test_a_pair_that_has_not_learnt_it_is_refused(taught, tiny_pair_folder, capsys):
    folder, corpus, config, _ = taught
    assert main(["invert", str(corpus), "--rows", "2", "--correct", "1", "--pair", tiny_pair_folder]) == 2
    assert "--teach correct" in capsys.readouterr().err
    with pytest.raises(InputError, match="--start"):
        run_align([corpus], folder / "x", dataclasses.replace(config, start=None))
