"""Stage 2 where there are very many rows: what is encoded, and what is not."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from inversedmixup.data import Example
from inversedmixup.labelled import folds_of
from inversedmixup.models import task_model
from inversedmixup.models.task_model import FitSettings, TaskModel
from inversedmixup.stages import warmup
from inversedmixup.stages.warmup import WarmupConfig
from tiny import LABELS, SENTENCES


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


def test_rows_that_count_more_are_drawn_more_often(monkeypatch):
    monkeypatch.setattr(task_model, "HEAD_ROWS", 200)
    weights = np.concatenate([np.ones(1000), np.full(1000, 0.1)])
    rows, counts = task_model._drawn(weights, np.random.default_rng(0))
    assert len(rows) == len(set(rows.tolist())) == 200
    assert 0.8 < (rows < 1000).mean() < 1
    assert np.ptp(counts) == 0
