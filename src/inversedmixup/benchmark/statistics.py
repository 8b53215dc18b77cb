"""Paired differences over splits and over sets: intervals, exact p-values, probabilities."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

import numpy as np

from inversedmixup.errors import InputError

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # of the p-values, after Holm
ROPE = 0.01  # region of practical equivalence: differences of accuracy below one point make no difference
RESAMPLES = 4999  # of a bootstrap
FEWEST_RESAMPLED = 8  # splits
POSTERIOR_DRAWS = 10_000  # of the signed-rank test; the error of a probability is then 0.005 at most
MOST_EXACT = 16  # splits whose signs are all tried, 2^16 of them
FEWEST_SETS = 3  # over which a probability is given
_LIBRARIES = ("baycomp", "scikit_posthocs", "statsmodels")


def check_extra() -> None:
    """Refuse, before any work, to compare without the libraries that do it.

    Raises:
        InputError: if one is missing.
    """
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the tables need {', '.join(missing)}; pip install {' '.join(missing)}")


def interval_on_splits(differences: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean of a set's paired differences, [splits]; ``None`` for fewer than two.

    The bootstrap's percentiles, taken further out as Hesterberg (2015, The American Statistician 69:371) does: with n
    values they stand for the t quantile times √(n / (n − 1)). Plain percentiles and BCa of ten values cover 0.90. Of
    few values no percentile lies beyond the outermost, which two of them hold half of the time: Student's t there.
    """
    from scipy import stats

    n = len(differences)
    if n < 2:
        return None
    if n < FEWEST_RESAMPLED:
        reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * stats.sem(differences))
        return float(np.mean(differences)) - reach, float(np.mean(differences)) + reach
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf((1 + LEVEL) / 2, n - 1))
    found = stats.bootstrap(
        (np.sort(differences),), np.mean, n_resamples=RESAMPLES, method="percentile", confidence_level=1 - 2 * tail,
        random_state=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def wilcoxon_p(differences: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test of one set, [splits]; zeros are dropped.

    Accuracies tie, so that the tables of the exact distribution do not hold: up to 16 splits every assignment of signs
    is tried. Beyond, scipy chooses.
    """
    from scipy import stats

    changed = np.round(differences, 10)  # 0.3 − 0.1 and 0.5 − 0.3 are the same difference
    changed = changed[changed != 0]
    if len(changed) < 2:
        return 1.0
    if len(changed) > MOST_EXACT:
        return float(stats.wilcoxon(changed).pvalue)
    ranks = np.sign(changed) * stats.rankdata(np.abs(changed))
    found = stats.permutation_test(
        (ranks,), np.sum, permutation_type="samples", vectorized=True, n_resamples=2 ** len(ranks)
    )
    return float(found.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values of one method on several sets, adjusted so that the chance of any false alarm is that of one."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return {}
    return dict(zip(p_values, multipletests(list(p_values.values()), method="holm")[1].tolist(), strict=True))


def outcome(difference: float, p_value: float) -> str:
    """``helped`` or ``hurt`` where the adjusted p-value is below 0.05, else ``undecided``."""
    if p_value >= ALPHA or not difference:
        return "undecided"
    return "helped" if difference > 0 else "hurt"


def interval_on_sets(differences: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """95 % interval of the mean gain on these very sets, over other draws of their training rows.

    Student's t with Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2:110), as some sets spread more.

    Args:
        differences: the paired differences of each set, [splits].

    Returns:
        ``None`` where a set has one split only, or where no set's splits differ.
    """
    from scipy import stats

    counts = np.array([len(each) for each in differences])
    if (counts < 2).any():
        return None
    variances = np.array([np.var(each, ddof=1) for each in differences]) / counts  # of the means
    if not variances.any():
        return None
    freedom = variances.sum() ** 2 / (variances**2 / (counts - 1)).sum()
    gain = float(np.mean([np.mean(each) for each in differences]))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variances.sum())) / len(counts)
    return gain - reach, gain + reach


def interval_over_sets(gains: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean gain on sets like these, from the mean gain of each; ``None`` for fewer than three.

    Student's t over the sets. Their means differ because sets differ and because splits do, so it holds both; the
    two-level bootstrap covers 0.83 where three sets differ much and 0.99 where they do not. Two means are
    soon alike by their rounding, which would leave no room at all.
    """
    from scipy import stats

    if len(gains) < FEWEST_SETS:
        return None
    scale = float(np.std(gains, ddof=1)) / np.sqrt(len(gains))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(gains) - 1) * scale)
    return float(np.mean(gains)) - reach, float(np.mean(gains)) + reach


def intervals(differences: Sequence[np.ndarray]) -> dict[str, tuple[float, float] | None]:
    """Both intervals of the mean gain over sets, as summaries call them.

    Args:
        differences: the paired differences of each set, [splits].

    Returns:
        ``interval_on_these``: :func:`interval_on_sets`, and ``interval``: :func:`interval_over_sets`.
    """
    means = [float(each.mean()) for each in differences]
    return {"interval_on_these": interval_on_sets(differences), "interval": interval_over_sets(means)}


def signed_rank(gains: Sequence[float], rope: float = ROPE) -> dict[str, float] | None:
    """Probabilities that a method is worse, equal within the rope, or better on a set like these.

    The Bayesian signed-rank test (Benavoli et al., 2014); ``None`` for fewer than three sets.
    """
    import baycomp

    if len(gains) < FEWEST_SETS:
        return None
    probabilities = baycomp.SignedRankTest.probs(
        np.zeros(len(gains)), np.sort(gains), rope, nsamples=POSTERIOR_DRAWS, random_state=0
    )
    return dict(zip(("worse", "equal", "better"), map(float, probabilities), strict=True))
