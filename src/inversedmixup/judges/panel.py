"""One judge or several: of several, the class that most of them name; without a majority they abstain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from inversedmixup.judges import Judge


class Panel:
    """The judges that a label policy asks. Of two, both must agree; of three, two.

    Args:
        judges: one or more.

    Attributes:
        name: their names, joined by ``+``.
        unseen: numbers of the user's rows that none of them has learnt from.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        self.judges = list(judges)
        self.name = "+".join(judge.name for judge in judges)
        self.unseen = sorted(set.intersection(*(set(judge.unseen) for judge in judges)))

    def hear(self, texts: Sequence[str], embeddings: Tensor) -> dict[str, np.ndarray]:
        """What each judge says, [n, classes]; with several of them also what they agree on, as ``agreement``."""
        return self._with_agreement({judge.name: judge.probabilities(texts, embeddings) for judge in self.judges})

    def held_out(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """The same for some of the user's rows, by judges that have not learnt from them."""
        return self._with_agreement({judge.name: judge.held_out(rows) for judge in self.judges})

    @property
    def verdict(self) -> str:
        """Which of the answers of :meth:`hear` counts."""
        return verdict_of(self.name)

    def _with_agreement(self, said: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**said, "agreement": majority(list(said.values()))} if len(said) > 1 else dict(said)


def verdict_of(name: str) -> str:
    """Whose answer counts in a panel of this name."""
    return "agreement" if "+" in name else name


def named(probs: np.ndarray, classes: Sequence[str]) -> dict[str, float] | None:
    """Class probabilities [classes] by name; ``None`` from a judge that abstained."""
    return None if np.isnan(probs).any() else dict(zip(classes, map(float, probs), strict=True))


def majority(said: Sequence[np.ndarray]) -> np.ndarray:
    """Mean probabilities [n, classes] of the judges that name the majority's class; NaN where there is no majority.

    Args:
        said: what each judge says, [n, classes]; NaN where it abstains.
    """
    answers = np.stack(said)  # [judges, n, classes]
    votes = np.where(np.isnan(answers), -np.inf, answers).argmax(axis=2)
    votes[np.isnan(answers).any(axis=2)] = -1
    counts = (votes[:, :, None] == np.arange(answers.shape[2])).sum(axis=0)  # [n, classes]
    with_leader = votes == counts.argmax(axis=1)
    total = np.where(with_leader[:, :, None], np.nan_to_num(answers), 0.0).sum(axis=0)
    mean: np.ndarray = total / np.maximum(1, with_leader.sum(axis=0))[:, None]
    mean[counts.max(axis=1) * 2 <= len(said)] = np.nan
    return mean
