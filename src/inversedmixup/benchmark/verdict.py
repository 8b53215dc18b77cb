"""Does it help on one's own data? A word, how much, how sure; and if it cannot be told, what would tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from inversedmixup.baselines import BASELINE
from inversedmixup.benchmark.posterior import ENOUGH, SURE, Posterior, finest_spread
from inversedmixup.benchmark.records import PLACE, Record, by_place, check_records, paired
from inversedmixup.benchmark.statistics import LEVEL, ROPE
from inversedmixup.benchmark.tables import points
from inversedmixup.errors import InputError

Word = Literal["helps", "hurts", "makes no difference", "cannot tell"]
WORDS: dict[str, Word] = {"worse": "hurts", "equal": "makes no difference", "better": "helps"}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the splits of one data set say of a method against the equal-step baseline.

    Attributes:
        method: its name.
        word: said if its probability is 0.95 or more; else ``cannot tell``.
        gain: mean difference of accuracy, in [-1, 1].
        splits: how many.
        train: training rows of each.
        test: test rows of each.
        rope: gains smaller than this make no difference.
        interval: 95 % interval of the gain; ``None`` where the splits show no spread to reckon with.
        probability: that the gain is below −rope (``worse``), within the rope (``equal``), above it (``better``).
        splits_needed: how many splits would probably tell, if the gain and the spread stay as they are.
        data_needed: where no number of splits would: how many times the rows, with ten splits or more; ``None`` if not
            even a hundred times.
    """

    method: str
    word: Word
    gain: float
    splits: int
    train: int
    test: int
    rope: float
    interval: tuple[float, float] | None = None
    probability: dict[str, float] | None = None
    splits_needed: int | None = None
    data_needed: float | None = None

    def sentence(self) -> str:
        """The verdict in one or two sentences."""
        told = self.word != "cannot tell"
        start = f"{self.method} {self.word}" if told else f"It cannot be told whether {self.method} helps"
        splits = f"{self.splits} split" + ("s" if self.splits != 1 else "")
        found = (
            f"{start} on your data: {points(self.gain)} points of accuracy over the same rows alone, trained as long"
            f"{self._how_sure()}; {splits} of {_rows(self.train, self.test)}."
        )
        return found if told else f"{found} {self._advice()}"

    def as_dict(self) -> dict[str, Any]:
        """Its fields and the sentence, as JSON holds them."""
        return {**dataclasses.asdict(self), "sentence": self.sentence()}

    def _how_sure(self) -> str:
        if self.interval is None or self.probability is None:
            return ""
        worse, equal, better = self.probability.values()
        rope = _amount(self.rope)
        said = {
            "helps": f"{better:.2f} that it is better by at least {rope}",
            "hurts": f"{worse:.2f} that it is worse by at least {rope}",
            "makes no difference": f"{equal:.2f} that it is less than {rope} either way",
            "cannot tell": f"{better:.2f} that it is better by at least {rope}, {worse:.2f} that it is as much worse",
        }[self.word]
        low, high = map(points, self.interval)
        return f" ({LEVEL * 100:g} % interval {low} … {high}; probability {said})"

    def _advice(self) -> str:
        if self.splits < 2:
            return "One split shows no spread: run at least five."
        if self.interval is None:
            return "Every split was trained on the same rows: draw fewer of them, or cross-validate."
        if self.splits_needed is not None:
            return f"If gain and spread stay as they are, about {self.splits_needed:,} splits would tell."
        splits = f"with {max(self.splits, ENOUGH)} splits, if gain and spread stay as they are"
        if self.data_needed is None:
            return f"Not even a hundred times the rows would tell whether it is {_amount(self.rope)} or more, {splits}."
        rows = _rows(*(_round(rows * self.data_needed) for rows in (self.train, self.test)))
        return (
            f"More splits would not tell, for they share rows; about {self.data_needed:g} times the rows "
            f"would, {splits}: {rows}."
        )


def verdicts(records: Iterable[Record], *, overlap: float, rope: float = ROPE) -> list[Verdict]:
    """The verdict on every method of a user's own data, the largest gain first.

    Args:
        records: run records of one set, one number of shots and one protocol, the baseline among them.
        overlap: see :func:`give_verdict`.
        rope: gains smaller than this make no difference.

    Raises:
        InputError: for records that cannot be compared.
    """
    records = list(records)
    check_records(records)
    if len({tuple(record[key] for key in PLACE[:-1]) for record in records}) > 1:
        raise InputError("a verdict is about one data set; give the run records of one set, shots and protocol")
    scores = {place[-1]: found for place, found in by_place(records, "accuracy").items()}
    baseline = scores.pop(BASELINE, {})
    train, test = (int(np.median([record[key] for record in records])) for key in ("train", "test"))
    found = [
        give_verdict(method, paired(values, baseline).tolist(), train=train, test=test, overlap=overlap, rope=rope)
        for method, values in sorted(scores.items())
    ]
    return sorted(found, key=lambda verdict: -verdict.gain)


def give_verdict(
    method: str, differences: Sequence[float], *, train: int, test: int, overlap: float, rope: float = ROPE
) -> Verdict:
    """Weigh the paired differences of a method to the baseline on splits of one data set.

    Args:
        method: its name, for the sentence.
        differences: accuracy of the method minus that of the baseline on each split, [splits], in [-1, 1].
        train: training rows of a split.
        test: test rows of a split.
        overlap: share of rows that two splits have in common, in [0, 1]. Test rows taken from one pool, as in
            cross-validation: test rows / rows of the pool, 1/k for k folds. One test file and training rows drawn anew
            for each split: see :func:`~.splits.shared_rows`; the verdict then is about these test rows.
        rope: gains smaller than this make no difference.

    Raises:
        InputError: without a difference, or for one that is no number.
    """
    values = np.asarray(differences, dtype=float)
    if not len(values):
        raise InputError(f"{method}: no split was finished both for it and for {BASELINE}; run the benchmark again")
    if not np.isfinite(values).all():
        raise InputError(f"{method}: the difference on one of the splits is no number; run the benchmark again")
    verdict = Verdict(method, "cannot tell", float(values.mean()), len(values), train, test, rope)
    if len(values) < 2 or overlap >= 1:
        return verdict
    spread = max(float(values.std(ddof=1)), finest_spread(test))
    posterior = Posterior(verdict.gain, spread, len(values), overlap)
    probability = dict(zip(WORDS, posterior.probabilities(rope).tolist(), strict=True))
    low, high = posterior.interval()
    # what t leaves beyond is impossible: a difference of accuracies lies in [-1, 1]
    verdict = dataclasses.replace(verdict, interval=(max(low, -1.0), min(high, 1.0)), probability=probability)
    likeliest = max(probability, key=lambda which: probability[which])
    if probability[likeliest] >= SURE:
        return dataclasses.replace(verdict, word=WORDS[likeliest])
    splits = posterior.splits_needed(rope)
    data = posterior.data_needed(rope) if splits is None else None
    return dataclasses.replace(verdict, splits_needed=splits, data_needed=data)


def _rows(train: int, test: int) -> str:
    return f"{train:,} training and {test:,} test rows"


def _round(rows: float) -> int:
    """To two digits."""
    return int(float(f"{rows:.2g}"))


def _amount(rope: float) -> str:
    points = f"{rope * 100:g}"
    return f"{points} point" + ("" if points == "1" else "s")
