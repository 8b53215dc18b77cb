"""What the splits of one data set say of a gain: the Bayesian correlated t-test (Corani & Benavoli, 2015).

Splits of one data set share rows, so their mean is less certain than that of as many independent values. The posterior
of the gain is Student's t with splits − 1 degrees of freedom and variance s² (1 / splits + ρ / (1 − ρ)), where ρ is the
share of rows that two splits have in common (Nadeau & Bengio, 2003). No number of splits takes it below s² ρ / (1 − ρ).
baycomp has the case ρ = 1 / folds, and draws with matplotlib; a user's verdict needs neither.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from inversedmixup.benchmark.statistics import LEVEL

SURE = 0.95  # probability from which a word is said
POWER_SHIFT = 0.84  # standard errors that four of five estimates reach: what "would probably tell" allows for
# what may be said to be needed: round numbers, for a spread is a rough one, up to what anyone would run, or label
SPLITS = np.concatenate([np.arange(3, 20), np.arange(20, 100, 5), np.arange(100, 1001, 50)])
DATA = np.concatenate([np.arange(1.5, 3, 0.5), np.arange(3.0, 10), np.arange(10.0, 101, 5)])  # times the rows
ENOUGH = 10  # splits that anyone would run on them


@dataclasses.dataclass(frozen=True)
class Posterior:
    """A gain and how far it may be off.

    Attributes:
        gain: mean difference.
        spread: standard deviation of the differences, s above.
        splits: how many, two or more; an array to ask about several numbers at once.
        overlap: ρ, in [0, 1).
        data: how many times the rows there were; the variance of an accuracy falls with them.
    """

    gain: float
    spread: float
    splits: int | np.ndarray
    overlap: float
    data: float | np.ndarray = 1.0

    @property
    def scale(self) -> np.ndarray:
        """Scale of the t distribution."""
        return np.asarray(self.spread * np.sqrt((1 / self.splits + self.overlap / (1 - self.overlap)) / self.data))

    def interval(self) -> tuple[float, float]:
        """95 % of the posterior, in its middle."""
        from scipy import stats

        reach = float(stats.t.ppf((1 + LEVEL) / 2, self.splits - 1) * self.scale)
        return self.gain - reach, self.gain + reach

    def probabilities(self, rope: float, shift: float = 0.0) -> np.ndarray:
        """Of a gain below −rope, within the rope, above it, [3, …]; ``shift``: as if it were off by so many scales."""
        from scipy import stats

        middle = self.gain + shift * self.scale
        worse = stats.t.cdf(-rope, self.splits - 1, middle, self.scale)
        better = stats.t.sf(rope, self.splits - 1, middle, self.scale)
        return np.stack([worse, 1 - worse - better, better])

    def tells(self, rope: float) -> np.ndarray:
        """Whether the same word would be said of a gain that is as far up or down as four of five estimates are."""
        up, down = (self.probabilities(rope, shift) >= SURE for shift in (POWER_SHIFT, -POWER_SHIFT))
        return np.asarray((up & down).any(axis=0))

    def splits_needed(self, rope: float) -> int | None:
        """How many splits would probably tell, if gain and spread stay; ``None`` if no number would."""
        numbers = SPLITS[np.max(self.splits) < SPLITS]
        return _first(numbers, dataclasses.replace(self, splits=numbers).tells(rope))

    def data_needed(self, rope: float) -> float | None:
        """How many times the rows would probably tell; ``None`` if not even a hundred times.

        With ten splits, or as many as there are if they are more: on few of them even a sure gain shows badly.
        """
        splits = max(int(np.max(self.splits)), ENOUGH)
        return _first(DATA, dataclasses.replace(self, splits=splits, data=DATA).tells(rope))


def finest_spread(test: int) -> float:
    """The spread that rounding to whole test rows hides: equal differences on few rows are no certainty."""
    return 1 / (float(np.sqrt(12)) * test)


def _first(values: np.ndarray, mask: np.ndarray) -> Any | None:  # noqa: ANN401 (of the type of the values)
    return values[mask.argmax()].item() if mask.any() else None
