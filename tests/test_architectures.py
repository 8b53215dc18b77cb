"""Every kind of generator and encoder through the same code: random ones learn to give sentences back word for word."""

import dataclasses
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from inversedmixup.errors import InputError
from inversedmixup.judges import reading
from inversedmixup.judges.prompt import Prompt
from inversedmixup.models.llm import SoftTokenLLM
from inversedmixup.models.lower_layers import mean_states
from inversedmixup.models.pair import Pair
from inversedmixup.models.sampling import GREEDY
from inversedmixup.models.task_model import FitSettings
from inversedmixup.stages.align import AlignConfig, run_align
from plain import check_decoding, check_likelihood
from studies.families import ENCODERS, GENERATORS, SPECIAL, Size, bart, gpt2, make_generator, make_sentence_encoder

TINY = Size(hidden=64, layers=2, heads=4, vocabulary=400)
READ_BY = dict(zip(GENERATORS, itertools.cycle(ENCODERS), strict=False))  # each encoder serves a generator or two
ALL = [
    " ".join(words)
    for words in itertools.product(
        ("she", "he", "nobody", "everyone", "mary", "john"), ("lost", "found", "sold", "wanted", "broke", "kept"),
        ("the lamp", "a parcel", "two tickets", "her old car", "that red coat", "every key"), ("today", "again"),
    )
]  # fmt: skip
SENTENCES = [ALL[at] for at in np.random.default_rng(0).permutation(len(ALL))[:240]]
STEPS = {"bart": 400}  # normalised after each block, it learns later than the others
GREEDILY = dataclasses.replace(GREEDY, max_tokens=16)


@dataclasses.dataclass(frozen=True)
class Learnt:
    """A pair that learnt :data:`SENTENCES` from random weights, and the random generator."""

    kind: str
    generator: Path
    folder: Path


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return {
        kind: make_sentence_encoder(kind, TINY, SENTENCES, tmp_path_factory.mktemp(kind)) for kind in ENCODERS
    }  # fmt: skip


@pytest.fixture(scope="module", params=list(GENERATORS))
def learnt(request, encoders, tmp_path_factory):
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    generator = make_generator(kind, TINY, SENTENCES, folder / "generator")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES), encoding="utf-8")
    config = AlignConfig(
        encoder=encoders[READ_BY[kind]], llm=generator, train_llm=True, soft_tokens=4, hidden=128, layers=1, lower=0.0,
        learning_rate=3e-3, warmup_steps=100, sentences=STEPS.get(kind, 280) * 32, validation=str(corpus),
        validation_rows=8,
    )  # fmt: skip
    run_align([corpus], folder / "pair", config)
    return Learnt(kind, Path(generator), folder / "pair")


@pytest.mark.parametrize("kind", list(GENERATORS))
def test_states_of_the_lower_layers_are_those_of_a_whole_pass(kind, tmp_path):
    llm = SoftTokenLLM.from_pretrained(make_generator(kind, Size(64, 4, 4, 400), SENTENCES, tmp_path))
    texts = ["she lost the lamp today", "", "she", *SENTENCES[:80]]
    found = mean_states(llm, texts, 0.5)
    reader = llm.lm.get_encoder() if llm.encoder_decoder else llm.lm.base_model
    for text, mean in zip(texts[:6], found, strict=False):
        ids = llm.ids(text) or [llm.eos]
        with torch.no_grad():
            states = reader(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        whole = states[-1 if llm.encoder_decoder else 2][0]
        assert torch.allclose(mean, whole[1 if len(ids) > 1 else 0 :].mean(0), atol=1e-4)


def inverted(pair):
    return pair.invert(pair.task_model.encode(SENTENCES), GREEDILY)


def test_every_sentence_comes_back_word_for_word(learnt, tmp_path):
    elsewhere = learnt.generator.rename(tmp_path / "elsewhere")  # the pair carries the weights that learnt
    pair = Pair.load(learnt.folder)
    elsewhere.rename(learnt.generator)
    texts = inverted(pair)
    assert np.mean([text == sentence for text, sentence in zip(texts, SENTENCES, strict=True)]) >= 0.99
    pair.save(tmp_path / "again", encoder=True)
    assert inverted(Pair.load(tmp_path / "again")) == texts


def test_likelihoods_gradients_and_texts_are_those_of_plain_transformers(learnt):
    llm = Pair.load(learnt.folder).llm
    check_likelihood(llm)
    check_decoding(llm)


def test_fluency_knows_the_order_of_words(learnt):
    llm = Pair.load(learnt.folder).llm
    scores = llm.log_likelihood([*SENTENCES[:40], *(" ".join(reversed(text.split())) for text in SENTENCES[:40])])
    assert np.isfinite(scores).all()
    assert scores[:40].mean() > scores[40:].mean()


def test_lora_learns_something_else_and_leaves_the_llm_as_it_was(learnt, tmp_path):
    pair = Pair.load(learnt.folder)
    pair.llm.add_lora(4, seed=0)
    places = {name.split(".lora_")[0] for name, weight in pair.llm.model.named_parameters() if weight.requires_grad}
    vocabulary = (pair.llm.lm.get_input_embeddings(), pair.llm.lm.get_output_embeddings())
    assert places
    assert not any(pair.llm.model.get_submodule(place) in vocabulary for place in places)
    others = [text for text in ALL if text not in SENTENCES][:32]
    soft, targets = pair.adaptor(pair.task_model.encode(SENTENCES[:32])).detach(), pair.llm.targets(others, 16)
    losses, before = [], pair.llm.log_likelihood(SENTENCES[:5])
    optimiser = torch.optim.AdamW([w for w in pair.llm.model.parameters() if w.requires_grad], lr=1e-2)
    for _ in range(12):
        optimiser.zero_grad()
        losses.append(pair.llm.loss(soft, targets))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]
    assert np.allclose(pair.llm.log_likelihood(SENTENCES[:5]), before, atol=1e-5)
    pair.llm.save_lora(tmp_path)
    again = Pair.load(learnt.folder).llm
    again.load_lora(tmp_path)
    assert again.loss(soft, targets).item() == pytest.approx(pair.llm.loss(soft, targets).item(), abs=2e-2)


def test_a_judges_answer_is_that_of_a_pass_for_each_text_alone(learnt):
    llm, names = Pair.load(learnt.folder).llm, ["lost today", "lost", "a parcel"]
    prompt = Prompt(llm, names, opening="she he mary", shown=[(SENTENCES[0], "lost")])
    heard = prompt.log_likelihoods(SENTENCES[:5])
    assert np.allclose(np.exp(heard).sum(1), 1, atol=1e-5)
    for text, row in zip(SENTENCES[:5], heard, strict=True):
        assert np.allclose(prompt.log_likelihoods([text])[0], row, atol=1e-4)  # no other text, no padding
        for number, score in enumerate(row):
            assert prompt.loss([text], [number]).item() == pytest.approx(-score, abs=1e-4)
    together = prompt.loss(SENTENCES[:3], [0, 1, 2]).item()
    assert together == pytest.approx(-np.mean([heard[at, at] for at in range(3)]), abs=1e-4)


@pytest.mark.parametrize("kind", list(GENERATORS))
def test_a_beginning_that_all_rows_share_is_learnt_from_as_if_each_row_read_it(kind, tmp_path, monkeypatch):
    generator, found = make_generator(kind, TINY, SENTENCES, tmp_path), []
    for least in (1, 10**6):
        monkeypatch.setattr(reading, "SHARED", least)
        llm = SoftTokenLLM.from_pretrained(generator)
        with warnings.catch_warnings(action="error"):  # what peft has to say of it is no concern of the user's
            llm.add_lora(2, seed=0)
        shown = [(text, text.split()[-1]) for text in SENTENCES[:3]]
        prompt = Prompt(llm, ["lost today", "lost", "a parcel"], shown=shown, calibrated=False)
        loss = prompt.loss(SENTENCES[3:8], [0, 1, 2, 1, 0])
        loss.backward()
        gradients = [weight.grad for weight in llm.model.parameters() if weight.grad is not None]
        found.append([loss.detach().reshape(1), *map(torch.flatten, gradients)])
    assert len(found[0]) == len(found[1]) > 1
    assert torch.allclose(torch.cat(found[0]), torch.cat(found[1]), atol=1e-4)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_of_any_kind_learns_in_both_stages(kind, encoders, tiny_llm, corpus_file, tmp_path):
    config = AlignConfig(
        encoder=encoders[kind], llm=tiny_llm, soft_tokens=2, hidden=16, layers=1, lora=2, encoder_lora=2, sentences=64,
        validation_rows=4, warmup_steps=1, learning_rate=1e-2,
    )  # fmt: skip
    run_align([corpus_file], tmp_path / "pair", config)
    pair, original = Pair.load(tmp_path / "pair"), Pair.fresh(encoders[kind], tiny_llm, hidden=16)
    aligned = pair.task_model.encode(SENTENCES[:8])
    assert not torch.allclose(aligned, original.task_model.encode(SENTENCES[:8]), atol=1e-3)
    assert torch.allclose(aligned.norm(dim=1), torch.ones(8), atol=1e-5)
    pair.task_model.set_classes(["today", "again"])
    targets = torch.tensor([[float(text.endswith(name)) for name in pair.task_model.classes] for text in SENTENCES[:8]])
    pair.task_model.fit(SENTENCES[:8], targets, torch.ones(8), FitSettings(2, encoder_learning_rate=1e-3))
    assert not torch.allclose(pair.task_model.encode(SENTENCES[:8]), aligned, atol=1e-3)


@pytest.mark.parametrize("learnt", ["gpt2"], indirect=True)
def test_a_pair_with_an_llm_of_its_own_can_be_trained_on(learnt, tmp_path):
    config = Pair.load(learnt.folder).config
    corpus = learnt.folder.parent / "corpus.txt"
    options = AlignConfig(
        encoder=config.encoder, llm=str(learnt.folder / "llm"), start=str(learnt.folder), train_llm=True, soft_tokens=4,
        hidden=128, layers=1, lower=0.0, learning_rate=1e-5, sentences=32, validation=str(corpus), validation_rows=8,
    )  # fmt: skip
    assert run_align([corpus], tmp_path / "further", options)["exact"] >= 0.8
    with pytest.raises(InputError, match="its llm is"):
        run_align([corpus], tmp_path / "other", dataclasses.replace(options, llm=config.llm))
    assert "all of whose weights were trained" in (tmp_path / "further" / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("given", "named"), [({"lora": 2}, "lora"), ({"dtype": "bfloat16"}, "bfloat16")])
def test_all_weights_and_something_less_are_refused_together(given, named):
    with pytest.raises(InputError, match=named):
        AlignConfig(train_llm=True, **given)


def test_soft_tokens_are_as_long_as_what_the_embedding_layer_gives(tmp_path, monkeypatch):
    """Some families scale their table by the square root of its width."""
    monkeypatch.setitem(GENERATORS, "bart", lambda size, ids: bart(size, {**ids, "scale_embedding": True}))
    scaled = SoftTokenLLM.from_pretrained(make_generator("bart", TINY, SENTENCES, tmp_path / "scaled"))
    monkeypatch.setitem(GENERATORS, "bart", bart)
    plain = SoftTokenLLM.from_pretrained(make_generator("bart", TINY, SENTENCES, tmp_path / "plain"))
    assert scaled.norm == pytest.approx(8 * plain.norm)


def test_an_llm_in_which_nothing_ends_a_text_is_refused(tmp_path, monkeypatch):
    endless = {name: token for name, token in SPECIAL.items() if name != "eos_token"} | {"sep_token": "<end>"}
    monkeypatch.setattr("studies.families.SPECIAL", endless)
    monkeypatch.setitem(GENERATORS, "gpt2", lambda size, ids: gpt2(size, {**ids, "eos_token_id": None}))
    with pytest.raises(InputError, match="no end-of-text token"):
        SoftTokenLLM.from_pretrained(make_generator("gpt2", TINY, SENTENCES, tmp_path / "endless"))
