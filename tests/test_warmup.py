"""Stage 2 where there are very many rows: what is encoded, and what is not."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from inversedmixup.errors import InputError
from inversedmixup.folds import folds_of, held_out_rows
from inversedmixup.judges import Case, JudgeConfig, judge_record, make_panel
from inversedmixup.judges.task import TaskJudge
from inversedmixup.labelled import class_names, class_shares
from inversedmixup.models import task_model
from inversedmixup.models.pair import Pair, PairOptions, read_config
from inversedmixup.models.task_model import FitSettings, TaskModel
from inversedmixup.same_text import words_of
from inversedmixup.schema import Example
from inversedmixup.stages import warmup
from inversedmixup.stages.warmup import WarmupConfig
from tiny import LABELS, SENTENCES, make_pair


@pytest.mark.parametrize("train_encoder", ["full", "head"])
def test_of_very_many_rows_stage_two_encodes_only_those_that_it_draws(tiny_pair, monkeypatch, train_encoder):
    many = [Example(str(at), f"{SENTENCES[at % 18]} {at}", LABELS[at % 18]) for at in range(400)]
    monkeypatch.setattr(warmup, "TAUGHT_ROWS", 24)
    monkeypatch.setattr(task_model, "HEAD_ROWS", 64)
    encoded, encode = [], TaskModel.encode

    def counted(self, texts, **options):
        encoded.append(len(texts))
        return encode(self, texts, **options)

    monkeypatch.setattr(TaskModel, "encode", counted)
    config = WarmupConfig(train_encoder=train_encoder, task_steps=4, follow_steps=2, refine_steps=1, tolerance=1.0)
    warmup.run_warmup(tiny_pair, many, sorted(set(LABELS)), config)
    assert max(encoded) <= 64
    encoded.clear()
    held_out = warmup.CrossValidation(lambda: copy.deepcopy(tiny_pair.task_model), many, sorted(set(LABELS)), config)
    asked = held_out([7, 399, 0])
    assert np.allclose(asked.sum(1), 1)
    assert max(encoded) <= 64
    encoded.clear()
    assert np.allclose(held_out([399]), asked[[1]])
    assert not encoded  # what was said is remembered


def test_unlabelled_texts_that_are_measured_on_are_not_replayed(tiny_pair, examples, tmp_path, monkeypatch):
    (tmp_path / "more.txt").write_text("the parcel is here\nThe secret, of the test!\n")
    config = WarmupConfig(train_encoder="head", refine_steps=0, tolerance=1.0, unlabelled=str(tmp_path / "more.txt"))
    encoded, encode = [], TaskModel.encode
    monkeypatch.setattr(TaskModel, "encode", lambda self, texts, **how: encoded.extend(texts) or encode(self, texts))
    warmup.run_warmup(tiny_pair, examples, sorted(set(LABELS)), config, unread={words_of("the secret of the test")})
    assert "the parcel is here" in encoded
    assert not any("secret" in text for text in encoded)


def test_only_the_folds_that_are_asked_about_are_fitted(tiny_pair, examples):
    made = []

    def fresh():
        made.append(1)
        return copy.deepcopy(tiny_pair.task_model)

    config = WarmupConfig(train_encoder="head", task_steps=2)
    held_out = warmup.CrossValidation(fresh, examples, sorted(set(LABELS)), config)
    rows = np.flatnonzero(folds_of(examples, seed=config.seed) == 1).tolist()
    assert held_out(rows).shape == (len(rows), 3)
    assert held_out([]).shape == (0, 3)
    assert len(made) == 1


def honest_probabilities(rng, classes):
    """Class probabilities of 4,000 rows, and classes drawn from them."""
    honest = warmup.softened(rng.dirichlet(np.full(classes, 0.3), 4000), 1.5)
    return honest, (honest.cumsum(1) > rng.random((4000, 1))).argmax(1)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(1.0, 8.0))
def test_a_temperature_makes_too_sure_probabilities_honest_and_none_surer(seed, classes, too_sure):
    rng = np.random.default_rng(seed)
    honest, true = honest_probabilities(rng, classes)
    claimed = honest**too_sure / (honest**too_sure).sum(1, keepdims=True)
    found = warmup.best_temperature(claimed, true)
    assert found == pytest.approx(too_sure, rel=0.15)
    assert np.allclose(warmup.softened(claimed, found).sum(1), 1)
    assert warmup.best_temperature(warmup.softened(honest, 3.0), true) == pytest.approx(1.0, abs=0.01)
    assert warmup.best_temperature(claimed, rng.integers(classes, size=4000)) <= warmup.HOTTEST


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(2.0, 8.0))
def test_a_cold_temperature_makes_timid_probabilities_honest_and_few_rows_prove_little(seed, classes, timid):
    honest, true = honest_probabilities(np.random.default_rng(seed), classes)
    claimed = warmup.softened(honest, timid)
    for smoothed in (False, True):
        found = warmup.best_temperature(claimed, true, coldest=0.05, smoothed=smoothed)
        assert found == pytest.approx(1 / timid, rel=0.15)
    right = np.eye(classes)[true[:10]] * 0.2 + 0.8 / classes  # ten rows, all of them right
    certain, doubted = (
        warmup.best_temperature(right, true[:10], coldest=0.05, smoothed=smoothed) for smoothed in (False, True)
    )
    assert certain <= 0.06 < doubted < 1


def test_a_fine_tuned_task_model_is_as_sure_as_the_rows_that_it_did_not_learn_from_allow(tiny_pair, examples):
    made, pair, untouched = [], tiny_pair, copy.deepcopy(tiny_pair)

    def fresh():
        made.append(1)
        return copy.deepcopy(untouched.task_model)

    classes, texts = sorted(set(LABELS)), [example.text for example in examples]
    # labels that no text tells, learnt by heart
    examples = [dataclasses.replace(row, label=classes[at * 7 % 5 % 3]) for at, row in enumerate(examples)]
    config = WarmupConfig(task_steps=60, head_learning_rate=0.1, follow_steps=0, refine_steps=0, tolerance=1.0)
    held_out = warmup.CrossValidation(fresh, examples, classes, config)
    record = warmup.run_warmup(pair, examples, classes, config, held_out)
    assert record["temperature"] == held_out.temperature > 1.05
    warmup.run_warmup(untouched_too := copy.deepcopy(untouched), examples, classes, config)
    sure = untouched_too.task_model.predict_proba(untouched_too.task_model.encode(texts))
    soft = pair.task_model.predict_proba(pair.task_model.encode(texts))
    assert np.allclose(soft, warmup.softened(sure, held_out.temperature), atol=1e-5)
    # the models that told it also say what the judge is worth
    fitted = len(made)
    said = held_out(TaskJudge(Case(pair, examples, classes, JudgeConfig(), config.seed, held_out)).unseen.tolist())
    assert len(made) == fitted <= 3
    assert said.max(1).mean() < held_out.raw(range(len(examples))).max(1).mean()


def test_a_head_on_a_frozen_encoder_is_left_as_sure_as_it_is(tiny_pair, examples):
    config = WarmupConfig(train_encoder="head")
    held_out = warmup.CrossValidation(lambda: pytest.fail("fitted"), examples, sorted(set(LABELS)), config)
    assert held_out.temperature == 1


def test_a_new_head_takes_nothing_from_the_callers_random_state(tiny_pair):
    before = torch.get_rng_state()
    tiny_pair.task_model.set_classes(["a", "b", "c"])
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(weight.any() for weight in tiny_pair.task_model.head.parameters())
    assert all(weight.requires_grad for weight in tiny_pair.task_model.head.parameters())


def test_what_no_row_says_anything_about_a_head_knows_nothing_of(tiny_pair):
    model = tiny_pair.task_model
    known = torch.eye(model.dim)[:2]  # two rows, and a direction at right angles to both
    model.set_classes(["a", "b"])
    model.fit(["one", "two"], torch.eye(2), torch.ones(2), FitSettings(steps=50, encoder=False), known=known)
    assert model.predict_proba(known).argmax(1).tolist() == [0, 1]
    unknown = model.predict_proba(torch.eye(model.dim)[2:])
    assert np.allclose(unknown, unknown[0], atol=1e-6)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(3, 5), st.integers(0, 3))  # of two classes scikit-learn penalises one vector
def test_a_head_on_a_frozen_encoder_is_logistic_regression(tiny_pair, seed, classes, order):
    rng = np.random.default_rng(seed)
    model, n, numbers = tiny_pair.task_model, 30, np.arange(30) % classes
    known = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, model.dim))).float(), dim=1)
    weights = rng.uniform(0.1, 2, n)
    wanted = LogisticRegression(C=10.0, max_iter=5000, tol=1e-8).fit(known.numpy(), numbers, sample_weight=weights)
    model.set_classes([str(number) for number in range(classes)])
    targets, how = torch.eye(classes)[torch.from_numpy(numbers)], FitSettings(1, seed=order, encoder=False)
    model.fit([""] * n, targets, torch.from_numpy(weights), how, known=known)
    assert np.allclose(model.predict_proba(known), wanted.predict_proba(known.numpy()), atol=2e-3)


def test_a_soft_target_counts_like_rows_of_each_class(tiny_pair):
    model, heads = tiny_pair.task_model, []
    known = model.encode(SENTENCES[:6])
    hard, share = torch.eye(2)[torch.tensor([0, 1, 0, 1, 0, 1])], torch.tensor([0.3, 0.7])
    soft = torch.cat([hard[:5], share[None]])
    twice = torch.cat([hard[:5], torch.eye(2)])
    for points, targets, weights in ((known, soft, torch.ones(6)),
                                     (known[[*range(6), 5]], twice, torch.cat([torch.ones(5), share]))):  # fmt: skip
        model.set_classes(["a", "b"])
        model.fit([""] * len(points), targets, weights, FitSettings(1, encoder=False), known=points)
        heads.append(model.head.weight.detach().clone())
    assert torch.allclose(*heads, atol=1e-4)


def test_a_head_that_draws_few_of_its_rows_learns_what_it_would_with_all_of_them_encoded(tiny_pair, monkeypatch):
    monkeypatch.setattr(task_model, "HEAD_ROWS", 64)
    model, targets = tiny_pair.task_model, torch.eye(2)[torch.arange(400) % 2]
    texts, heads = [f"{SENTENCES[at % 18]} {at}" for at in range(400)], []
    for known in (None, model.encode(texts)):
        model.set_classes(["a", "b"])
        model.fit(texts, targets, torch.ones(400), FitSettings(steps=5, encoder=False), known=known)
        heads.append(model.head.weight.detach().clone())
    assert torch.allclose(*heads, atol=1e-5)


def test_rows_that_do_not_count_leave_a_head_as_it_was(tiny_pair, monkeypatch):
    monkeypatch.setattr(task_model, "HEAD_ROWS", 64)
    model, heads = tiny_pair.task_model, []
    known, targets = model.encode(SENTENCES), torch.eye(3)[torch.arange(18) % 3]
    for extra in (0, 400):
        model.set_classes(["a", "b", "c"])
        points = torch.cat([known, torch.randn(extra, model.dim, generator=torch.Generator().manual_seed(0))])
        wanted = torch.cat([targets, torch.eye(3)[torch.zeros(extra, dtype=torch.long)]])
        weights = torch.cat([torch.ones(18), torch.zeros(extra)])
        model.fit([""] * len(points), wanted, weights, FitSettings(1, encoder=False), known=points)
        heads.append(model.head.weight.detach().clone())
    assert torch.equal(*heads)


@pytest.mark.parametrize("train_encoder", ["full", "head"])
def test_of_very_many_rows_the_task_model_sees_every_class_and_classes_count_as_they_do(
    tiny_pair, monkeypatch, train_encoder
):
    monkeypatch.setattr(task_model, "HEAD_ROWS", 32)
    labels = ["rare" if at % 200 == 7 else "often" if at % 4 else "seldom" for at in range(800)]
    rows = [Example(str(at), f"{SENTENCES[at % 18]} {at}", label) for at, label in enumerate(labels)]
    seen = {}

    def fit(self, texts, targets, weights, settings, **_):
        seen.update(texts=list(texts), targets=targets[torch.arange(len(texts))], weights=weights)

    monkeypatch.setattr(TaskModel, "fit", fit)
    config = WarmupConfig(train_encoder=train_encoder, task_steps=2)
    warmup.fit_task_model(tiny_pair.task_model, rows, class_names(rows), config, lambda _: None)
    shares = (seen["targets"] * seen["weights"][:, None]).sum(0) / seen["weights"].sum()
    assert len(seen["texts"]) == 32
    assert {rows[at].text for at in (7, 207, 407, 607)} <= set(seen["texts"])
    assert shares.numpy() == pytest.approx(class_shares(rows, class_names(rows)), abs=1e-6)
    assert all(target.argmax() == class_names(rows).index(rows[int(text.split()[-1])].label)
               for text, target in zip(seen["texts"], seen["targets"], strict=True))  # fmt: skip


@pytest.mark.parametrize("n", [65, 90, 400])
def test_rows_count_as_much_drawn_as_they_do_undrawn(monkeypatch, n):
    monkeypatch.setattr(task_model, "HEAD_ROWS", 64)
    rare = np.arange(n) % 13 == 0
    weights = np.where(rare, 0.5 / rare.sum(), 0.5 / (~rare).sum())
    shares = []
    for seed in range(50):
        rows, counts = task_model._drawn(weights, np.random.default_rng(seed))
        assert counts.sum() == pytest.approx(64 * weights.mean())  # that of as many rows
        assert len(set(rows.tolist())) == len(rows) <= 64
        shares.append(counts[rare[rows]].sum() / counts.sum())
    assert shares == pytest.approx([0.5] * 50, abs=1.01 / 64)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.01)


def test_a_head_is_penalised_alike_whatever_the_length_of_the_embeddings(tiny_pair):
    model, said = tiny_pair.task_model, []
    known, targets = model.encode(SENTENCES), torch.eye(3)[torch.arange(18) % 3]
    for length in (1.0, 5.0):
        model.set_classes(["a", "b", "c"])
        points = known * length
        model.fit([""] * 18, targets, torch.ones(18), FitSettings(1, encoder=False), known=points)
        said.append(model.predict_proba(points))
    assert np.allclose(*said, atol=1e-4)


def test_rows_that_count_more_are_drawn_more_often(monkeypatch):
    monkeypatch.setattr(task_model, "HEAD_ROWS", 200)
    weights = np.concatenate([np.ones(1000), np.full(1000, 0.1)])
    rows, counts = task_model._drawn(weights, np.random.default_rng(0))
    assert len(rows) == len(set(rows.tolist())) == 200
    assert 0.8 < (rows < 1000).mean() < 1
    assert np.ptp(counts) == 0


def test_the_only_row_of_a_class_is_not_held_out_against_who_has_never_seen_it():
    labels = ["a"] * 5 + ["b"] * 4 + ["c", "d"]
    rows = [Example(str(at), f"text {at}", label) for at, label in enumerate(labels)]
    rows += [Example("copy", "Text 9!", "c")]  # the same words are in the same fold, and teach nobody
    assert held_out_rows(rows, seed=0).tolist() == list(range(9))
    alone = [Example(str(at), f"text {at}", f"class {at}") for at in range(6)]
    assert held_out_rows(alone, seed=0).size == 0


def test_a_judge_is_not_blamed_for_classes_of_one_row(tiny_pair, examples):
    odd = [*examples, *(Example(f"odd-{at}", f"nothing like it {at}", f"odd {at}") for at in range(5))]
    classes = class_names(odd)
    for name in ("task", "probe"):
        case = Case(tiny_pair, odd, classes, JudgeConfig(), 0, cross_validated=lambda rows: np.ones((len(rows), 8)) / 8)
        assert judge_record(make_panel(name, case), odd, classes, seed=0)["n"] == len(examples)


def test_reconstruction_is_measured_on_texts_that_stage_two_does_not_read(tiny_pair, examples, tmp_path, monkeypatch):
    (tmp_path / "more.txt").write_text("".join(f"sentence number {at % 90}\n" for at in range(180)))
    measured, learnt = set(), set()
    evaluate, generation = warmup.evaluate_pair, warmup._generation

    def evaluated(pair, texts, *others, **options):
        measured.update(texts)
        return evaluate(pair, texts, *others, **options)

    def generated(pair, at, texts):
        learnt.update(texts)
        return generation(pair, at, texts)

    monkeypatch.setattr(warmup, "evaluate_pair", evaluated)
    monkeypatch.setattr(warmup, "_generation", generated)
    config = WarmupConfig(
        train_encoder="head", refine_steps=30, tolerance=1.0, unlabelled=str(tmp_path / "more.txt")
    )  # fmt: skip
    warmup.run_warmup(tiny_pair, examples, sorted(set(LABELS)), config)
    assert len(measured) == warmup.PROBED_ROWS
    assert not measured & learnt


def test_a_truncated_encoder_is_as_long_as_it_says(tiny_encoder, tmp_path):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(tiny_encoder, truncate_dim=8).save(str(tmp_path / "short"), create_model_card=False)
    assert TaskModel.from_pretrained(str(tmp_path / "short")).encode(["my parcel"]).shape == (1, 8)


def test_an_encoder_without_a_transformer_is_refused_in_one_line(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models

    words = StaticEmbedding(Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")), embedding_dim=4)
    SentenceTransformer(modules=[words], device="cpu").save(str(tmp_path / "static"), create_model_card=False)
    with pytest.raises(InputError, match="no transformer inside"):
        TaskModel.from_pretrained(str(tmp_path / "static"))


def test_empty_texts_alone_are_encoded(tiny_encoder):
    assert TaskModel.from_pretrained(tiny_encoder).encode(["", "  "]).isfinite().all()


def test_a_default_prompt_is_put_before_no_text_by_whoever_encodes(tiny_encoder, tmp_path, caplog):
    from sentence_transformers import SentenceTransformer

    prompted = SentenceTransformer(tiny_encoder, device="cpu", prompts={"query": "where is my parcel "})
    prompted.default_prompt_name = "query"
    prompted.save(str(tmp_path / "prompted"), create_model_card=False)
    model = TaskModel.from_pretrained(str(tmp_path / "prompted"))
    assert "'query' is put before no text" in caplog.text
    plain = TaskModel.from_pretrained(tiny_encoder).encode(["refund now"])[0]
    model.encoder.save(str(tmp_path / "again"), create_model_card=False)
    for encoder in (model.encoder, SentenceTransformer(str(tmp_path / "again"), device="cpu")):
        assert np.allclose(encoder.encode(["refund now"])[0], plain, atol=1e-6)
    assert torch.allclose(model.encode(["refund now"])[0], plain)


def test_an_encoder_of_the_right_direction_and_another_length_is_refused(tiny_pair_folder, tiny_encoder, tmp_path):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(modules=list(SentenceTransformer(tiny_encoder))[:2], device="cpu").save(
        str(tmp_path / "longer"), create_model_card=False
    )
    with pytest.raises(InputError, match=r"gives embeddings \d+\.\d\d times as long as"):
        Pair.load(tiny_pair_folder, encoder=str(tmp_path / "longer"))


def test_saving_a_pair_changes_nothing_of_it_and_a_saved_one_can_be_saved_again(tiny_pair_folder, tmp_path):
    pair = Pair.load(tiny_pair_folder)
    before = copy.deepcopy(pair.config)
    pair.save(tmp_path / "whole", encoder=True)
    assert pair.config == before
    Pair.load(tmp_path / "whole").save(tmp_path / "again", encoder=False)
    texts = ["the cat sat", "a dog ran"]
    assert torch.equal(Pair.load(tmp_path / "again").task_model.encode(texts), pair.task_model.encode(texts))


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_a_pair_with_models_of_its_own_takes_no_others(tiny_pair, tiny_encoder, tiny_llm, tmp_path, part):
    tiny_pair.config.own_llm = True
    tiny_pair.save(tmp_path, encoder=True)
    options = PairOptions(str(tmp_path), **{part: {"encoder": tiny_encoder, "llm": tiny_llm}[part]})
    for use in (options.load_pair, options.outside):
        with pytest.raises(InputError, match=f"^{part} .* carries its own {part}; leave the option away"):
            use()


def test_a_fitted_pair_is_named_wherever_its_encoder_lies(tiny_pair, tiny_encoder, tmp_path, caplog):
    tiny_pair.task_model.set_classes(["a", "b"])
    tiny_pair.save(tmp_path, encoder=False)
    PairOptions(str(tmp_path), encoder=tiny_encoder).warn_if_fitted()
    assert f"pair {tmp_path} has been fitted to labelled rows" in caplog.text


def test_a_pair_leaves_nothing_of_a_fitted_one_that_lay_there(tiny_pair_folder, tmp_path):
    fitted = Pair.load(tiny_pair_folder)
    fitted.task_model.set_classes(["a", "b"])
    fitted.config.own_llm = True
    fitted.save(tmp_path, encoder=True)
    (tmp_path / "notes.txt").write_text("somebody's")
    Pair.load(tiny_pair_folder).save(tmp_path, encoder=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adaptor.safetensors", "notes.txt", "pair.json"]
    assert list(read_config(tmp_path).files) == ["adaptor.safetensors"]
    Pair.load(tmp_path)


def test_a_pair_keeps_the_models_that_it_reads_where_it_is_saved(tiny_pair, tiny_encoder, tmp_path):
    tiny_pair.config.own_llm = True
    tiny_pair.save(tmp_path, encoder=False)
    make_pair(tiny_encoder, str(tmp_path / "llm")).save(tmp_path, encoder=False)
    assert not read_config(tmp_path).own_llm
    Pair.load(tmp_path)


def test_a_record_that_names_other_files_has_none_of_them_removed(tiny_pair, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("somebody's")
    tiny_pair.save(tmp_path / "pair", encoder=False)
    record = json.loads((tmp_path / "pair" / "pair.json").read_text())
    del record["sha256"]
    record["files"] |= {"../mine/notes.txt": "", f"{tmp_path}/mine/notes.txt": "", "notes.txt": ""}
    (tmp_path / "pair" / "pair.json").write_text(json.dumps(record))
    (tmp_path / "pair" / "notes.txt").write_text("somebody's")
    tiny_pair.save(tmp_path / "pair", encoder=False)
    assert (tmp_path / "mine" / "notes.txt").exists()
    assert (tmp_path / "pair" / "notes.txt").exists()
