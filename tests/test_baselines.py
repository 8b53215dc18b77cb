"""What augmentation is compared with: what each method may do to a text, a batch, a model."""

import collections
import dataclasses
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inversedmixup.baselines import BASELINE, Split, aeda, eda, methods, ssmix, tmix
from inversedmixup.baselines.batches import mix_rows, unite_masks
from inversedmixup.baselines.edits import edited, recommended
from inversedmixup.baselines.sentence_mixup import mix_sentences
from inversedmixup.baselines.tmix import HiddenMixer, layers_of, mix_hidden
from inversedmixup.baselines.word_mixup import mix_words
from inversedmixup.benchmark import BenchmarkConfig, run_all
from inversedmixup.benchmark.cells import Bench
from inversedmixup.errors import InputError
from inversedmixup.models import task_model
from inversedmixup.models.task_model import FitSettings, TaskModel
from inversedmixup.options import build
from tiny import LABELS, SENTENCES, make_encoder

TEXTS = ["where is my parcel", "please give me my money back", "refund", "log in fails every time"]
WORDS = st.lists(st.text("abcdeé'’-.", min_size=1, max_size=6), min_size=1, max_size=12)
KINDS = ("bert", "mpnet", "roberta", "distilbert")
MIXERS = {
    "word-mixup": lambda: mix_words, "sentence-mixup": lambda: mix_sentences,
    "tmix": lambda: HiddenMixer(0.4), "ssmix": lambda: ssmix.SpanMixer(0),
}  # fmt: skip


def lexicon(word):
    """Two synonyms for every word."""
    return [f"{word}-one", f"{word}-two"]


class FixedBeta:
    """A generator whose Beta draws are all the same, and whose permutation turns the batch round."""

    def __init__(self, lam):
        self.lam, self.rng = lam, np.random.default_rng(0)

    def beta(self, *_, size=None):
        return self.lam if size is None else np.full(size, self.lam)

    def permutation(self, rows):
        return np.arange(rows)[::-1].copy()

    def choice(self, *args, **options):
        return self.rng.choice(*args, **options)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return {kind: make_encoder(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def model(encoders, request):
    model = TaskModel.from_pretrained(encoders[request.param])
    model.set_classes(["a", "b", "c"])
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))  # no gradient passes one of 0
    return model


@pytest.fixture
def targets():
    return torch.eye(3)[[0, 1, 1, 2]]


@pytest.fixture
def split(examples):
    def make(**options):
        config = build(BenchmarkConfig, {"downstream_steps": 40, **options})
        return Split(examples, sorted(set(LABELS)), config, lambda: None, None, "000")

    return make


def test_what_classes_mean_is_one_more_row_of_each(split, tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text("refund: money back\n")
    made = split(descriptions=str(path))
    added = methods()["descriptions"].added(made)
    assert dict(zip(added.texts, added.targets.argmax(1), strict=True)) == {
        "account": 0,
        "delivery": 1,
        "money back": 2,
    }
    assert added.weight == 1
    made.examples[:] = [example for example in made.examples if example.label != "account"]
    assert methods()["descriptions"].added(made).texts == ["delivery", "money back"]


# ---- texts -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(WORDS, st.integers(0, 2**32))
def test_aeda_only_adds_marks_at_most_a_third(words, seed):
    changed = aeda.punctuate(words, np.random.default_rng(seed))
    rest = collections.Counter(changed) - collections.Counter(words)
    assert set(rest) <= set(aeda.MARKS)
    assert 1 <= len(changed) - len(words) <= max(1, len(words) // 3)
    queue = iter(changed)
    assert all(any(word == found for found in queue) for word in words), "the words are in another order"


@settings(deadline=None)
@given(WORDS, st.integers(0, 2**32), st.floats(0, 1))
def test_eda_without_a_lexicon_only_uses_the_words_and_leaves_one(words, seed, alpha):
    changed = eda.edit(words, np.random.default_rng(seed), alpha=alpha, synonyms=None)
    assert changed
    assert {eda._core(word) or word for word in changed} <= {eda._core(word) or word for word in words}


@settings(deadline=None)
@given(WORDS, st.integers(0, 2**32))
def test_swaps_keep_the_words_and_deletions_their_order(words, seed):
    assert sorted(eda.swap(words, 2, np.random.default_rng(seed))) == sorted(words)
    kept, queue = eda.delete(words, 0.5, np.random.default_rng(seed)), iter(words)
    assert kept
    assert all(any(word == found for found in queue) for word in kept)
    assert len(eda.delete(words, 1.0, np.random.default_rng(seed))) == 1


@settings(deadline=None)
@given(WORDS, st.integers(0, 2**32), st.integers(1, 4))
def test_synonyms_replace_so_many_words_and_no_stop_words(words, seed, count):
    words = [*words, "the", "(Parcel)!"]
    changed = eda.replace(words, count, lexicon, np.random.default_rng(seed))
    different = [(old, new) for old, new in zip(words, changed, strict=True) if old != new]
    assert len(different) == min(count, sum(bool(eda._core(word)) for word in words))
    for old, new in different:
        assert f"{eda._core(old)}-" in new
        assert old != "the"
    assert changed[-1] in ("(Parcel)!", "(parcel-one)!", "(parcel-two)!")


def test_insertions_are_synonyms_of_words_that_are_there():
    changed = eda.insert(["the", "parcel"], 3, lexicon, np.random.default_rng(0))
    assert len(changed) == 5
    assert set(changed) - {"the", "parcel"} <= {"parcel-one", "parcel-two"}
    assert eda.insert(["the"], 3, lexicon, np.random.default_rng(0)) == ["the"]


def test_without_nltk_eda_says_so_once_and_goes_on(monkeypatch, caplog):
    eda.wordnet_synonyms.cache_clear()
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    assert eda.wordnet_synonyms() is None
    assert eda.wordnet_synonyms() is None
    assert caplog.text.count("WordNet is not there") == 1
    eda.wordnet_synonyms.cache_clear()


def test_wordnet_knows_synonyms_where_it_is_installed():
    if (synonyms := eda.wordnet_synonyms()) is None:
        pytest.skip("WordNet is not installed (make wordnet)")
    assert "refund" not in synonyms("refund")
    assert {"repayment", "give back"} <= set(synonyms("refund"))
    assert synonyms("qqqq") == []


def test_eda_recommends_more_copies_and_fewer_changes_for_fewer_rows():
    assert recommended(60) == (0.05, 16)
    assert recommended(500) == (0.05, 16)
    assert recommended(2000) == (0.05, 8)
    assert recommended(20_000) == (0.1, 4)


@pytest.mark.parametrize(("synonyms", "said"), [(lexicon, "WordNet"), (None, "none")])
def test_eda_says_whether_it_has_synonyms(monkeypatch, synonyms, said):
    monkeypatch.setattr(eda, "wordnet_synonyms", lambda: synonyms)
    assert methods()["eda"].facts() == {"synonyms": said}


@pytest.mark.parametrize("name", ["eda", "aeda"])
def test_the_same_seed_gives_the_same_rows_and_more_steps_do_not_change_the_first(name, split):
    added = methods()[name].added
    first, again, fewer = added(split()), added(split()), added(split(downstream_steps=4, n=6))
    assert first.texts == again.texts
    assert len(first.texts) == 16 * len(SENTENCES) > len(fewer.texts) == 4 * 16 - len(SENTENCES)
    assert (first.weight == 1).all()
    assert fewer.texts == first.texts[: len(fewer.texts)]
    assert added(split(seed=1)).texts != first.texts
    assert all(text.strip() for text in first.texts)
    np.testing.assert_allclose(first.targets.sum(1), 1)


def test_a_row_is_labelled_as_the_text_it_was_made_of(split):
    label_of = dict(zip(SENTENCES, LABELS, strict=True))
    made = edited(split(), 5, lambda words, rng: words)
    classes = sorted(set(LABELS))
    assert [label_of[text] for text in made.texts] == [classes[at] for at in made.targets.argmax(1)]


@pytest.mark.parametrize("name", ["eda", "aeda"])
def test_as_many_copies_are_made_as_other_methods_add_where_steps_leave_room_for_fewer(name, split):
    large = dataclasses.replace(split(), examples=split().examples * 134)
    assert len(large.examples) > 150 * FitSettings.batch_size
    assert len(methods()[name].added(large).texts) == split().config.n == 100
    few = methods()[name].added(split(downstream_steps=1, n=400))
    assert len(few.texts) == 16 * len(SENTENCES)


@pytest.mark.parametrize("name", ["eda", "aeda"])
def test_a_copy_counts_as_much_as_its_original(name, split):
    uneven = dataclasses.replace(split(class_weights=True), examples=split().examples[:-4])
    added = methods()[name].added(uneven)
    counts = np.array([2, 6, 6])  # account, delivery, refund
    np.testing.assert_allclose(added.weight, (14 / (3 * counts))[added.targets.argmax(1)])


# ---- batches ---------------------------------------------------------------------------------------------------------


def fitted(model, weights, mixer):
    """The model's head after a few steps on four rows."""
    targets = torch.eye(3)[[0, 1, 1, 2]]
    model.fit(TEXTS, targets, weights, FitSettings(steps=4, batch_size=4), mixer=mixer)
    return model.head.weight.detach()


def test_rows_that_are_not_mixed_are_trained_on_as_without_a_mixer(encoders):
    def head(weights, mixer):
        model = TaskModel.from_pretrained(encoders["bert"])
        model.set_classes(["a", "b", "c"])
        return fitted(model, weights, mixer)

    def unmixed(model, texts, known, targets, rng):
        return model(texts), targets

    alike, uneven = torch.ones(4), torch.tensor([2.0, 0.5, 0.7, 1.3])
    assert torch.equal(head(alike, None), head(alike, unmixed))
    assert torch.equal(head(uneven, None), head(uneven, unmixed))
    assert not torch.equal(head(alike, None), head(uneven, None))


def test_a_class_counts_as_much_in_mixes_as_in_its_rows(model, monkeypatch):
    seen, real, weights = [], task_model._cross_entropy, torch.tensor([2.0, 0.5, 0.7, 1.3])
    monkeypatch.setattr(task_model, "_cross_entropy", lambda *args: seen.append(args[1:]) or real(*args))
    fitted(model, weights, HiddenMixer(1.0))
    for wanted, weight in seen:
        torch.testing.assert_close(wanted.sum(1), torch.ones(4))
        torch.testing.assert_close((wanted * weight[:, None]).sum(0), torch.tensor([2.0, 1.2, 1.3]))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
def test_a_mix_of_rows_that_count_alike_counts_one_to_the_bit(shares):
    mixed = mix_rows(torch.eye(3)[[0, 1, 1, 2]], torch.tensor([1, 2, 3, 0]), torch.tensor(shares))
    assert (mixed.sum(1) == 1).all()


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=4, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))
def test_a_mix_has_tokens_where_one_of_both_has_and_a_row_without_a_share_has_none(one, other):
    mask, partner = torch.tensor([one, other]), torch.tensor([1, 0])
    additive = torch.where(mask, 0.0, torch.finfo(torch.float32).min)[:, None, None, :].expand(2, 1, 4, 4)
    for lam, wanted in ((0.3, mask[0] | mask[1]), (1.0, mask[0]), (0.0, mask[1])):
        share = torch.full((2,), lam)
        assert torch.equal(unite_masks(mask, partner, share)[0], wanted)
        assert torch.equal(unite_masks(mask.long(), partner, share)[0], wanted.long())
        assert torch.equal(unite_masks(additive, partner, share)[0, 0, 0] == 0, wanted)


@pytest.mark.parametrize("name", ["word-mixup", "sentence-mixup", "tmix"])
@pytest.mark.parametrize("lam", [1.0, 0.0])
def test_a_row_with_the_whole_share_is_not_mixed(model, targets, name, lam):
    embeddings, wanted = MIXERS[name]()(model, TEXTS, None, targets, FixedBeta(lam))
    turned = lam == 0 and name != "tmix"  # which takes the larger of λ and 1 − λ
    plain = model(TEXTS)
    torch.testing.assert_close(embeddings, plain.flip(0) if turned else plain, atol=1e-5, rtol=0)
    assert torch.equal(wanted, targets.flip(0) if turned else targets)


def test_a_hidden_mix_is_the_same_alone_and_in_a_batch(model):
    """The shorter of two texts reads its own tokens below the layer and those of both above it."""
    texts, lam = [TEXTS[2], TEXTS[1]], torch.tensor([0.5, 0.5])
    partner = torch.tensor([1, 0])
    for depth in (1, 2):
        alone = mix_hidden(model, texts, layers_of(model), depth, partner, lam)
        torch.testing.assert_close(alone[0], alone[1], atol=1e-5, rtol=0)  # at one half both orders are the same mix
        longer = [*texts, SENTENCES[9] + " " + SENTENCES[3]]
        padded = mix_hidden(
            model, longer, layers_of(model), depth, torch.tensor([1, 0, 2]), torch.tensor([0.5, 0.5, 1])
        )
        torch.testing.assert_close(padded[:2], alone, atol=1e-5, rtol=0)
        assert (alone[0] - model([texts[0]])[0]).abs().max() > 1e-3


def test_a_mix_after_the_last_layer_averages_the_tokens_of_both(model):
    texts, lam = [TEXTS[2], TEXTS[1]], torch.tensor([0.8, 0.8])
    mixed = mix_hidden(model, texts, layers_of(model), 2, torch.tensor([1, 0]), lam)
    features = model.features(texts)
    mask = features["attention_mask"]
    states = next(model.encoder.children())(features)["token_embeddings"] * mask.unsqueeze(-1)
    mean = (0.8 * states[0] + 0.2 * states[1]).sum(0) / (mask[0] | mask[1]).sum()
    torch.testing.assert_close(mixed[0], mean / mean.norm(), atol=1e-5, rtol=0)


def test_hidden_mixing_leaves_no_hook_behind(model, targets):
    before = model(TEXTS)
    HiddenMixer(1.0)(model, TEXTS, None, targets, np.random.default_rng(0))
    assert torch.equal(model(TEXTS), before)
    with pytest.raises(IndexError):
        mix_hidden(model, TEXTS, layers_of(model), 1, torch.tensor([9] * 4), torch.full((4,), 0.5))
    assert torch.equal(model(TEXTS), before)


@pytest.mark.parametrize("name", MIXERS)
def test_a_truncated_encoder_is_mixed_at_the_length_that_it_says(encoders, targets, name, tmp_path):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(encoders[KINDS[0]], truncate_dim=8).save(str(tmp_path), create_model_card=False)
    model = TaskModel.from_pretrained(str(tmp_path))
    model.set_classes(["a", "b", "c"])
    embeddings, _ = MIXERS[name]()(model, TEXTS, None, targets, np.random.default_rng(3))
    assert embeddings.shape[1] == model.dim == 8


@pytest.mark.parametrize("name", MIXERS)
def test_both_protocols_see_the_same_mixes_at_the_same_weights(model, targets, name):
    learning, wanted = MIXERS[name]()(model, TEXTS, None, targets, np.random.default_rng(3))
    frozen, same = MIXERS[name]()(model, TEXTS, model.encode(TEXTS), targets, np.random.default_rng(3))
    torch.testing.assert_close(learning.detach(), frozen, atol=1e-5, rtol=0)
    assert torch.equal(wanted, same)
    torch.testing.assert_close(wanted.sum(1), torch.ones(len(wanted)))
    again, _ = MIXERS[name]()(model, TEXTS, None, targets, np.random.default_rng(3))
    assert torch.equal(again, learning)


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_reach_the_encoder_only_where_it_learns(model, targets, name):
    weights = {key: value for key, value in model.encoder.named_parameters() if "pooler" not in key}
    for known in (model.encode(TEXTS), None):
        embeddings, wanted = MIXERS[name]()(model, TEXTS, known, targets, np.random.default_rng(0))
        assert all(value.grad is None for value in weights.values()), "the mixer left gradients behind"
        (-(wanted * model.logits(embeddings).log_softmax(-1)).sum()).backward()
        reached = {key for key, value in weights.items() if value.grad is not None and value.grad.abs().sum() > 0}
        assert bool(reached) == (known is None)
        if known is None:
            assert any("word_embeddings" in key for key in reached)
        model.zero_grad(set_to_none=True)


def test_ssmix_puts_the_most_salient_span_in_place_of_the_least(model):
    ids = torch.tensor([[1, 10, 11, 12, 2, 0], [1, 20, 21, 22, 23, 2]])
    own = [np.array([1, 2, 3]), np.array([1, 2, 3, 4])]
    saliency = [np.array([0.5, 0.1, 0.9]), np.array([0.2, 0.3, 0.8, 0.1])]
    mixed, share = ssmix.splice(ids, own, saliency, torch.tensor([1, 0]))
    assert mixed.tolist() == [[1, 10, 22, 12, 2, 0], [1, 20, 21, 22, 12, 2]]
    assert share.tolist() == pytest.approx([1 / 3, 1 / 4])
    nothing, share = ssmix.splice(ids, [own[0], own[1][:0]], [saliency[0], np.empty(0)], torch.tensor([1, 0]))
    assert torch.equal(nothing, ids)
    assert share.tolist() == [0, 0]


@settings(deadline=None)
@given(st.data())
def test_an_ssmix_label_is_the_share_of_tokens(data):
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=2))
    ids = torch.stack([torch.arange(50), 100 + torch.arange(50)])
    own = [np.arange(length) for length in lengths]
    saliency = [np.array(data.draw(st.lists(st.floats(0, 9), min_size=n, max_size=n))) for n in lengths]
    mixed, share = ssmix.splice(ids, own, saliency, torch.tensor([1, 0]))
    for row, length in enumerate(lengths):
        foreign = (mixed[row, :length] // 100 != row).sum().item()
        assert share[row].item() == pytest.approx(foreign / length)
        assert foreign == max(1, min(length // 10, lengths[1 - row]))
        assert torch.equal(mixed[row, length:], ids[row, length:])


def test_saliency_is_the_gradient_of_each_texts_own_loss(model, targets):
    together, embeddings = ssmix.read_saliency(model, TEXTS, targets, learning=False)
    torch.testing.assert_close(embeddings.detach(), model.encode(TEXTS), atol=1e-5, rtol=0)
    for row, text in enumerate(TEXTS):
        (alone,), _ = ssmix.read_saliency(model, [text], targets[row : row + 1], learning=False)
        assert len(alone) == len(text.split())
        np.testing.assert_allclose(together[row], alone, rtol=1e-3, atol=1e-5)


def test_ssmix_starts_without_mixing_and_reads_a_frozen_texts_saliency_once(model, targets, monkeypatch):
    mixer, known, asked = ssmix.SpanMixer(1), model.encode(TEXTS), []
    real = ssmix.read_saliency
    monkeypatch.setattr(
        ssmix, "read_saliency", lambda m, texts, *a, **k: asked.append(texts) or real(m, texts, *a, **k)
    )
    first, wanted = mixer(model, TEXTS, known, targets, np.random.default_rng(0))
    assert torch.equal(first, known)
    assert torch.equal(wanted, targets)
    for part in (slice(0, 3), slice(1, 4)):
        embeddings, wanted = mixer(model, TEXTS[part], known[part], targets[part], np.random.default_rng(0))
        assert torch.equal(embeddings[:3], known[part])
        assert len(wanted) == 6
    assert asked == [TEXTS[:3], TEXTS[3:]]


def test_tmix_draws_the_papers_layers_for_an_encoder_of_any_depth(model, targets, monkeypatch):
    seen = set()
    monkeypatch.setattr(tmix, "mix_hidden", lambda *args: seen.add(args[3]) or torch.zeros(4, model.dim))
    rng = np.random.default_rng(0)
    for _ in range(30):
        _, wanted = HiddenMixer(16.0)(model, TEXTS, None, targets, rng)
        assert (wanted * targets).sum(1).min() >= 0.5
    assert seen == {1, 2}


def test_an_encoder_without_a_transformer_is_refused_by_name(encoders, targets):
    model = TaskModel.from_pretrained(encoders["bert"])
    model.set_classes(["a", "b", "c"])
    model.encoder = torch.nn.Sequential()
    model.encoder.transformers_model = None
    with pytest.raises(InputError, match=r"tmix.*no transformer inside"):
        layers_of(model)


def test_tmix_refuses_an_encoder_whose_layers_share_one_mask(encoders):
    model = TaskModel.from_pretrained(encoders["bert"])
    model.transformer.config.model_type = "t5"
    with pytest.raises(InputError, match=r"tmix: encoder .* is of type t5.*leave the method away"):
        layers_of(model)


# ---- every method, end to end ----------------------------------------------------------------------------------------


FAST = sorted(name for name, method in methods().items() if not method.writes and not method.classify)


@pytest.mark.parametrize(
    ("name", "protocol"), [(name, "head") for name in sorted(methods())] + [(name, "full") for name in FAST]
)
def test_every_method_runs_and_says_what_it_is(name, protocol, train_file, tmp_path, tiny_pair_folder):
    config = build(
        BenchmarkConfig,
        {
            "pair": tiny_pair_folder, "splits": 1, "draw": "cv", "methods": name, "n": 6, "tries": 2.0, "candidates": 1,
            "max_tokens": 8, "task_steps": 2, "follow_steps": 1, "refine_steps": 1, "downstream_steps": 4,
            "min_cycle": -1.0, "fluency_margin": 99.0, "tolerance": 1.0, "judge_steps": 2, "train_encoder": protocol,
            "unlabelled": str(train_file) if name == "pseudo-label" else None,
        },
    )  # fmt: skip
    records = run_all(Bench(str(train_file), None, str(tmp_path / "out"), config))
    assert [record["method"] for record in records] == list(dict.fromkeys([BASELINE, name]))
    assert methods()[name].about
    for record in records:
        assert 0 <= record["accuracy"] <= 1
        assert np.isfinite(record["nll"])
