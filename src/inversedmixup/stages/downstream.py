"""Does it help? Downstream task models that differ in their training rows, at the same number of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from inversedmixup.labelled import Lazy, Texts, class_numbers
from inversedmixup.models.task_model import FitSettings, TaskModel
from inversedmixup.options import CHOICE, Options, at_least, option
from inversedmixup.schema import Example, LabelledText, Row
from inversedmixup.terminal import progress

PREDICTED = 4096  # test rows at a time
ECE_BINS = 15  # Guo et al. 2017, "On calibration of modern neural networks"


@dataclasses.dataclass(frozen=True)
class DownstreamConfig(Options):
    """Settings of the downstream task models."""

    GROUP: ClassVar[str] = "task models that are compared"

    downstream_steps: int = option(
        150, "optimiser steps of each downstream task model; a head alone takes none", decides=CHOICE
    )
    class_weights: bool = option(
        False,
        "your rows of rarer classes count more, until every class counts the same, with new rows and without",
        decides=CHOICE,
    )
    augmented_weight: float = option(0.5, "weight of an augmented row in the downstream loss", decides=CHOICE)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "augmented_weight", "downstream_steps")


def run_downstream(
    fresh: Callable[[], TaskModel], examples: Sequence[Example], rows: Sequence[Row | LabelledText],
    test: Sequence[Example], classes: Sequence[str], settings: FitSettings, config: DownstreamConfig,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy and macro-F1 on ``test`` of two task models that differ only in their training rows.

    ``steps`` is how many each took; for what else is told of the two, see :func:`paired`.

    Args:
        fresh: makes an untrained task model, the same each time.
        examples: the original rows.
        rows: the new rows, used in the second model only.
        test: labelled rows to measure on.
        classes: class names.
        settings: the same steps, rates and seed for both.
        config: how much rows count in the loss.
    """
    own = torch.from_numpy(original_weights(examples, classes, even=config.class_weights)).float()
    measured: dict[str, Any] = {"steps": settings.steps_taken(), "test_rows": len(test)}
    truth = class_numbers(test, classes)
    right = []
    with progress("downstream task models", 2 * settings.steps) as advance:
        for name, extra in (("without", ()), ("with", rows)):
            model = fresh()
            model.set_classes(classes)
            both = _Both(examples, extra)
            weights = torch.cat([own, torch.full((len(extra),), config.augmented_weight)])
            model.fit(Texts(both), _Targets(both, classes), weights, settings, advance=advance)
            parts = (Texts(test)[at : at + PREDICTED] for at in range(0, len(test), PREDICTED))
            probs = np.concatenate([model.predict_proba(model.encode(texts)) for texts in parts])
            measured |= {f"{key}_{name}": value for key, value in scores(probs, truth).items() if key in _SHOWN}
            right.append(probs.argmax(1) == truth)
    return measured | paired(*right)


def paired(without: np.ndarray, with_rows: np.ndarray) -> dict[str, Any]:
    """Two models on the same test rows, by McNemar's exact test (1947).

    Args:
        without: whether the one without new rows is right, [n].
        with_rows: whether the one with them is, [n].

    Returns:
        ``became_right`` and ``became_wrong``, the rows on which only the second, or only the first, is right, and
        ``p_value``: how likely the two numbers would be that far apart, or farther, were a row as likely one as the
        other. It is about other test rows, not about other training rows or seeds.
    """
    from scipy.stats import binomtest

    better, worse = int((with_rows & ~without).sum()), int((without & ~with_rows).sum())
    p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return {"became_right": better, "became_wrong": worse, "p_value": round(p, 4)}


def original_weights(examples: Sequence[Example], classes: Sequence[str], *, even: bool) -> np.ndarray:
    """How much each original counts, [n], 1 on average; ``even``: every class that has a row counts the same."""
    if not even:
        return np.ones(len(examples))
    numbers = class_numbers(examples, classes)
    counts = np.bincount(numbers, minlength=len(classes))
    weights: np.ndarray = len(numbers) / ((counts > 0).sum() * counts[numbers])
    return weights


_SHOWN = ("accuracy", "macro_f1")


class _Both(Lazy[Example | Row | LabelledText]):
    """Originals, and new rows behind them; only those asked for are read."""

    def __init__(self, examples: Sequence[Example], rows: Sequence[Row | LabelledText]) -> None:
        self.examples, self.rows = examples, rows

    def __len__(self) -> int:
        return len(self.examples) + len(self.rows)

    def item(self, number: int) -> Example | Row | LabelledText:
        """See :class:`~inversedmixup.labelled.Lazy`."""
        beyond = number - len(self.examples)
        return self.examples[number] if beyond < 0 else self.rows[beyond]


class _Targets:
    """What a model is to say about them; see :class:`~inversedmixup.models.task_model.Targets`."""

    def __init__(self, both: _Both, classes: Sequence[str]) -> None:
        self.both, self.classes = both, classes

    def __getitem__(self, rows: Tensor) -> Tensor:
        drawn = (self.both[at] for at in rows.tolist())
        probs = [
            one_hot([row], self.classes) if isinstance(row, Example) else row_targets([row], self.classes)
            for row in drawn
        ]
        return torch.from_numpy(np.concatenate(probs)).float()


def one_hot(examples: Sequence[Example], classes: Sequence[str]) -> np.ndarray:
    """Labels as class probabilities [n, classes]."""
    targets: np.ndarray = np.eye(len(classes))[class_numbers(examples, classes)]
    return targets


def row_targets(rows: Sequence[Row | LabelledText], classes: Sequence[str]) -> np.ndarray:
    """What the label policy says of new rows, as class probabilities [n, classes]."""
    return np.array([[row.label_probs[name] for name in classes] for row in rows]).reshape(len(rows), len(classes))


def scores(probs: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """``accuracy``, ``macro_f1`` over the classes that occur, ``ece`` and ``nll`` (in nats), rounded.

    Args:
        probs: class probabilities [n, classes].
        truth: class numbers [n].
    """
    from sklearn.metrics import f1_score

    predicted = probs.argmax(1)
    found = {
        "accuracy": (predicted == truth).mean(),
        "macro_f1": f1_score(truth, predicted, labels=np.unique(truth), average="macro"),
        "ece": _calibration_error(probs.max(1), predicted == truth),
        "nll": -np.log(np.clip(probs[np.arange(len(truth)), truth], 1e-12, None)).mean(),
    }
    return {name: round(float(value), 4) for name, value in found.items()}


def _calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: |accuracy − confidence| by bins of equal width, weighted by their rows."""
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    surplus = np.bincount(bins, weights=right - confidence, minlength=ECE_BINS)
    return float(np.abs(surplus).sum() / len(confidence))
