"""Judge ``incontext``: a copy of the pair's LLM, tuned to say the class of a text after rows of every class.

In-context tuning (Chen et al. 2022, "Meta-learning via language model in-context tuning"; Min et al. 2022, "MetaICL"),
on one task: at each step other rows stand in the prompt, and the copy learns to answer for the rest. It reads the same
rows as judge ``tuned`` in another way and makes other mistakes: better on some sets, worse on others (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from inversedmixup.judges.tuned import BATCH, Answers, TunedJudge
from inversedmixup.models.llm import SoftTokenLLM

# settings tried: docs/log.md, "Judges"
PROMPTS = 2  # with other rows in each; their mean counts
SHOWN = 16  # classes, at most, that have a row in a prompt


class InContextJudge(TunedJudge):
    """Label likelihood under a copy that was tuned with a row of each class in its prompt.

    With more than :data:`SHOWN` classes a prompt shows rows of so many, drawn anew for each.
    """

    name = "incontext"
    settings = (SHOWN,)

    def _lessons(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :class:`~inversedmixup.judges.tuned.TunedJudge`; what is shown is not asked about."""
        rows = self._taken(rows)
        rng, of_classes = np.random.default_rng([self.case.seed, 16]), self._of_classes(rows)
        for _ in range(self._steps(len(rows))):
            shown = _one_of_each(of_classes, rng)
            drawn = rng.choice(rows, min(len(rows), BATCH + len(shown)), replace=False)
            texts = {self.case.examples[at].text for at in shown.tolist()}  # a copy of what is shown gives no lesson
            taken = np.array([at for at in drawn.tolist() if self.case.examples[at].text not in texts], dtype=np.int64)
            yield (shown, taken[:BATCH]) if len(taken) else (shown[:0], drawn[:BATCH])

    def _made(self, llm: SoftTokenLLM, rows: np.ndarray) -> Answers:
        llm.merge_lora()
        rng, of_classes = np.random.default_rng([self.case.seed, 17]), self._of_classes(rows)
        prompts = [self._showing(llm, _one_of_each(of_classes, rng)) for _ in range(PROMPTS)]

        def answers(texts: Sequence[str]) -> np.ndarray:
            mean: np.ndarray = np.mean([prompt.probabilities(texts) for prompt in prompts], axis=0)
            return mean

        return answers

    def _of_classes(self, rows: np.ndarray) -> list[np.ndarray]:
        """Some rows, class by class; a class with one row shows none, for that one is needed to learn from."""
        numbers = self._numbers[rows]
        every = (rows[numbers == number] for number in range(len(self.case.classes)))
        return [own for own in every if len(own) > 1]


def _one_of_each(of_classes: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A row of each class, or of :data:`SHOWN` of them, in random order."""
    order = rng.permutation(len(of_classes))[:SHOWN].tolist()
    return np.array([rng.choice(of_classes[at]) for at in order], dtype=np.int64)
