"""Mean ranks over sets: Friedman's test, Nemenyi's, and the critical-difference picture (Demšar, 2006)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from inversedmixup.benchmark.statistics import ALPHA

FEWEST = 3  # sets, and methods, whose ranks are worth comparing

Table = Mapping[str, Mapping[str, float]]  # mean accuracy, or gain in it, by method and set


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Which methods come first on average; the sets are the blocks, for splits of a set are not independent of it.

    Attributes:
        methods: their names, best first.
        sets: the sets on which every one of them was run.
        ranks: mean rank of each over the sets, 1 the most accurate, [methods].
        friedman_p: of all methods being alike.
        critical_difference: that two mean ranks must have to differ at p = 0.05 (Nemenyi).
        nemenyi_p: of each two methods being alike, [methods, methods].
        left_out: methods and sets that were not run with all others.
    """

    methods: list[str]
    sets: list[str]
    ranks: list[float]
    friedman_p: float
    critical_difference: float
    nemenyi_p: list[list[float]]
    left_out: list[str]


def rank(table: Table) -> Ranks | None:
    """Rank methods within each set and compare the mean ranks; ``None`` for fewer than three methods or sets."""
    from scikit_posthocs import posthoc_nemenyi_friedman
    from scipy import stats

    methods, sets, left_out = _complete(table)
    if len(methods) < FEWEST or len(sets) < FEWEST:
        return None
    accuracies = np.array([[round(table[method][name], 10) for method in methods] for name in sets])
    ranks = stats.rankdata(-accuracies, axis=1).mean(axis=0)
    order = sorted(range(len(methods)), key=lambda at: (ranks[at], methods[at]))
    unit = np.sqrt(len(methods) * (len(methods) + 1) / (6 * len(sets)))
    furthest = stats.studentized_range.ppf(1 - ALPHA, len(methods), np.inf) / np.sqrt(2)
    friedman_p = float(stats.friedmanchisquare(*accuracies.T).pvalue) if np.ptp(accuracies, axis=1).any() else 1.0
    return Ranks(
        methods=[methods[at] for at in order], sets=sets, ranks=ranks[order].tolist(),
        friedman_p=friedman_p, critical_difference=float(furthest * unit),
        nemenyi_p=posthoc_nemenyi_friedman(accuracies[:, order]).to_numpy().tolist(), left_out=left_out,
    )  # fmt: skip


def draw_ranks(ranks: Ranks, path: Path, title: str) -> None:
    """The critical-difference picture: a bar joins methods that Nemenyi's test does not tell apart."""
    import pandas as pd
    from matplotlib.figure import Figure
    from scikit_posthocs import critical_difference_diagram

    figure = Figure(figsize=(9, 1.6 + 0.26 * len(ranks.methods)), layout="constrained")
    axes = figure.subplots()
    drawn = critical_difference_diagram(  # numbers instead of names, for sets of strings have no fixed order
        dict(enumerate(ranks.ranks)), pd.DataFrame(ranks.nemenyi_p), alpha=ALPHA, ax=axes, text_h_margin=0.1,
        label_fmt_left="{label}", label_fmt_right="{label}", elbow_props={"color": "0.4", "linewidth": 1},
        marker_props={"color": "0.2"},
    )  # fmt: skip
    for label in drawn["labels"]:
        at = int(label.get_text())
        name = ranks.methods[at].replace("$", r"\$")  # no formulas
        label.set(text=f"{name}  {ranks.ranks[at]:.2f}", color="black", fontsize=9)
    axes.set_title(
        f"{title}: mean rank on {len(ranks.sets)} sets, left is better\n"
        f"critical difference {ranks.critical_difference:.1f}, Friedman p = {ranks.friedman_p:.2g}", fontsize=10
    )  # fmt: skip
    figure.savefig(path, dpi=120)


def _complete(table: Table) -> tuple[list[str], list[str], list[str]]:
    """Methods and sets with no gap, and what was left out for it: whichever has the largest share of gaps, in turn."""
    methods, sets = sorted(table), sorted({name for row in table.values() for name in row})
    left_out: list[str] = []
    while any(name not in table[method] for method in methods for name in sets):
        gaps = [(np.mean([name not in table[method] for method in methods]), name, sets) for name in sets]
        gaps += [(np.mean([name not in table[method] for name in sets]), method, methods) for method in methods]
        _, worst, among = max(gaps, key=lambda gap: gap[0])
        among.remove(worst)
        left_out.append(worst)
    return methods, sets, left_out
