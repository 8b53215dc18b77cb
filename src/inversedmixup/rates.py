"""Shares measured by somebody who errs, on mixes that share rows: what is seen, and what is behind the errors."""

from __future__ import annotations

import dataclasses

import numpy as np

# what a mix can be beside what interpolation says, in words; see :mod:`.intrusion`
KINDS = {
    "contradicted": "the class holds less than half of the interpolated label, what `augment` calls intruded",
    "foreign": "it is the class of neither parent",
}
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


@dataclasses.dataclass(frozen=True)
class Parents:
    """The rows that n mixes lie between.

    Attributes:
        rows: their numbers, [n, 2].
        classes: their class numbers, [n, 2].
    """

    rows: np.ndarray
    classes: np.ndarray


def seen(
    hits: np.ndarray, allowed: np.ndarray, classes: int, observer: Observer, parents: Parents
) -> dict[str, float | int | None]:
    """How often an observer names a class outside of what is allowed, and how often that is so.

    Intervals say what would come out, had other rows of the same classes been mixed: of few rows thousands of mixes
    can be made, and say little more than the rows do (:func:`effective_size`). That of the share seen is Wilson's
    (1927). The observer's own errors, taken to fall evenly on the other classes, raise alarms that are false and miss
    some that are true; ``corrected`` is the share without them (Rogan & Gladen, 1978), and its interval takes both
    samples into account: 95 % of draws from the Jeffreys posteriors of the share seen and of the accuracy.

    Args:
        hits: whether it named a class outside, [n].
        allowed: how many classes lay inside, [n].
        classes: how many there are.
        observer: who looked.
        parents: the rows that were mixed.

    Returns:
        ``n``, ``rate``, ``low``, ``high``, ``corrected``, ``corrected_low``, ``corrected_high``; the last three are
        ``None`` where the observer's accuracy is unknown or no better than chance.
    """
    n, count = len(hits), int(hits.sum())
    found: dict[str, float | int | None] = dict.fromkeys(
        ("rate", "low", "high", "corrected", "corrected_low", "corrected_high")
    )
    found["n"] = n
    if not n:
        return found
    if (allowed >= classes).all():  # there is no class outside
        return found | dict.fromkeys(found.keys() - {"n"}, 0.0)
    rate, size = count / n, effective_size(hits, parents)
    low, high = _wilson(rate, size)
    found |= {"rate": _round(rate), "low": _round(low), "high": _round(high)}
    if observer.accuracy is None or observer.accuracy * classes <= 1:
        return found
    inside = float(allowed.mean())
    found["corrected"] = _round(float(_without_errors(np.array(rate), np.array(observer.accuracy), inside, classes)))
    rng = np.random.default_rng([count, n])
    share = rng.beta(rate * size + 0.5, (1 - rate) * size + 0.5, DRAWS)
    right = observer.accuracy * observer.n
    accuracy = rng.beta(right + 0.5, observer.n - right + 0.5, DRAWS)
    drawn = _without_errors(share, accuracy, inside, classes)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # where nothing was seen, or nothing else, equal tails would leave out what was seen (Brown, Cai & DasGupta 2001)
    low, high = (0.0 if not count else low), (1.0 if count == n else high)
    return {**found, "corrected_low": _round(low), "corrected_high": _round(high)}


def effective_size(hits: np.ndarray, parents: Parents) -> float:
    """How many mixes of rows of their own would tell the share of hits [n] as well as these n, which share rows.

    The variance of a share is that of pairs of which any two may have a row in common (Fafchamps & Gubert 2007, "The
    formation of risk sharing networks", equation 2.6), with each class's rows as a stratum; the size is that at which
    independent ones have the same, for a t quantile of as many degrees of freedom as rows less classes (Korn &
    Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts"). Where all are
    hits, or none is, nothing tells how alike those of a row are: as many as there are rows.
    """
    from scipy import stats

    n, share = len(hits), float(hits.mean())
    rows, at = np.unique(parents.rows, return_inverse=True)
    at = at.reshape(-1, 2)
    if share in (0, 1):
        return float(min(n, len(rows)))
    residual = hits - share
    sums = np.bincount(at[:, 0], residual, len(rows)) + np.bincount(at[:, 1], residual, len(rows))
    stratum = np.empty(len(rows), dtype=np.int64)
    stratum[at] = parents.classes
    between = 0.0
    for name in np.unique(stratum):
        own = sums[stratum == name]
        between += len(own) * float(own.var(ddof=1)) if len(own) > 1 else float(own[0]) ** 2
    _, pair = np.unique(np.sort(at, axis=1), axis=0, return_inverse=True)
    within = np.bincount(pair.reshape(-1), residual)  # both of its rows have counted it
    variance = max(share * (1 - share) / n, (between - float(within @ within)) / n**2)
    freedom = max(1, len(rows) - len(np.unique(stratum)))
    wider = stats.t.ppf((1 + LEVEL) / 2, freedom) / stats.norm.ppf((1 + LEVEL) / 2)
    return float(share * (1 - share) / variance / wider**2)


def _wilson(share: float, size: float) -> tuple[float, float]:
    """Wilson's interval of a share of so many."""
    from scipy import stats

    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    middle = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z / (1 + z**2 / size) * (share * (1 - share) / size + z**2 / (4 * size**2)) ** 0.5
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _without_errors(share: np.ndarray, accuracy: np.ndarray, inside: float, classes: int) -> np.ndarray:
    """The share behind the one seen, in [0, 1]: (share − false alarms) / (1 − misses − false alarms)."""
    slip = (1 - accuracy) / (classes - 1)  # the chance of each wrong class
    alarms, misses = slip * (classes - inside), slip * inside
    return np.clip((share - alarms) / np.maximum(1 - misses - alarms, 1e-9), 0.0, 1.0)


def _round(value: float) -> float:
    return round(float(value), 4)
