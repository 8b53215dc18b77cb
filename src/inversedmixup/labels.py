"""What label an augmented text gets: label policies over the interpolated label and a judge's (paper, stage 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from inversedmixup.errors import InputError
from inversedmixup.options import Options, at_least, option

POLICIES = {
    "soft": "the interpolated label λ y_i + (1−λ) y_j",
    "hard": "the judge's class",
    "pool": "the judge's class probabilities; of several judges, their renormalised product",
    "mitigated": "the interpolated label, unless the judge contradicts it: then the judge's class",
    "drop": "the interpolated label; rows that the judge contradicts are rejected",
}
JUDGES = ("task", "probe", "llm", "tuned", "incontext", "api")
JUDGES_HELP = f"{', '.join(JUDGES)}, or several joined by +"
RECOMMENDED = "pool:task+tuned"  # did best on training rows (docs/log.md)
LABELS_HELP = f"soft, or hard, pool, mitigated or drop and a judge: {JUDGES_HELP}, as in {RECOMMENDED}"


@dataclasses.dataclass(frozen=True)
class LabelConfig(Options):
    """Settings of the label policy."""

    GROUP: ClassVar[str] = "labels"

    labels: str = option(RECOMMENDED, f"label policy: {LABELS_HELP}; a judge alone means hard")
    label_temperature: float | None = option(
        None, "sharpness of label_probs: 1 leaves the policy's probabilities as they are, 0 is the most probable class "
        "alone; default: 0 for a judge's class, else 1"
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "label_temperature")


@dataclasses.dataclass(frozen=True)
class LabelPolicy:
    """A parsed label policy: its kind (see :data:`POLICIES`) and the judge that it asks, if any."""

    kind: str
    judge: str | None

    @property
    def trusts_judge(self) -> bool:
        """Whether rows can get the judge's class as their label."""
        return self.kind in ("hard", "pool", "mitigated")

    @property
    def judges(self) -> list[str]:
        """The judges by themselves."""
        return self.judge.split("+") if self.judge else []


@dataclasses.dataclass(frozen=True)
class ChosenLabel:
    """The label of one text.

    Attributes:
        label: the most probable class; empty if there is none.
        probs: probability of each class.
        refused: why the row has no label under the policy: ``intruded`` or ``not_judged``.
    """

    label: str
    probs: dict[str, float]
    refused: str | None = None


def parse_labels(text: str) -> LabelPolicy:
    """A label policy as written on the command line; the judge's name is checked where judges are made.

    Raises:
        InputError: for anything else.
    """
    kind, _, judge = text.partition(":")
    if not judge and kind not in POLICIES:
        kind, judge = "hard", kind
    if kind not in POLICIES or (kind == "soft") == bool(judge):
        raise InputError(f"labels {text!r}: expected {LABELS_HELP}")
    return LabelPolicy(kind, judge or None)


def is_intruded(judged: str, soft: Mapping[str, float]) -> bool:
    """Manifold intrusion of one row: the judged class holds less than half of the interpolated label."""
    return soft.get(judged, 0.0) < 0.5 - 1e-9


def likeliest(probs: Mapping[str, float]) -> str:
    """The (first) most probable class."""
    return max(probs, key=probs.__getitem__)


def choose_label(
    policy: LabelPolicy, soft: Mapping[str, float], judged: Mapping[str, float] | None, temperature: float | None
) -> ChosenLabel:
    """The label of one text.

    Args:
        policy: the label policy.
        soft: the interpolated label, the leading parent's class first.
        judged: the judge's class probabilities; ``None`` if it abstained or was not asked.
        temperature: see :class:`LabelConfig`.
    """
    verdict = None if judged is None else likeliest(judged)
    contradicted = verdict is not None and is_intruded(verdict, soft)
    if policy.kind in ("hard", "pool") and judged is None:
        return ChosenLabel("", dict.fromkeys(soft, 0.0), "not_judged")
    from_judge = policy.kind in ("hard", "pool") or (policy.kind == "mitigated" and contradicted)
    chosen = judged if from_judge and judged is not None else soft
    default = 0.0 if from_judge and policy.kind != "pool" else 1.0
    probs = sharpened(chosen, default if temperature is None else temperature)
    refused = "intruded" if policy.kind == "drop" and contradicted else None
    return ChosenLabel(likeliest(chosen), probs, refused)


def sharpened(probs: Mapping[str, float], temperature: float) -> dict[str, float]:
    """p_c^(1/T) / Σ p^(1/T); at T = 0 the first most probable class alone."""
    names, values = list(probs), np.fromiter(probs.values(), dtype=np.float64)
    if temperature == 0:
        out = np.arange(len(values)) == values.argmax()
    else:
        # relative to the largest, so that a small T does not underflow
        out = (values / values.max()) ** (1 / temperature)
    return dict(zip(names, map(float, out / out.sum()), strict=True))


def interpolated_accuracy(agreement: float, accuracy: float, classes: int) -> float | None:
    """How often the interpolated label is right, seen through a judge that errs itself.

    A judge of accuracy a whose errors fall evenly on the other classes agrees with a label of accuracy s on a share
    g = a s + (1−a)(1−s)/(C−1) of texts; this is s, in [0, 1] (the correction of Rogan & Gladen, 1978).

    Args:
        agreement: g, the share of texts for which the judge names the interpolated label's class.
        accuracy: a, measured on the user's rows.
        classes: C.

    Returns:
        s; ``None`` if the judge is no better than chance and says nothing about it.
    """
    chance = (1 - accuracy) / (classes - 1)
    if accuracy - chance < 0.05:
        return None
    return float(np.clip((agreement - chance) / (accuracy - chance), 0.0, 1.0))
