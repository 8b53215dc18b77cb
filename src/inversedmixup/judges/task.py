"""Judge ``task``: the warmed-up task model on the re-read text. It knows what the user's rows taught it, no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from inversedmixup.labelled import held_out_rows

if TYPE_CHECKING:
    from inversedmixup.judges import Case


class TaskJudge:
    """The task model after stage 2. Every row of the user taught it, so others, fitted without it, answer for a row."""

    name = "task"

    def __init__(self, case: Case) -> None:
        self.model = case.pair.task_model
        self._cross_validated = case.cross_validated
        # the rows that its temperature was measured on: their models are fitted once
        self.unseen = held_out_rows(case.examples, seed=case.seed) if case.cross_validated else np.empty(0, dtype=int)

    def prepare(self) -> None:
        """Nothing: it is there."""

    def probabilities(self, texts: Sequence[str], embeddings: Tensor) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        return self.model.predict_proba(embeddings)

    def held_out(self, rows: Sequence[int]) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        assert self._cross_validated is not None
        return self._cross_validated(rows)
