"""What EDA and AEDA share: rows made by editing the words of an original, and how many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from inversedmixup.baselines import Added, Split
from inversedmixup.models.task_model import HEAD_ROWS, FitSettings
from inversedmixup.stages.downstream import one_hot, original_weights
from inversedmixup.stages.warmup import fit_settings

if TYPE_CHECKING:
    from inversedmixup.benchmark import BenchmarkConfig

Edit = Callable[[list[str], np.random.Generator], list[str]]

# rows to train on, strength α, copies of each: Wei & Zou 2019, table 3; its last line is for 5,000 rows and more
RECOMMENDED = ((500, 0.05, 16), (2000, 0.05, 8))
RECOMMENDED_ABOVE = (0.1, 4)


def recommended(rows: int) -> tuple[float, int]:
    """α and how many copies of each row (Wei & Zou 2019, table 3)."""
    for limit, alpha, each in RECOMMENDED:
        if rows <= limit:
            return alpha, each
    return RECOMMENDED_ABOVE


def copies(rows: int, config: BenchmarkConfig) -> int:
    """Edited rows in all, of so many originals.

    As many as recommended, but no more than training can look at beside the originals, or than any method adds (``n``)
    if that is more.
    """
    _, each = recommended(rows)
    steps = fit_settings(config, config.downstream_steps).steps_taken()
    looks = (steps * FitSettings.batch_size or HEAD_ROWS) - rows
    return min(each * rows, max(config.n, looks))


def edited(split: Split, use: int, edit: Edit) -> Added:
    """Edited copies of the originals, in turn from a shuffled list, labelled as their originals.

    One counts as much as its original, as in both papers. Row r depends on (seed, use, r) alone.

    Args:
        split: the originals.
        use: number of the random stream.
        edit: words → words.
    """
    order = split.stream(use).permutation(len(split.examples))
    numbers = order[np.arange(copies(len(order), split.config)) % len(order)]
    parents = [split.examples[at] for at in numbers.tolist()]
    texts = []
    for row, parent in enumerate(parents):
        # from 1 on: numpy takes [seed, use, 0] for [seed, use]
        rng = np.random.default_rng([split.config.seed, use, row + 1])
        texts.append(" ".join(edit(parent.text.split(), rng)) or parent.text)
    weights = original_weights(split.examples, split.classes, even=split.config.class_weights)
    return Added(texts, one_hot(parents, split.classes), weight=weights[numbers])
