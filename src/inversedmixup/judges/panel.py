"""One judge or several: of several, the class that most of them name, or the product of what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from typing import Any

import numpy as np
from torch import Tensor

from inversedmixup.judges import Judge
from inversedmixup.labels import likeliest
from inversedmixup.schema import SOURCES

TOGETHER = ("agreement", "pool")  # what several judges say


class Panel:
    """The judges that a label policy asks. Where the majority counts, both of two must agree, or two of three.

    Args:
        judges: one or more.
        shares: how often each class [classes] is among the user's rows.
        pooled: whether the product of several counts, not their majority.
        evened: whether those who learnt from the user's rows are heard as if they expected every class as often; else
            as if they expected classes as often as they are there. See :func:`adjusted`.

    Attributes:
        name: their names, joined by ``+``.
        verdict: which of the answers of :meth:`hear` counts.
        record: what they were measured to be worth, see :func:`~inversedmixup.judges.judge_record`.
    """

    def __init__(
        self, judges: Sequence[Judge], shares: np.ndarray, *, pooled: bool = False, evened: bool = True
    ) -> None:  # fmt: skip
        self.judges, self.shares, self.evened = list(judges), shares, evened
        self.record: dict[str, Any] | None = None
        self.name = "+".join(judge.name for judge in judges)
        self.verdict = self.name if len(judges) == 1 else "pool" if pooled else "agreement"

    @cached_property
    def unseen(self) -> np.ndarray:
        """Numbers of the user's rows that none of them has learnt from."""
        return reduce(np.intersect1d, (judge.unseen for judge in self.judges))

    @property
    def answers(self) -> list[str]:
        """The names of what :meth:`hear` returns."""
        return [judge.name for judge in self.judges] + (list(TOGETHER) if len(self.judges) > 1 else [])

    def prepare(self) -> None:
        """See :class:`~inversedmixup.judges.Judge`."""
        for judge in self.judges:
            judge.prepare()

    def hear(self, texts: Sequence[str], embeddings: Tensor) -> dict[str, np.ndarray]:
        """What each judge says, [n, classes]; of several also their ``agreement`` and ``pool``."""
        wanted = None if self.evened else self.shares
        return self._together([judge.probabilities(texts, embeddings) for judge in self.judges], wanted)

    def held_out(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """The same for some of the user's rows, by judges that have not learnt from them.

        Never evened: these rows are of classes as frequent as they are in the user's rows.
        """
        return self._together([judge.held_out(rows) for judge in self.judges], self.shares)

    def _together(self, answers: Sequence[np.ndarray], wanted: np.ndarray | None) -> dict[str, np.ndarray]:
        each = [adjusted(said, judge.expects, wanted) for judge, said in zip(self.judges, answers, strict=True)]
        said = {judge.name: own for judge, own in zip(self.judges, each, strict=True)}
        if len(each) == 1:
            return said
        together = {**said, "agreement": majority(each)}
        if wanted is None:
            return {**together, "pool": pool(each)}
        # a product of what they expect would count the classes' shares once for each of them
        evened = [adjusted(own, judge.expects) for judge, own in zip(self.judges, answers, strict=True)]
        return {**together, "pool": adjusted(pool(evened), np.full(len(wanted), 1 / len(wanted)), wanted)}


def adjusted(probs: np.ndarray, expected: np.ndarray | None, wanted: np.ndarray | None = None) -> np.ndarray:
    """Class probabilities [n, classes] of somebody who expects other class shares than those he learnt from.

    Who has learnt from lopsided rows expects lopsided classes. New texts are written for rare classes more often, and
    sentences that somebody labels are to teach them: with even ones they teach more (docs/log.md). By Bayes' rule,
    p(c | x) / p(c) · the wanted p(c), renormalised (Saerens et al. 2002, "Adjusting the outputs of a classifier to new
    a priori probabilities"). A class without rows keeps what it has.

    Args:
        probs: NaN where a judge abstains.
        expected: the shares [classes] that he learnt from; ``None`` if from none.
        wanted: the shares [classes] to expect instead; ``None``: every class as often.
    """
    if expected is None:
        return probs
    factors = np.where(expected > 0, expected, 1.0) / (1.0 if wanted is None else np.where(wanted > 0, wanted, 1.0))
    if np.allclose(factors, factors[0]):
        return probs
    ratios = probs / factors
    out: np.ndarray = ratios / ratios.sum(axis=1, keepdims=True)
    return out


def named(probs: np.ndarray, classes: Sequence[str]) -> dict[str, float] | None:
    """Class probabilities [classes] by name; ``None`` from a judge that abstained."""
    return None if np.isnan(probs).any() else dict(zip(classes, map(float, probs), strict=True))


def by_source(said: Mapping[str, Mapping[str, float] | None]) -> dict[str, str | None]:
    """The class that each of :data:`~inversedmixup.schema.SOURCES` names; ``None`` where it was not asked or abstained.

    Args:
        said: class probabilities by name, of each source that was asked; see :func:`named`.
    """
    return {source: likeliest(probs) if (probs := said.get(source)) else None for source in SOURCES}


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


def pool(said: Sequence[np.ndarray]) -> np.ndarray:
    """The logarithmic pool (Genest & Zidek 1986): the renormalised product of what judges say, NaN where none answers.

    Args:
        said: what each judge says, [n, classes]; NaN where it abstains.
    """
    from scipy.special import softmax

    answers = np.stack(said)
    silent = np.isnan(answers).any(axis=2)
    # no judge may rule a class out alone
    logs = np.where(silent[:, :, None], 0.0, np.log(np.clip(np.nan_to_num(answers), 1e-3, 1.0))).sum(axis=0)
    shares: np.ndarray = softmax(logs, axis=1)
    shares[silent.all(axis=0)] = np.nan
    return shares
