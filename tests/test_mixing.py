from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inversedmixup.errors import InputError
from inversedmixup.mixing import (
    INTERPOLATIONS,
    PAIR_POLICIES,
    PairSampler,
    interpolate,
    parse_lambda,
    realised_ratio,
    row_stream,
    sample_lambda,
    soft_label,
)

ratio = st.floats(0, 1)
LABELS = ["a"] * 7 + ["b"] * 2 + ["c"]


def unit(seed, n=5, d=8):
    rows = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))
    return rows / rows.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("spec", ["0.3", 0.3, "beta:0.4", "uniform:0.2,0.8", "grid:0,0.25,1"])
@given(row=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_lambda_is_a_ratio_and_depends_on_seed_and_row_alone(spec, row):
    policy = parse_lambda(spec)
    first, again = (sample_lambda(policy, row, row_stream(3, row)) for _ in range(2))
    assert 0 <= first <= 1
    assert first == again


def test_grid_is_walked_through_by_row_number():
    policy = parse_lambda("grid:0,0.5,1")
    assert [sample_lambda(policy, row, row_stream(0, row)) for row in range(4)] == [0, 0.5, 1, 0]


def test_uniform_stays_within_its_bounds():
    policy = parse_lambda("uniform:0.2,0.3")
    assert all(0.2 <= sample_lambda(policy, row, row_stream(0, row)) <= 0.3 for row in range(50))


@pytest.mark.parametrize(
    "spec", ["", "1.1", "-0.1", "beta:0", "beta:x", "uniform:0.8,0.2", "uniform:0.1", "grid:", "nan"]
)
def test_a_bad_lambda_is_refused_and_named(spec):
    with pytest.raises(InputError, match="lam"):
        parse_lambda(spec)


@pytest.mark.parametrize("how", INTERPOLATIONS)
@given(seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_interpolation_starts_and_ends_at_the_parents(how, seed):
    a, b = unit(seed), unit(seed + 1000)
    assert torch.allclose(interpolate(a, b, torch.ones(5), how), a, atol=1e-6)
    assert torch.allclose(interpolate(a, b, torch.zeros(5), how), b, atol=1e-6)


@pytest.mark.parametrize("how", ["renormalised", "slerp"])
@given(seed=st.integers(0, 99), lam=ratio)
@settings(max_examples=20, deadline=None)
def test_round_interpolations_stay_on_the_sphere(how, seed, lam):
    mixed = interpolate(unit(seed), unit(seed + 1000), torch.full((5,), lam), how)
    assert torch.allclose(mixed.norm(dim=1), torch.ones(5, dtype=mixed.dtype), atol=1e-6)


@given(seed=st.integers(0, 99), lam=ratio)
@settings(max_examples=30, deadline=None)
def test_realised_ratio_recovers_lambda_of_a_linear_mix(seed, lam):
    a, b = unit(seed), unit(seed + 1000)
    mixed = interpolate(a, b, torch.full((5,), lam, dtype=a.dtype))
    assert torch.allclose(realised_ratio(mixed, a, b), torch.full((5,), lam, dtype=a.dtype), atol=1e-6)


def test_realised_ratio_is_clipped_and_defined_for_equal_parents():
    a, b = unit(0), unit(1)
    assert torch.all(realised_ratio(3 * a - 2 * b, a, b) == 1)
    assert torch.all(realised_ratio(a, b, b) == 0.5)


@pytest.mark.parametrize("policy", PAIR_POLICIES)
@given(row=st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_pairs_keep_their_policy(policy, row):
    sampler = PairSampler(LABELS, policy, parse_lambda("beta:0.4"))
    draw = sampler.draw(row, row_stream(1, row))
    first, second = LABELS[draw.first], LABELS[draw.second]
    assert draw.first != draw.second
    assert policy not in ("cross-class", "balanced") or first != second
    assert policy != "same-class" or first == second
    assert policy != "balanced" or draw.lam >= 0.5


@pytest.mark.parametrize("policy", ["cross-class", "same-class", "any"])
def test_every_allowed_partner_is_drawn_and_equally_often(policy):
    labels = ["b", "a", "b", "c", "a", "b", "a"]
    sampler = PairSampler(labels, policy, parse_lambda("0.5"))
    allowed = {
        (i, j)
        for i, one in enumerate(labels)
        for j, two in enumerate(labels)
        if i != j and {"cross-class": one != two, "same-class": one == two, "any": True}[policy]
    }
    drawn = Counter((d.first, d.second) for d in (sampler.draw(row, row_stream(3, row)) for row in range(6000)))
    assert set(drawn) == allowed
    for first in {pair[0] for pair in drawn}:
        counts = [count for pair, count in drawn.items() if pair[0] == first]
        assert max(counts) < 1.5 * min(counts)


def test_balanced_pairs_lead_with_rare_classes():
    sampler = PairSampler(LABELS, "balanced", parse_lambda("0.8"))
    leads = [LABELS[sampler.draw(row, row_stream(seed, row)).first] for seed in range(50) for row in range(6)]
    assert leads.count("c") > leads.count("a")
    assert leads.count("b") > leads.count("a")


@pytest.mark.parametrize(("sizes", "n", "share"), [((99, 100), 60, 0.5), ((8, 52), 40, 0.98), ((8, 52), 92, 0.74)])
def test_balanced_pairs_level_the_classes_as_far_as_the_rows_reach(sizes, n, share):
    labels = ["a"] * sizes[0] + ["b"] * sizes[1]
    sampler = PairSampler(labels, "balanced", parse_lambda("0.8"))
    leads = [labels[sampler.draw(row, row_stream(seed, row)).first] for seed in range(40) for row in range(n)]
    assert leads.count("a") / len(leads) == pytest.approx(share, abs=0.03)


def test_balanced_pairs_of_balanced_classes_are_cross_class_pairs():
    labels = ["a", "b", "c"] * 4
    drawn = {}
    for policy in ("balanced", "cross-class"):
        sampler = PairSampler(labels, policy, parse_lambda("0.6"))
        draws = [sampler.draw(row, row_stream(5, row)) for row in range(6000)]
        drawn[policy] = Counter((labels[draw.first], labels[draw.second]) for draw in draws)
    assert set(drawn["balanced"]) == set(drawn["cross-class"])
    assert max(abs(drawn["balanced"][pair] - count) for pair, count in drawn["cross-class"].items()) < 150


def test_a_policy_that_the_rows_cannot_serve_is_refused():
    with pytest.raises(InputError, match="one class only"):
        PairSampler(["a", "a"], "cross-class", parse_lambda("0.5"))
    with pytest.raises(InputError, match="no class has two rows"):
        PairSampler(["a", "b"], "same-class", parse_lambda("0.5"))


@given(lam=ratio)
def test_soft_labels_sum_to_one(lam):
    assert sum(soft_label("a", "b", lam, ["a", "b", "c"]).values()) == pytest.approx(1)
    assert soft_label("a", "a", lam, ["a", "b"])["a"] == pytest.approx(1)
