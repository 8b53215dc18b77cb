"""The word head: taught by align, weighs words while the LLM writes, follows a moved encoder."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inversedmixup import InversedMixup
from inversedmixup.cli import main
from inversedmixup.errors import InputError
from inversedmixup.intrusion import IntrusionConfig
from inversedmixup.mixing import interpolate
from inversedmixup.models.correction import CORRECTIONS, RATE, nearness
from inversedmixup.models.pair import Pair
from inversedmixup.models.sampling import GREEDY, Sampling
from inversedmixup.models.vllm import VllmDecoder
from inversedmixup.models.word_head import LIMIT, RAREST, WordHead
from inversedmixup.options import build
from inversedmixup.stages.align import AlignConfig, run_align
from inversedmixup.stages.augment import AugmentConfig
from inversedmixup.stages.lessons import Wording
from inversedmixup.stages.stream import Chunk
from inversedmixup.stages.writer import DecodeConfig, write_mixes
from tiny import SENTENCES, make_pair

QUICK = {
    "batch_size": 8, "chunk": 32, "validation_rows": 6, "validate_every": 1000, "warmup_steps": 2, "max_tokens": 8,
    "learning_rate": 1e-2,
}  # fmt: skip
GREEDY_8 = dataclasses.replace(GREEDY, max_tokens=8)


@pytest.fixture(scope="module")
def taught(tiny_encoder, tiny_llm, tmp_path_factory):
    """A pair that has learnt to write a little, the same pair once it has a word head, and how that was taught."""
    folder = tmp_path_factory.mktemp("taught")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES * 12), encoding="utf-8")
    shape = {"soft_tokens": 2, "hidden": 16, "layers": 1, "lora": 2, "encoder_lora": 2}
    run_align(
        [corpus], folder / "pair",
        build(AlignConfig, QUICK, shape, {"encoder": tiny_encoder, "llm": tiny_llm, "sentences": 40}),
    )  # fmt: skip
    config = build(AlignConfig, QUICK, {"teach": "words", "start": str(folder / "pair"), "sentences": 400})
    run_align([corpus], folder / "words", config)
    return folder, corpus, config


@pytest.fixture(scope="module")
def pair(taught):
    return Pair.load(taught[0] / "words")


@torch.no_grad()
def word_loss(pair, texts=SENTENCES):
    ids = pair.llm.targets(texts, 64)
    return pair.word_head.loss(pair.task_model.encode(texts), pair.word_head.present(ids)).mean().item()


def test_the_pair_stays_as_it_was_and_gains_a_word_head(taught, pair):
    folder, *_ = taught
    for name in ("adaptor.safetensors", "lora/adapter_model.safetensors", "encoder_lora/adapter_model.safetensors"):
        assert (folder / "pair" / name).read_bytes() == (folder / "words" / name).read_bytes()
    before = Pair.load(folder / "pair")
    assert (before.word_head, before.config.words) == (None, None)
    assert pair.config.words == pair.word_head.config
    assert pair.config.training["sentences"] == before.config.training["sentences"]
    assert 400 <= pair.config.training["words"]["sentences"] < 408
    wanted = pair.task_model.encode(SENTENCES)
    assert pair.invert(wanted, GREEDY_8, word_weight=0.0) == before.invert(wanted, GREEDY_8)
    assert not pair.llm.wordless() & set(pair.word_head.tokens.tolist())
    card = (folder / "words" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "the word head, in all its passes, 40" in card
    assert f"a word head that knows {pair.config.words.words} of its tokens" in card


def test_it_learns_which_words_a_sentence_holds(taught, pair):
    start = Pair.load(taught[0] / "pair")
    start.word_head = WordHead.for_texts(
        [ids[:-1] for ids in start.llm.targets(SENTENCES * 12, 64)],
        embedding_dim=start.task_model.dim, vocabulary=start.llm.vocabulary, seed=0,
    )  # fmt: skip
    assert word_loss(pair) < word_loss(start) / 2


def test_an_untaught_head_lifts_next_to_nothing_and_knows_how_common_words_are():
    texts = [[1, 2, 2], [1], [1, 3]] * RAREST
    head = WordHead.for_texts(texts, embedding_dim=4, vocabulary=6, seed=0)
    assert head.tokens.tolist() == [1, 2, 3]
    assert head.prior.sigmoid().tolist() == pytest.approx([1, 1 / 3, 1 / 3], abs=0.02)
    embeddings = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    lift = head.lift(torch.nn.functional.normalize(embeddings, dim=1))
    assert lift.shape == (5, 6)
    assert (lift[:, [0, 4, 5]] == 0).all()
    assert lift.abs().max() < 0.5
    with torch.no_grad():
        head.out.weight.mul_(1e4)
    assert head.lift(torch.ones(1, 4)).abs().max() == LIMIT


def test_punctuation_is_no_word(pair):
    names = pair.llm.tokenizer.convert_ids_to_tokens(sorted(pair.llm.wordless()))
    assert {"<end>", "<unk>", ":", "/", ".", ","} <= set(names)
    assert not {"Label", "refund", "a"} & set(names)


def test_rare_tokens_are_not_learnt_unless_there_are_no_others():
    kept = WordHead.for_texts([[5]] * RAREST + [[4]], embedding_dim=4, vocabulary=6, seed=0)
    few = WordHead.for_texts([[5], [4]], embedding_dim=4, vocabulary=6, seed=0)
    assert (kept.tokens.tolist(), few.tokens.tolist()) == ([5], [4, 5])


def test_making_a_head_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    WordHead.for_texts([[1]], embedding_dim=4, vocabulary=6, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_a_raised_word_is_written_and_then_counts_no_more(pair):
    soft = pair.adaptor(pair.task_model.encode(SENTENCES[:3])).detach()
    plain = pair.llm.decode(soft, GREEDY_8)
    word = next(word for word in ("password", "courier", "lamp") if not any(word in text for text in plain))
    lift = torch.zeros(3, pair.llm.vocabulary)
    lift[1, pair.llm.targets([word], 4)[0][0]] = 1000.0
    raised = pair.llm.decode(soft, GREEDY_8, lift=lift)
    assert raised[1].split()[0] == word
    assert raised[1].split().count(word) == 1
    assert [raised[0], raised[2]] == [plain[0], plain[2]]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_texts_do_not_depend_on_the_batch(pair, temperature):
    sampling = Sampling(temperature, max_tokens=8)
    wanted = pair.task_model.encode(SENTENCES)
    uniforms = np.random.default_rng(0).random((len(SENTENCES) * 3, 8))
    whole = pair.invert(wanted, sampling, uniforms, candidates=3)
    assert pair.invert(wanted, sampling, uniforms, candidates=3, batch_size=5) == whole


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_one_text_alone_is_written_as_among_others(pair, temperature):
    sampling = Sampling(temperature, max_tokens=8)
    wanted = pair.task_model.encode(SENTENCES[:3])
    uniforms = np.random.default_rng(0).random((3, 8))
    whole = pair.invert(wanted, sampling, uniforms)
    assert [pair.invert(wanted[at : at + 1], sampling, uniforms[at : at + 1])[0] for at in range(3)] == whole


def test_many_rows_are_judged_a_part_at_a_time(pair, monkeypatch):
    wanted, sampling = pair.task_model.encode(SENTENCES), Sampling(max_tokens=8)
    uniforms = np.random.default_rng(0).random((len(SENTENCES) * 2, 8))
    whole = pair.invert(wanted, sampling, uniforms, candidates=2)
    monkeypatch.setattr("inversedmixup.models.pair.LIFTED_ROWS", 8)
    assert pair.invert(wanted, sampling, uniforms, candidates=2) == whole


@torch.no_grad()
def test_correction_adds_up_what_the_texts_keep_lacking(pair, monkeypatch):
    wanted = pair.task_model.encode(SENTENCES)
    texts = pair.invert(wanted, GREEDY_8)
    found = pair.task_model.encode(texts)
    real, lifts = pair.llm.decode, []

    def decode(soft, sampling, **options):
        lifts.append(options["lift"])
        return real(soft, sampling, **options)

    monkeypatch.setattr(pair.llm, "decode", decode)
    pair.correct(wanted, texts, found, steps=2, max_tokens=8, word_weight=0.5)
    monkeypatch.undo()
    aim = pair.word_head.lift(wanted)
    first = 0.5 * aim + RATE * (aim - pair.word_head.lift(found))
    assert torch.allclose(lifts[0], first, atol=1e-4)
    again = pair.task_model.encode(pair.llm.decode(pair.adaptor(wanted), GREEDY_8, lift=first))
    assert torch.allclose(lifts[1], first + RATE * (aim - pair.word_head.lift(again)), atol=1e-4)


def test_corrected_texts_are_never_further_away_nor_depend_on_their_neighbours(pair, monkeypatch):
    wanted = pair.task_model.encode(SENTENCES)
    texts = pair.invert(wanted, GREEDY_8)
    found = pair.task_model.encode(texts)
    better, reread = pair.correct(wanted, texts, found, steps=4, max_tokens=8)
    before, after = (torch.nn.functional.cosine_similarity(one, wanted, dim=1) for one in (found, reread))
    assert (after >= before - 1e-6).all()
    assert (after > before + 0.01).any()
    assert torch.allclose(reread, pair.task_model.encode(better), atol=1e-5)
    for at in range(0, len(SENTENCES), 5):
        alone, _ = pair.correct(wanted[at : at + 1], texts[at : at + 1], found[at : at + 1], steps=4, max_tokens=8)
        assert alone == better[at : at + 1]
    monkeypatch.setattr("inversedmixup.models.pair.CORRECTED_ROWS", 7)
    assert pair.correct(wanted, texts, found, steps=4, max_tokens=8)[0] == better


def test_the_text_whose_ratio_is_right_is_preferred_among_equals(pair, monkeypatch):
    """Of two texts equally near to a mix, the one that does not lean to a parent is taken."""
    ends = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), dim=1)
    between = torch.nn.functional.normalize(torch.tensor([[0.5, 0.5, 0.4], [0.82, 0.45, 0.0]]), dim=1)
    mixed = interpolate(ends[:1], ends[1:], torch.tensor([0.5]), "linear")
    near = nearness(mixed)(between, torch.zeros(2, dtype=torch.long))
    assert near[0] < near[1]  # by the cosine alone the second text would be taken
    monkeypatch.setattr(pair, "invert", lambda *_, **__: ["between", "leaning"])
    monkeypatch.setattr(pair.task_model, "encode", lambda texts: between[: len(texts)])
    monkeypatch.setattr(pair.llm, "log_likelihood", lambda texts: np.zeros(len(texts)))
    config = build(DecodeConfig, {"candidates": 2, "max_tokens": 8, "correct": 0})
    written = write_mixes(pair, ends[:1], ends[1:], torch.tensor([0.5]), [np.random.default_rng(0)], config)
    assert written.texts == ["between"]
    assert written.lam_realised == [0.5]


def test_what_is_right_already_is_not_written_again(pair, monkeypatch):
    wanted = pair.task_model.encode(SENTENCES)
    monkeypatch.setattr(pair.llm, "decode", None)
    assert pair.correct(wanted, SENTENCES, wanted, steps=3, max_tokens=8)[0] == list(SENTENCES)


def test_a_text_is_better_than_none(pair):
    wanted = pair.task_model.encode(SENTENCES[:2])
    near = wanted + 0.01 * torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0))  # than any text
    texts, _ = pair.correct(wanted, ["", ""], near, steps=1, max_tokens=8)
    assert all(texts)


def test_a_weight_beyond_the_limit_is_not_cut_by_correction(pair, monkeypatch):
    wanted = pair.task_model.encode(SENTENCES[:2])
    found, lifts = pair.task_model.encode(["a", "b"]), []
    monkeypatch.setattr(pair.llm, "decode", lambda *_, **options: lifts.append(options["lift"]) or ["a", "b"])
    head = copy.deepcopy(pair.word_head)
    torch.nn.init.constant_(head.out.bias, 1000.0)
    monkeypatch.setattr(pair, "word_head", head)
    pair.correct(wanted, ["a", "b"], found, steps=1, max_tokens=8, word_weight=2.0)
    assert lifts[0].max() == 2 * LIMIT


def test_a_correction_that_leans_to_a_parent_is_refused(pair, monkeypatch):
    ends = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), dim=1)
    known = {"between": [0.5, 0.5, 0.4], "leaning": [0.82, 0.45, 0.0]}
    monkeypatch.setattr(pair.task_model, "encode", lambda texts: torch.tensor([known[text] for text in texts]))
    monkeypatch.setattr(pair, "invert", lambda *_, **__: ["between"])
    monkeypatch.setattr(pair, "adaptor", lambda wanted: wanted)
    monkeypatch.setattr(pair.word_head, "lift", lambda wanted: torch.zeros(len(wanted), 1))
    monkeypatch.setattr(pair.llm, "decode", lambda *_, **__: ["leaning"])
    monkeypatch.setattr(pair.llm, "log_likelihood", lambda texts: np.zeros(len(texts)))
    config = build(DecodeConfig, {"candidates": 1, "max_tokens": 8, "correct": 1})
    written = write_mixes(pair, ends[:1], ends[1:], torch.tensor([0.5]), [np.random.default_rng(0)], config)
    assert written.texts == ["between"]


def test_how_often_a_pair_corrects(pair, tiny_pair, monkeypatch):
    assert [pair.corrections(None, 0.7), pair.corrections(5, 0.0), pair.corrections(0, 0.7)] == [CORRECTIONS, 5, 0]
    assert pair.corrections(None, 0.0) == 0  # the LLM alone
    assert tiny_pair.corrections(None, 0.7) == 0
    monkeypatch.setattr(pair, "decoder", object())  # another engine writes
    assert pair.corrections(None, 0.7) == 0
    assert AugmentConfig().correct == IntrusionConfig().correct == 0


def test_invert_corrects_with_the_word_head_alone(taught, capsys):
    folder, corpus, _ = taught
    command = ["invert", str(corpus), "--rows", "9", "--max-tokens", "8", "--pair", str(folder / "words"), "--json"]
    assert main([*command, "--evaluate", "--correct", "3"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["corrected"]["decodes"] == 4
    assert result["corrected"]["cosine"] > result["greedy"]["cosine"]


def test_an_interrupted_lesson_resumes_to_the_same_head(taught, tmp_path, monkeypatch):
    folder, corpus, config = taught
    real, steps = Wording.backward, []

    def interrupted(self, *arguments):
        steps.append(1)
        if len(steps) == 30:  # in the second pass
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Wording, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_align([corpus], tmp_path, config)
    monkeypatch.undo()
    run_align([corpus], tmp_path, config)
    whole, resumed = (load_file(where / "words.safetensors") for where in (folder / "words", tmp_path))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.fixture
def lesson(taught, tmp_path):
    """The word head's lesson on the first chunk of its corpus, with a given share of mixes."""
    _, corpus, config = taught

    def make(mixed):
        wording = Wording(dataclasses.replace(config, mixed=mixed), tmp_path, [corpus], writes=False)
        texts = SENTENCES * 2
        return wording, Chunk(texts, np.arange(len(texts)), wording.pair.llm.targets(texts, 8))

    return make


def test_mixes_are_taught_as_holding_the_words_of_each_with_its_share(lesson, monkeypatch):
    wording, chunk = lesson(1.0)
    prepared = wording.prepare(0, chunk)
    assert prepared.lam.max() < 1
    seen = []
    monkeypatch.setattr(WordHead, "loss", lambda self, h, present: seen.append((h, present)) or self(h).sum(1))
    rows = np.array([3, 8])
    wording.backward(chunk, prepared, rows, 0, 2)
    (embeddings, present), lam = seen[0], prepared.lam[rows]
    first, second = (
        wording.head.present([chunk.targets[row] for row in these]) for these in (rows, prepared.other[rows])
    )
    assert torch.allclose(present, lam * first + (1 - lam) * second)
    assert torch.allclose(
        embeddings, interpolate(prepared.embeddings[rows], prepared.embeddings[prepared.other[rows]], lam[:, 0])
    )


def test_each_pass_mixes_anew_and_no_share_leaves_sentences_alone(lesson):
    wording, chunk = lesson(0.5)
    one, again, two = (wording.prepare(number, chunk) for number in (0, 0, 1))
    assert torch.equal(one.lam, again.lam)
    assert np.array_equal(one.other, again.other)
    assert not np.array_equal(one.other, two.other)
    assert 0 < (one.lam < 1).sum() < len(one.lam)
    assert torch.equal(one.embeddings, two.embeddings)
    assert (lesson(0.0)[0].prepare(0, chunk).lam == 1).all()


def test_presence_counts_known_tokens_once_and_others_not_at_all(pair):
    known = pair.word_head.tokens.tolist()
    unknown = next(token for token in range(pair.llm.vocabulary) if token not in known)
    found = pair.word_head.present([[known[2], unknown, known[2], known[0]], [], [unknown]])
    wanted = torch.zeros(3, len(known))
    wanted[0, [0, 2]] = 1
    assert torch.equal(found, wanted)


def test_stage_two_lets_it_follow_the_encoder_and_saves_it(taught, pair, examples, tmp_path):
    mixer = InversedMixup.from_pretrained(taught[0] / "words")
    texts, labels = [e.text for e in examples], [e.label for e in examples]
    mixer.fit(
        texts, labels, task_steps=30, encoder_learning_rate=3e-3, follow_steps=60, refine_steps=5,
        refine_learning_rate=3e-3, tolerance=1.0,
    )  # fmt: skip
    mixer.save_pretrained(tmp_path)
    again = Pair.load(tmp_path)
    stale = copy.deepcopy(again)
    stale.word_head = pair.word_head
    assert word_loss(again, texts) < word_loss(stale, texts)
    assert torch.equal(again.word_head.tokens, pair.word_head.tokens)
    assert not again.word_head.training


def test_training_on_leaves_a_head_behind_that_would_not_fit(taught, tmp_path):
    folder, corpus, _ = taught
    shape = {"soft_tokens": 2, "hidden": 16, "layers": 1, "lora": 2, "encoder_lora": 2}
    before = json.loads((folder / "words" / "pair.json").read_text(encoding="utf-8"))
    models = {"encoder": before["encoder"], "llm": before["llm"], "start": str(folder / "words"), "sentences": 16}
    run_align([corpus], tmp_path, build(AlignConfig, QUICK, shape, models))
    after = Pair.load(tmp_path)
    assert after.word_head is None
    assert "words" not in after.config.training


def test_a_head_is_taught_further_where_the_pair_has_one(taught, pair, tmp_path):
    folder, corpus, config = taught
    on = dataclasses.replace(config, start=str(folder / "words"), sentences=16, learning_rate=1e-4)
    run_align([corpus], tmp_path, on)
    further = Pair.load(tmp_path)
    assert word_loss(further) == pytest.approx(word_loss(pair), rel=0.2)  # not from the beginning
    assert further.config.training["words"]["sentences"] == pair.config.training["words"]["sentences"] + 16


def test_the_pair_may_not_change_under_a_lesson(taught, tmp_path):
    from inversedmixup.models.pair import copy_pair

    folder, corpus, config = taught
    copy_pair(folder / "pair", tmp_path / "pair")
    config = dataclasses.replace(config, start=str(tmp_path / "pair"), sentences=8)
    run_align([corpus], tmp_path / "words", config)
    run_align([corpus], tmp_path / "words", config)
    copy_pair(folder / "words", tmp_path / "pair")
    with pytest.raises(InputError, match="start_sha256"):
        run_align([corpus], tmp_path / "words", config)


def test_no_pair_to_teach_is_refused(taught, tmp_path):
    _, corpus, config = taught
    with pytest.raises(InputError, match="--teach words needs a trained pair"):
        run_align([corpus], tmp_path, dataclasses.replace(config, start=None))


def test_a_damaged_head_is_refused_by_file(taught, tmp_path):
    from inversedmixup.models.pair import copy_pair

    copy_pair(taught[0] / "words", tmp_path)
    (tmp_path / "words.safetensors").write_bytes((tmp_path / "words.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"words.safetensors: damaged"):
        Pair.load(tmp_path)


def test_the_weight_of_words_is_a_flag(taught, capsys):
    folder, corpus, _ = taught
    command = ["invert", str(corpus), "--rows", "6", "--max-tokens", "8", "--json", "--temperature", "0"]
    texts = []
    for more in (["--pair", str(folder / "words")], ["--pair", str(folder / "pair")]):
        assert main([*command, *more, "--word-weight", "0", "--evaluate"]) == 0
        texts.append(json.loads(capsys.readouterr().out.splitlines()[-1])["greedy"])
    assert texts[0] == texts[1]
    assert main([*command, "--pair", str(folder / "words"), "--word-weight", "-1"]) == 2
    assert "word" in capsys.readouterr().err


def test_augment_writes_with_the_llm_alone_unless_told(taught, examples):
    mixer = InversedMixup.from_pretrained(taught[0] / "words")
    mixer.fit(
        [e.text for e in examples], [e.label for e in examples], train_encoder="head", task_steps=2, refine_steps=0
    )
    quick = {"n": 8, "labels": "soft", "tries": 1, "max_tokens": 8, "accept_labels": "any"}
    texts = [mixer.augment(**quick, **more)["text"] for more in ({}, {"word_weight": 0.0}, {"word_weight": 0.7})]
    assert texts[0] == texts[1] != texts[2]


def test_stage_two_runs_with_an_engine_that_cannot_weigh_words(taught, examples):
    class Alone:
        """Takes what vLLM takes."""

        def __init__(self, llm):
            self.llm = llm

        def decode(self, *arguments, lift=None, **more):
            assert lift is None
            return self.llm.decode(*arguments, **more)

    mixer = InversedMixup.from_pretrained(taught[0] / "words")
    mixer.models_.decoder = Alone(mixer.models_.llm)
    mixer.fit(
        [e.text for e in examples],
        [e.label for e in examples],
        task_steps=2,
        follow_steps=1,
        refine_steps=1,
        tolerance=1,
    )
    assert mixer.augment(n=4, labels="soft", tries=1, max_tokens=8, accept_labels="any").num_rows


def test_no_words_at_all_is_bad_input():
    with pytest.raises(InputError, match="no words to teach"):
        WordHead.for_texts([[], []], embedding_dim=4, vocabulary=6, seed=0)


def test_an_engine_that_cannot_weigh_words_says_so(tiny_encoder, tiny_llm):
    pair = make_pair(tiny_encoder, tiny_llm)
    engine = VllmDecoder(pair.llm, engine=None, params=None)
    with pytest.raises(InputError, match="--word-weight 0"):
        engine.decode(torch.zeros(1, 2, pair.llm.dim), lift=torch.zeros(1, pair.llm.vocabulary))
