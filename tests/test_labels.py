from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inversedmixup.errors import InputError
from inversedmixup.labels import (
    LabelPolicy,
    choose_label,
    interpolated_accuracy,
    is_intruded,
    parse_labels,
    sharpened,
)
from inversedmixup.stages import trust

SOFT = {"a": 0.7, "b": 0.3, "c": 0.0}
SAYS_A, SAYS_B, SAYS_C = ({name: 0.8 if name == said else 0.1 for name in SOFT} for said in "abc")


def test_intrusion_is_a_judged_class_with_less_than_half_of_the_soft_label():
    assert not is_intruded("a", SOFT)
    assert is_intruded("b", SOFT)
    assert is_intruded("c", SOFT)
    assert not is_intruded("b", {"a": 0.5, "b": 0.5})


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("soft", ("soft", None)), ("task", ("hard", "task")), ("llm", ("hard", "llm")), ("hard:api", ("hard", "api")),
        ("mitigated:task+llm", ("mitigated", "task+llm")), ("drop:llm", ("drop", "llm")),
        ("task+llm", ("hard", "task+llm")),
    ],
)  # fmt: skip
def test_label_policies_are_one_word(text, policy):
    assert parse_labels(text) == LabelPolicy(*policy)


@pytest.mark.parametrize("text", ["", "hard", "drop", "mitigated:", "soft:llm", "gentle:llm"])
def test_an_incomplete_policy_is_refused(text):
    with pytest.raises(InputError, match="expected soft, or hard"):
        parse_labels(text)


@pytest.mark.parametrize(
    ("policy", "judged", "label", "probs", "refused"),
    [
        ("soft", None, "a", SOFT, None),
        ("hard:task", SAYS_B, "b", {"a": 0, "b": 1, "c": 0}, None),
        ("hard:task", None, "", {"a": 0, "b": 0, "c": 0}, "not_judged"),
        ("mitigated:task", SAYS_A, "a", SOFT, None),
        ("mitigated:task", SAYS_C, "c", {"a": 0, "b": 0, "c": 1}, None),
        ("mitigated:task", None, "a", SOFT, None),
        ("drop:task", SAYS_A, "a", SOFT, None),
        ("drop:task", SAYS_B, "a", SOFT, "intruded"),
        ("drop:task", None, "a", SOFT, None),
    ],
)  # fmt: skip
def test_what_each_policy_makes_of_a_judgement(policy, judged, label, probs, refused):
    chosen = choose_label(parse_labels(policy), SOFT, judged, None)
    assert (chosen.label, chosen.refused) == (label, refused)
    assert chosen.probs == pytest.approx(probs)


probabilities = st.lists(st.floats(1e-6, 1), min_size=2, max_size=8).map(
    lambda values: {str(at): value / sum(values) for at, value in enumerate(values)}
)


@given(probabilities, st.floats(0, 20))
@example({"0": 0.49999999999999994, "1": 0.5}, 3.0)  # apart by one bit, which no power of them need keep
def test_temperature_keeps_the_order_and_the_sum(probs, temperature):
    out = sharpened(probs, temperature)
    assert sum(out.values()) == pytest.approx(1)
    for likelier, other in pairwise(sorted(probs, key=probs.__getitem__, reverse=True)):
        assert out[other] <= out[likelier] * (1 + 1e-12)


@given(probabilities)
def test_temperature_one_changes_nothing_and_zero_leaves_one_class(probs):
    assert sharpened(probs, 1) == pytest.approx(probs)
    assert sorted(sharpened(probs, 0).values())[-2:] == [0, 1]


@given(st.floats(0, 1), st.floats(0.6, 1), st.integers(2, 20))
def test_the_accuracy_of_the_interpolated_label_is_recovered_from_agreement(share, accuracy, classes):
    chance = (1 - accuracy) / (classes - 1)
    agreement = accuracy * share + (1 - share) * chance
    assert interpolated_accuracy(agreement, accuracy, classes) == pytest.approx(share)


def test_a_judge_at_chance_says_nothing_about_other_labels():
    assert interpolated_accuracy(0.5, 0.5, 2) is None
    assert interpolated_accuracy(0.9, 0.2, 5) is None


def record(accuracy, share):
    return {
        "name": "llm", "n": 48, "coverage": 1.0, "accuracy": accuracy, "interpolated_accuracy": share, "agreement": 0.5,
        "judged": 64,
    }  # fmt: skip


def test_a_judge_that_is_worse_than_the_interpolated_label_is_refused_unless_forced(caplog):
    trust.check(record(0.8, 0.7), "hard:llm", 6, force=False)
    trust.check(record(0.7, 0.75), "hard:llm", 6, force=False)  # within a standard error
    for bad in (record(0.48, 0.71), record(0.2, None)):
        with pytest.raises(InputError, match="--labels hard:llm: judge llm is right on"):
            trust.check(bad, "hard:llm", 6, force=False)
        trust.check(bad, "hard:llm", 6, force=True)
        trust.check(bad, "drop:llm", 6, force=False)  # its labels are not used
    assert "on about 71% of the new texts" in caplog.text


@pytest.mark.parametrize(("right", "classes"), [(0.6, 2), (0.75, 2), (0.6, 6), (0.8, 6)])
def test_a_judge_as_good_as_the_interpolated_label_is_refused_one_time_in_six(right, classes):
    rng, refused = np.random.default_rng(0), 0
    agreeing = right * right + (1 - right) ** 2 / (classes - 1)
    for _ in range(2000):
        accuracy, agreement = rng.binomial(48, right) / 48, rng.binomial(64, agreeing) / 64
        share = interpolated_accuracy(agreement, accuracy, classes)
        found = {**record(accuracy, share), "agreement": agreement}
        try:
            trust.check(found, "hard:llm", classes, force=False)
        except InputError:
            refused += share is not None  # not those who were seen at chance
    assert 0.1 < refused / 2000 < 0.2


@pytest.mark.parametrize(("task", "together", "told"), [(0.82, 0.45, True), (1.0, 0.94, False), (0.4, 0.45, False)])
def test_a_judge_whom_the_others_make_worse_is_told_of(caplog, task, together, told):
    scores = {"task": task, "tuned": 0.2, "agreement": 1.0, "pool": together}
    judges = {name: {"coverage": 0.2 if name == "agreement" else 1.0, "accuracy": acc} for name, acc in scores.items()}
    found = {**record(together, None), "name": "task+tuned", "verdict": "pool", "judges": judges}
    assert trust.describe(found) == (
        f"judge task+tuned is right on {together:.0%} of 48 rows of yours (alone: task on {task:.0%}, tuned on 20%)"
    )
    trust.warn_of_better_alone(found)
    assert ("judge task alone is right on 82 %" in caplog.text) == told
    single = {**record(0.5, None), "judges": {"llm": judges["task"]}}
    assert trust.describe(single) == "judge llm is right on 50% of 48 rows of yours"
    trust.warn_of_better_alone(single)
    trust.warn_of_better_alone({**record(None, None), "n": 0})
    assert ("alone is right" in caplog.text) == told


def test_a_judge_that_could_not_be_measured_is_not_trusted():
    unmeasured = {**record(None, None), "n": 0, "coverage": None}
    with pytest.raises(InputError, match=r"no row of yours was left to measure it on, so nobody knows"):
        trust.check(unmeasured, "mitigated:llm", 6, force=False)
    with pytest.raises(InputError, match=r"abstained on all 48 rows of yours"):
        trust.check({**unmeasured, "n": 48, "coverage": 0.0}, "hard:llm", 6, force=False)
