import dataclasses

import numpy as np
import pytest
import torch

from inversedmixup.data import Row
from inversedmixup.gate import REASONS, Gate, GateConfig
from inversedmixup.labels import CONTENT_FREE, LLMJudge, is_intruded, judge_accuracy
from inversedmixup.models.llm import SoftTokenLLM
from tiny import LABELS, SENTENCES

CLASSES = sorted(set(LABELS))


@pytest.fixture
def judge(tiny_llm, examples):
    return LLMJudge(SoftTokenLLM.from_pretrained(tiny_llm), examples, ["delivery", "money back", "log in"], shots=2)


def full_pass(judge, text, label):
    """log P(label | prompt, text) by one uncached pass."""
    head = judge._prefix + judge._ids(f" {text}\nLabel:")
    logits = judge.llm.lm(input_ids=torch.tensor([head + label])).logits[0].log_softmax(-1)
    return sum(logits[len(head) - 1 + at, token].item() for at, token in enumerate(label))


def test_cached_label_likelihoods_equal_full_passes(judge):
    texts = SENTENCES[3:8]
    cached = judge._log_likelihoods(texts)
    expected = [[full_pass(judge, text, label) for label in judge._labels] for text in texts]
    assert np.allclose(cached, expected, atol=1e-4)
    assert np.allclose(judge._log_likelihoods(texts), cached)


def test_calibration_makes_content_free_inputs_undecided(judge):
    scores = judge._log_likelihoods(CONTENT_FREE)
    assert np.allclose(np.exp(scores).mean(0), np.exp(judge._offset))
    probs = judge.probabilities(SENTENCES)
    assert probs.shape == (len(SENTENCES), 3)
    assert np.allclose(probs.sum(1), 1)


def test_a_judge_is_measured_on_rows_that_its_prompt_does_not_show(tiny_llm, examples):
    judge = LLMJudge(SoftTokenLLM.from_pretrained(tiny_llm), examples, CLASSES, shots=2)
    assert len(judge.shown) == 6
    measured = judge_accuracy(judge, examples, rows=100, seed=0)
    assert measured["n"] == len(examples) - 6
    assert 0 <= measured["accuracy"] <= 1


def test_intrusion_is_a_judged_class_with_less_than_half_of_the_soft_label():
    soft = {"a": 0.7, "b": 0.3, "c": 0.0}
    assert not is_intruded("a", soft)
    assert is_intruded("b", soft)
    assert is_intruded("c", soft)
    assert not is_intruded("b", {"a": 0.5, "b": 0.5})


GOOD = Row(
    id="aug-0", text="where is the lost box", label="a", label_probs={"a": 1.0}, parents=["0", "1"], lam=0.5,
    lam_realised=0.5, cycle_similarity=0.8, fluency=-3.0, labels={"soft": "a", "task": "a", "llm": None},
    intruded=False, seed=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"text": ""}, "empty"),
        ({"text": "?!"}, "empty"),
        ({"text": "hello"}, "too_short"),
        ({"text": "My parcel, it is LATE!"}, "copy_of_parent"),
        ({"text": "A training text."}, "duplicate"),
        ({"cycle_similarity": 0.1}, "low_cycle_similarity"),
        ({"fluency": -9.0}, "low_fluency"),
        ({"labels": {"soft": "a", "task": "c", "llm": None}}, "label_contradicted"),
    ],
)  # fmt: skip
def test_the_gate_rejects_with_the_reason(change, reason):
    gate = Gate(GateConfig(), ["a training text"], [-3.0, -4.0])
    judged = gate.judge(dataclasses.replace(GOOD, **change), ("my parcel it is late", "send it back"), ("a", "b"))
    assert judged.reject_reason == reason
    assert judged.kept == (reason is None)
    assert reason is None or reason in REASONS


def test_the_second_of_two_equal_texts_is_a_duplicate():
    gate = Gate(GateConfig(), [], [-3.0])
    first, second = (gate.judge(GOOD, ("x y", "z w"), ("a", "b")) for _ in range(2))
    assert (first.reject_reason, second.reject_reason) == (None, "duplicate")


def test_what_the_task_model_may_see_is_a_choice():
    row = dataclasses.replace(GOOD, labels={"soft": "a", "task": "b", "llm": None})
    for accept, reason in (("agree", "label_contradicted"), ("parents", None), ("any", None)):
        gate = Gate(GateConfig(accept_labels=accept), [], [-3.0])
        assert gate.judge(row, ("x y", "z w"), ("a", "b")).reject_reason == reason
