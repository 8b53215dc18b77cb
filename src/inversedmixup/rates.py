"""Shares measured by somebody who errs: the share seen, its interval, and the share behind the errors."""

from __future__ import annotations

import dataclasses

import numpy as np

DRAWS = 2000  # of the interval of a corrected share
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Observer:
    """Who says which class something belongs to.

    Attributes:
        name: what it is called.
        accuracy: share of real rows, held out, that it names right; ``None`` if that is not known.
        n: real rows on which that was measured.
    """

    name: str
    accuracy: float | None
    n: int


def seen(hits: np.ndarray, allowed: np.ndarray, classes: int, observer: Observer) -> dict[str, float | int | None]:
    """How often an observer names a class outside of what is allowed, and how often that is so.

    The interval of the share seen is Wilson's (1927). The observer's own errors, taken to fall evenly on the other
    classes, raise alarms that are false and miss some that are true; ``corrected`` is the share without them (Rogan &
    Gladen, 1978), and its interval takes both samples into account: 95 % of draws from the Jeffreys posteriors of the
    share seen and of the accuracy.

    Args:
        hits: whether it named a class outside, [n].
        allowed: how many classes lay inside, [n].
        classes: how many there are.
        observer: who looked.

    Returns:
        ``n``, ``rate``, ``low``, ``high``, ``corrected``, ``corrected_low``, ``corrected_high``; the last three are
        ``None`` where the observer's accuracy is unknown or no better than chance.
    """
    from scipy.stats import binomtest

    n, count = len(hits), int(hits.sum())
    found: dict[str, float | int | None] = dict.fromkeys(
        ("rate", "low", "high", "corrected", "corrected_low", "corrected_high")
    )
    found["n"] = n
    if not n:
        return found
    interval = binomtest(count, n).proportion_ci(LEVEL, method="wilson")
    found |= {"rate": _round(count / n), "low": _round(interval.low), "high": _round(interval.high)}
    if observer.accuracy is None or observer.accuracy * classes <= 1:
        return found
    inside = float(allowed.mean())
    found["corrected"] = _round(
        float(_without_errors(np.array(count / n), np.array(observer.accuracy), inside, classes))
    )
    rng = np.random.default_rng([count, n])
    share = rng.beta(count + 0.5, n - count + 0.5, DRAWS)
    right = observer.accuracy * observer.n
    accuracy = rng.beta(right + 0.5, observer.n - right + 0.5, DRAWS)
    drawn = _without_errors(share, accuracy, inside, classes)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # where nothing was seen, or nothing else, equal tails would leave out what was seen (Brown, Cai & DasGupta 2001)
    low, high = (0.0 if not count else low), (1.0 if count == n else high)
    return {**found, "corrected_low": _round(low), "corrected_high": _round(high)}


def _without_errors(share: np.ndarray, accuracy: np.ndarray, inside: float, classes: int) -> np.ndarray:
    """The share behind the one seen, in [0, 1]: (share − false alarms) / (1 − misses − false alarms)."""
    slip = (1 - accuracy) / (classes - 1)  # the chance of each wrong class
    alarms, misses = slip * (classes - inside), slip * inside
    return np.clip((share - alarms) / np.maximum(1 - misses - alarms, 1e-9), 0.0, 1.0)


def _round(value: float) -> float:
    return round(float(value), 4)
