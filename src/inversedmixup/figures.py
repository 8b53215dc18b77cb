"""Pictures of the intrusion study, by matplotlib (the ``plots`` extra)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from inversedmixup.rates import KINDS

MOST_CLASSES = 100  # that a heat map can show
DRAWN = ("intrusion.png", "class_pairs.png")
SPACES = {"embedding": "mixed embeddings", "text": "decoded texts"}


def can_draw() -> bool:
    """Whether matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw_intrusion(report: Mapping[str, Any], folder: Path) -> list[str]:
    """``intrusion.png``, the rates by λ, and ``class_pairs.png``, heat maps if classes are few; returns the paths."""
    by_lam, class_pairs = (folder / name for name in DRAWN)
    _by_lam(report, by_lam)
    if len(report["classes"]) > MOST_CLASSES:
        return [str(by_lam)]
    _class_pairs(report, class_pairs)
    return [str(by_lam), str(class_pairs)]


def _by_lam(report: Mapping[str, Any], path: Path) -> None:
    """Contradicted mixes by λ, with 95 % intervals: a row for each space, a column for each pair policy."""
    from matplotlib.figure import Figure

    rates = [rate for rate in report["rates"] if rate["interpolation"] == report["interpolation"] and rate["lam"]]
    spaces = [space for space in SPACES if any(rate["space"] == space for rate in rates)]
    policies = list(dict.fromkeys(rate["pairs"] for rate in rates))
    figure = Figure(figsize=(4.6 * len(policies), 3.2 * len(spaces)), layout="constrained")
    grid = figure.subplots(len(spaces), len(policies), squeeze=False, sharey=True)
    for row, space in zip(grid, spaces, strict=True):
        for axes, policy in zip(row, policies, strict=True):
            chosen = [rate for rate in rates if (rate["space"], rate["pairs"]) == (space, policy)]
            for marker, name in zip(cycle("osD^vPX*"), dict.fromkeys(rate["observer"] for rate in chosen)):
                _line(axes, [rate for rate in chosen if rate["observer"] == name], name, marker)
            axes.set(xlabel="λ", title=f"{SPACES[space]}, {policy}", ylim=(0, 1))
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("contradicted")
        row[-1].legend(frameon=False, fontsize="small")
    _caption(figure)
    figure.savefig(path, dpi=120)


def _caption(figure: Any, more: str = "") -> None:  # noqa: ANN401 (a Figure)
    """What the word means, below everything; small letters come twelve to an inch or more."""
    said = f"contradicted: {KINDS['contradicted']}{more}"
    figure.supxlabel(textwrap.fill(said, int(12 * figure.get_figwidth())), fontsize="small")


def _line(axes: Any, rates: Sequence[Mapping[str, Any]], name: str, marker: str) -> None:  # noqa: ANN401 (Axes)
    seen = [(rate["lam"], rate["contradicted"]) for rate in rates if rate["contradicted"]["n"]]
    if not seen:
        return
    lams = [lam for lam, _ in seen]
    middle, low, high = (np.array([found[key] for _, found in seen]) for key in ("rate", "low", "high"))
    axes.errorbar(lams, middle, yerr=[middle - low, high - middle], marker=marker, capsize=2, linewidth=1, label=name)


def _class_pairs(report: Mapping[str, Any], path: Path) -> None:
    """Contradicted mixes of each two classes, by the reference."""
    from matplotlib.figure import Figure

    classes = report["classes"]
    rates = [rate for rate in report["class_pairs"] if rate["observer"] == "reference"]
    spaces = [space for space in SPACES if any(rate["space"] == space for rate in rates)]
    side = max(3.0, 0.45 * len(classes))
    figure = Figure(figsize=((side + 1.6) * max(1, len(spaces)), side + 1), layout="constrained")
    for axes, space in zip(figure.subplots(1, max(1, len(spaces)), squeeze=False)[0], spaces, strict=False):
        table = np.full((len(classes), len(classes)), np.nan)
        for rate in rates:
            if rate["space"] == space and rate["contradicted"]["n"]:
                at = tuple(classes.index(name) for name in rate["classes"])
                table[at] = table[at[::-1]] = rate["contradicted"]["rate"]
        image = axes.imshow(table, vmin=0, vmax=1, cmap="viridis")
        axes.set_title(SPACES[space])
        names = [name.replace("$", r"\$") for name in classes]  # no formulas
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
        if len(classes) <= 12:  # the figures themselves, where they can be read
            for (row, column), value in np.ndenumerate(table):
                if not np.isnan(value):
                    colour = "white" if value < 0.6 else "black"
                    axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
        figure.colorbar(image, ax=axes, label="contradicted", shrink=0.8)
    _caption(figure)
    figure.savefig(path, dpi=120)
