import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inversedmixup.gate import REASONS, Gate, GateConfig
from inversedmixup.same_text import Seen, normalised
from inversedmixup.schema import Row

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
        ({"reject_reason": "intruded"}, "intruded"),
        ({"reject_reason": "not_judged", "label": ""}, "not_judged"),
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


@given(texts=st.lists(st.text(max_size=2), max_size=60), others=st.lists(st.text(max_size=2)))
def test_texts_are_remembered_however_many(texts, others):
    seen = Seen()
    seen.BATCH = 4
    for text in texts:
        seen.add(text)
    assert all(text in seen for text in texts)
    assert [text in seen for text in others] == [text in texts for text in others]


@pytest.mark.parametrize(
    ("one", "other"),
    [("मेरा बेटा बीमार है", "मेरी बेटी बीमार है"), ("ไม่ดี", "ไม้ดี"), ("கடை", "கடு"), ("a1", "a_1"), ("日本語", "日本人")],
)  # fmt: skip
def test_a_vowel_sign_makes_another_word(one, other):
    assert normalised(one) != normalised(other)


def test_the_same_words_are_known_again_however_they_are_spelt():
    assert normalised("Café  fermé!") == normalised("cafe\u0301 ferme\u0301") == "café fermé"
    assert normalised("❤️ I'm OK") == normalised("I m ok")
    assert normalised("zu\u00adrück \u200eof\u2060fice") == normalised("zurück office") == "zurück office"
    assert normalised("می\u200cخواهم") == "میخواهم"
    assert normalised("ไทย\u200bดี") == normalised("ไทย ดี")
    assert normalised("é\u200bé") == "é é"
    assert normalised("日本abc日本") == normalised("日本 abc 日 本") == "日 本 abc 日 本"
    assert normalised("ไม่ดีok") == "ไ ม่ ดี ok"


def test_sentences_of_scripts_without_spaces_are_long_enough():
    gate = Gate(GateConfig(), ["a training text"], [-3.0])
    for text in ("我非常喜欢这部电影", "この映画はとても面白かったです", "ไม่ดีเลย"):
        judged = gate.judge(dataclasses.replace(GOOD, text=text), ("很好看", "ดี"), ("a", "b"))
        assert judged.reject_reason is None, text
