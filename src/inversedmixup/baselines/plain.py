"""Training without new texts: the controls that any augmentation must beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from inversedmixup.baselines import BASELINE, Added, Method, Split
from inversedmixup.folds import folds_of, learnable
from inversedmixup.labelled import class_numbers
from inversedmixup.models.task_model import TaskModel
from inversedmixup.schema import Example
from inversedmixup.stages.downstream import one_hot, original_weights
from inversedmixup.stages.warmup import HOTTEST, best_temperature


def duplicated(split: Split) -> Added:
    """As many copies of originals as rows are wanted, drawn in turn from a shuffled list."""
    order = split.stream(21).permutation(len(split.examples))
    rows = [split.examples[order[at % len(order)]] for at in range(split.config.n)]
    return Added([row.text for row in rows], one_hot(rows, split.classes))


def class_weighted(split: Split) -> Added:
    """No rows; each original counts n / (classes · rows of its class), so that every class counts the same."""
    weights = original_weights(split.examples, split.classes, even=True)
    return Added([], np.empty((0, len(split.classes))), original_weights=weights)


def oversampled(split: Split) -> Added:
    """Copies of the rows of rarer classes, drawn with replacement until every class has as many rows as the largest."""
    rng, largest = split.stream(22), max(Counter(e.label for e in split.examples).values())
    rows = []
    for name in split.classes:
        own = [example for example in split.examples if example.label == name]
        rows += [own[at] for at in rng.integers(len(own), size=largest - len(own))] if own else []
    same = np.ones(len(split.examples))  # whatever the settings: copies and class weights would count rare rows twice
    return Added([row.text for row in rows], one_hot(rows, split.classes), weight=1.0, original_weights=same)


def calibrated(split: Split) -> float:
    """The temperature at which the originals are likeliest to task models of the other folds' originals.

    It may make surer, too: a penalised head is not sure enough.
    """
    numbers = class_numbers(split.examples, split.classes)
    rows = np.flatnonzero(learnable(numbers, folds_of(split.examples, seed=split.config.seed)))
    if not len(rows):
        return 1.0
    return best_temperature(split.cross_validated.raw(rows.tolist()), numbers[rows], coldest=1 / HOTTEST, smoothed=True)


def described(split: Split) -> Added:
    """One more row of each class that has rows: what its name means, or the name itself.

    A control for methods whose judges read that (a classifier trained on descriptions alone: Gao et al. 2023, "The
    Benefits of Label-Description Training for Zero-Shot Text Classification").
    """
    there = {example.label for example in split.examples}
    meanings = {name: words for name, words in split.config.described(split.classes).items() if name in there}
    rows = [Example(id=name, text=words, label=name) for name, words in meanings.items()]
    return Added([row.text for row in rows], one_hot(rows, split.classes), weight=1.0)


def unmixed(
    model: TaskModel, texts: Sequence[str], known: Tensor | None, targets: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A :class:`~inversedmixup.models.task_model.Mixer` that leaves batches as they are.

    What the methods that mix inside the batches are to be compared with where only the head learns: theirs takes steps,
    and the baseline's is solved.
    """
    return (model(texts) if known is None else known), targets


METHODS = (
    Method("none", "the originals alone, for as many epochs as with augmentation", short=True),
    Method(BASELINE, "the originals alone, for as many steps as with augmentation"),
    Method(
        "stepped", "the same, batch by batch even where only the head learns, as mixers are", mixer=lambda _: unmixed
    ),
    Method(
        "temperature",
        "the originals alone, temperature scaling by cross-validation (Guo et al. 2017)",
        temperature=calibrated,
    ),
    Method("duplicate", "copies of the originals in place of augmented rows", added=duplicated),
    Method("class-weights", "the originals, rarer classes weighted up", added=class_weighted),
    Method("oversample", "rarer classes repeated up to the largest (random oversampling)", added=oversampled),
    Method(
        "descriptions", "what each class name means (--descriptions), or the name, as one more row", added=described
    ),
)
