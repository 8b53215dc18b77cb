"""Judge ``probe``: logistic regression on what the pair's LLM makes of a text on its way.

Hidden states of an LLM say what class a text has long before its last layer (Alain & Bengio 2016, "Understanding
intermediate layers using linear classifier probes"). The judge reads each text through the lowest layers only and
tunes nothing, so it costs next to nothing; beside the task model, which sees another embedding, it is worth something.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from inversedmixup.folds import by_fold, folds_of, learnable
from inversedmixup.labelled import class_numbers, sample_numbers, shares_of
from inversedmixup.models.lower_layers import mean_states

if TYPE_CHECKING:
    from inversedmixup.judges import Case

# settings tried: docs/log.md, "The head of a frozen encoder"
DEPTH = 1 / 10  # share of the LLM's layers that a text goes through
C = 30.0  # the inverse of the L2 penalty
LEARNT_ROWS = 2048  # of the user's rows, at most


class ProbeJudge:
    """A linear classifier of the LLM's hidden states; every row of the user taught it, so it is cross-validated."""

    name = "probe"

    def __init__(self, case: Case) -> None:
        self.case = case
        numbers = class_numbers(case.examples, case.classes)
        self._learnt = sample_numbers(numbers, LEARNT_ROWS, seed=[case.seed, 15])
        self.expects = shares_of(numbers[self._learnt], len(case.classes))

    @property
    def unseen(self) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        numbers = class_numbers(self.case.examples, self.case.classes)[self._learnt]
        unseen: np.ndarray = self._learnt[learnable(numbers, self._fold_of[self._learnt])]
        return unseen

    def prepare(self) -> None:
        """Read the rows and learn from them."""
        self._whole  # noqa: B018 (makes it)

    def probabilities(self, texts: Sequence[str], embeddings: Tensor) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        return self._whole.probabilities(self._states(texts))

    def held_out(self, rows: Sequence[int]) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""

        def ask(others: np.ndarray, asked: np.ndarray) -> np.ndarray:
            probe = self._probe(np.isin(self._learnt, others))
            return probe.probabilities(self._points[np.searchsorted(self._learnt, asked)])

        return by_fold(rows, self._fold_of, ask)

    @cached_property
    def _fold_of(self) -> np.ndarray:
        return folds_of(self.case.examples, seed=self.case.seed)

    @cached_property
    def _points(self) -> np.ndarray:
        return self._states([self.case.examples[at].text for at in self._learnt.tolist()])

    @cached_property
    def _whole(self) -> Probe:
        return self._probe(np.ones(len(self._learnt), dtype=bool))

    def _probe(self, chosen: np.ndarray) -> Probe:
        examples = [self.case.examples[at] for at in self._learnt[chosen].tolist()]
        numbers = class_numbers(examples, self.case.classes)
        return Probe(self._points[chosen], numbers, len(self.case.classes))

    def _states(self, texts: Sequence[str]) -> np.ndarray:
        return mean_states(self.case.pair.llm, texts, DEPTH).numpy()


class Probe:
    """Logistic regression on points that are standardised and brought to unit length.

    Args:
        points: [n, D].
        numbers: their classes [n]; one that none has gets no probability.
        classes: how many classes there are.
    """

    def __init__(self, points: np.ndarray, numbers: np.ndarray, classes: int) -> None:
        from sklearn.linear_model import LogisticRegression

        self.classes, self.known = classes, np.unique(numbers)
        self.mean = points.mean(axis=0)
        spread = points.std(axis=0)
        self.spread = spread + max(1e-2 * float(spread.mean()), 1e-6)  # few rows, and a direction in which they agree
        self._model = None
        if len(self.known) > 1:
            self._model = LogisticRegression(C=C, max_iter=1000).fit(self._scaled(points), numbers)

    def _scaled(self, points: np.ndarray) -> np.ndarray:
        scaled = (points - self.mean) / self.spread
        lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
        unit: np.ndarray = scaled / np.maximum(lengths, 1e-12)
        return unit

    def probabilities(self, points: np.ndarray) -> np.ndarray:
        """Class probabilities [m, classes] of points [m, D]."""
        out = np.zeros((len(points), self.classes))
        out[:, self.known] = 1.0 if self._model is None else self._model.predict_proba(self._scaled(points))
        return out
