"""Judge ``llm``: label likelihood under the pair's LLM, with a few-shot prompt built from the user's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from inversedmixup.judges.prompt import Prompt

if TYPE_CHECKING:
    from inversedmixup.judges import Case


KEPT_PROMPTS = 16


class LLMJudge:
    """Calibrated label likelihood: log P(c | prompt, x) − log mean over content-free inputs of P(c | prompt, ·).

    With more classes than ``shortlist``, each text is asked about those that the task model finds likeliest, and the
    prompt shows rows of these.
    """

    name = "llm"
    expects = None  # it is shown as many rows of each class

    def __init__(self, case: Case) -> None:
        self.llm, self.case, self.classes = case.pair.llm, case, list(case.classes)
        self.meanings = case.config.described(case.classes)
        self.shown = case.shown()
        self._prompts: dict[tuple[int, ...], Prompt] = {}

    @cached_property
    def unseen(self) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        # the task model has learnt from every row, so that its shortlist for one is too good
        measurable = len(self.classes) <= self.case.config.shortlist or self.case.cross_validated is not None
        return self.case.not_shown() if measurable else np.empty(0, dtype=np.int64)

    def prepare(self) -> None:
        """Nothing: its prompts are quickly made."""

    def probabilities(self, texts: Sequence[str], embeddings: Tensor) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        model = self.case.pair.task_model
        return self._choose(texts, self._shortlists(len(texts), lambda: model.predict_proba(embeddings)))

    def held_out(self, rows: Sequence[int]) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`; shortlists come from task models that have not seen the rows."""
        texts = [self.case.examples[at].text for at in rows]

        def likely() -> np.ndarray:
            assert self.case.cross_validated is not None
            return self.case.cross_validated(rows)

        return self._choose(texts, self._shortlists(len(rows), likely))

    def _shortlists(self, n: int, likely: Callable[[], np.ndarray]) -> list[tuple[int, ...]]:
        """The classes that each of n texts is asked about: all, or those that the task model finds likeliest."""
        if len(self.classes) <= self.case.config.shortlist:
            return [tuple(range(len(self.classes)))] * n
        best = np.argsort(-likely(), axis=1, kind="stable")[:, : self.case.config.shortlist]
        return [tuple(sorted(row)) for row in best.tolist()]

    def _choose(self, texts: Sequence[str], shortlists: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Probabilities [n, classes]: those of each text's shortlist, and 0 elsewhere."""
        out = np.zeros((len(texts), len(self.classes)))
        for columns in dict.fromkeys(shortlists):
            rows = [at for at, shortlist in enumerate(shortlists) if shortlist == columns]
            out[np.ix_(rows, columns)] = self._prompt(columns).probabilities([texts[at] for at in rows])
        return out

    def _prompt(self, columns: tuple[int, ...]) -> Prompt:
        """The prompt for a choice between some classes; the last few are kept, each with its keys and values."""
        if columns not in self._prompts:
            if len(self._prompts) == KEPT_PROMPTS:
                self._prompts.pop(next(iter(self._prompts)))
            names = [self.classes[column] for column in columns]
            said = [self.meanings[name] for name in names]
            opening = f"Label each text with one of these: {', '.join(said)}.\n"
            rows = [at for name in names for at in self.shown[name]]
            mixed = np.random.default_rng([self.case.seed, 5, len(rows)]).permutation(rows).tolist()
            rows_shown = [self.case.examples[at] for at in mixed]
            shown = [(row.text, self.meanings[row.label]) for row in rows_shown]
            self._prompts[columns] = Prompt(self.llm, said, opening=opening, shown=shown)
        return self._prompts[columns]
