"""Judge ``task``: the warmed-up task model on the re-read text. It knows what the user's rows taught it, no more."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from inversedmixup.folds import held_out_rows

if TYPE_CHECKING:
    from inversedmixup.judges import Case


class TaskJudge:
    """The task model after stage 2. Every row of the user taught it, so others, fitted without it, answer for a row."""

    name = "task"

    def __init__(self, case: Case) -> None:
        self.model = case.pair.task_model
        self._cross_validated = case.cross_validated
        self._case = case
        self.expects = case.shares

    @cached_property
    def unseen(self) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        if self._cross_validated is None:
            return np.empty(0, dtype=int)
        # the rows that its temperature was measured on: their models are fitted once
        return held_out_rows(self._case.examples, seed=self._case.seed)

    def prepare(self) -> None:
        """Nothing: it is there."""

    def probabilities(self, texts: Sequence[str], embeddings: Tensor) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        return self.model.predict_proba(embeddings)

    def held_out(self, rows: Sequence[int]) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        assert self._cross_validated is not None
        return self._cross_validated(rows)
