"""Does it help? The downstream task model with and without the augmented rows, at the same number of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from inversedmixup.data import Example, Row
from inversedmixup.models.task_model import FitSettings, TaskModel
from inversedmixup.terminal import progress


def run_downstream(
    fresh: Callable[[], TaskModel], examples: Sequence[Example], rows: Sequence[Row], test: Sequence[Example],
    classes: Sequence[str], settings: FitSettings, *, weight: float,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy and macro-F1 on ``test`` of two task models that differ only in their training rows.

    Args:
        fresh: makes an untrained task model, the same each time.
        examples: the original rows.
        rows: the augmented rows, used in the second model only.
        test: labelled rows to measure on.
        classes: class names.
        settings: the same steps, rates and seed for both.
        weight: how much an augmented row counts in the loss; an original counts 1.
    """
    from sklearn.metrics import f1_score

    measured: dict[str, Any] = {"steps": settings.steps, "test_rows": len(test)}
    with progress("downstream task models", 2 * settings.steps) as advance:
        for name, extra in (("without", []), ("with", list(rows))):
            model = fresh()
            model.set_classes(classes, seed=settings.seed)
            model.fit(
                [e.text for e in examples] + [row.text for row in extra], _targets(examples, extra, classes),
                torch.tensor([1.0] * len(examples) + [weight] * len(extra)), settings, advance=advance,
            )  # fmt: skip
            predicted = model.predict_proba(model.encode([e.text for e in test])).argmax(1)
            truth = np.array([list(classes).index(e.label) for e in test])
            measured[f"accuracy_{name}"] = round(float((predicted == truth).mean()), 4)
            score = f1_score(truth, predicted, labels=np.unique(truth), average="macro")
            measured[f"macro_f1_{name}"] = round(float(score), 4)
    return measured


def _targets(examples: Sequence[Example], rows: Sequence[Row], classes: Sequence[str]) -> torch.Tensor:
    """Class probabilities [n, classes]: one class for originals, what the label policy says for augmented rows."""
    targets = torch.zeros(len(examples) + len(rows), len(classes))
    for at, example in enumerate(examples):
        targets[at, list(classes).index(example.label)] = 1.0
    for at, row in enumerate(rows, start=len(examples)):
        targets[at] = torch.tensor([row.label_probs[name] for name in classes])
    return targets
