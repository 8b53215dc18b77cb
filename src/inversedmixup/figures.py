"""Pictures of the intrusion study, by matplotlib (the ``plots`` extra)."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from inversedmixup.escapes import printable
from inversedmixup.rates import KINDS

MOST_CLASSES = 24  # that a heat map can show
LONGEST = 30  # letters of a class's name in it
FEWEST = 10  # mixes whose rate is worth a colour
CELL, LETTER = 0.45, 0.08  # inches
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
    """``intrusion.png``, the rates by λ, and ``class_pairs.png``, heat maps; returns the paths."""
    by_lam, class_pairs = (folder / name for name in DRAWN)
    _by_lam(report, by_lam)
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
    """Contradicted mixes of each two classes, by the reference; of many classes, those of the most frequent pairs."""
    from matplotlib.figure import Figure

    rates = [rate for rate in report["class_pairs"] if rate["observer"] == "reference"]
    classes = _frequent(report["classes"], rates)
    names = [_short(name) for name in classes]
    spaces = [space for space in SPACES if any(rate["space"] == space for rate in rates)]
    side, room = max(3.0, CELL * len(classes)), LETTER * max(map(len, names), default=0)
    figure = Figure(figsize=((side + room + 1.6) * max(1, len(spaces)), side + room + 1.6), layout="constrained")
    for axes, space in zip(figure.subplots(1, max(1, len(spaces)), squeeze=False)[0], spaces, strict=False):
        table, counts = np.full((2, len(classes), len(classes)), np.nan)
        for rate in rates:
            found = rate["contradicted"]
            if rate["space"] == space and found["n"] and set(rate["classes"]) <= set(classes):
                at = tuple(classes.index(name) for name in rate["classes"])
                table[at] = table[at[::-1]] = found["rate"]
                counts[at] = counts[at[::-1]] = found["n"]
        image = _heat(axes, table, counts)
        axes.set_title(SPACES[space])
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
        figure.colorbar(image, ax=axes, label="contradicted", shrink=0.8)
    left_out = len(report["classes"]) - len(classes)
    cut = f". {len(classes)} of {len(classes) + left_out} classes, those of the most frequent pairs" * bool(left_out)
    _caption(figure, f". Below each rate its n; grey: n < {FEWEST}; hatched: no mix{cut}")
    figure.savefig(path, dpi=120)


def _heat(axes: Any, table: np.ndarray, counts: np.ndarray) -> Any:  # noqa: ANN401 (Axes, AxesImage)
    """A heat map of rates [classes, classes] of so many mixes each; what was not measured is hatched."""
    few = counts < FEWEST  # not where nothing was
    axes.patch.set(hatch="////", edgecolor="0.75")  # seen where there is no cell
    axes.imshow(np.where(few, 0.85, np.nan), vmin=0, vmax=1, cmap="gray")
    axes.imshow(np.where(np.eye(len(table), dtype=bool), 1.0, np.nan), vmin=0, vmax=1, cmap="gray")  # is no pair
    image = axes.imshow(np.where(few, np.nan, table), vmin=0, vmax=1, cmap="viridis")
    for (row, column), value in np.ndenumerate(table):
        if not np.isnan(value):
            colour = "0.45" if few[row, column] else "white" if value < 0.6 else "black"
            said = f"{value:.2f}\n{counts[row, column]:.0f}"
            axes.text(column, row, said, ha="center", va="center", color=colour, fontsize=7)
    return image


def _frequent(classes: Sequence[str], rates: Sequence[Mapping[str, Any]]) -> list[str]:
    """All classes, or as many of the most frequently mixed pairs as can be shown, in their order."""
    counts: Counter[tuple[str, ...]] = Counter()
    for rate in rates:
        counts[tuple(rate["classes"])] += rate["contradicted"]["n"]
    chosen: set[str] = set() if len(classes) > MOST_CLASSES else set(classes)
    for pair, _ in counts.most_common():
        if len(chosen | set(pair)) <= MOST_CLASSES:
            chosen |= set(pair)
    return [name for name in classes if name in chosen]


def _short(name: str) -> str:
    """A class's name as a picture can show it: without control characters, its middle left out if it is long."""
    name = printable(" ".join(name.split()))
    if len(name) > LONGEST:
        name = name[: LONGEST * 2 // 3] + "…" + name[-(LONGEST // 3 - 1) :]
    return name.replace("$", r"\$")  # no formulas
