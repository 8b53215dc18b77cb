"""The summary as Markdown: gains in points, the methods that hurt in the same table as those that help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inversedmixup.baselines import BASELINE
from inversedmixup.benchmark.records import ADDED, MEASURES, RARE
from inversedmixup.benchmark.statistics import ALPHA, LEVEL

PROTOCOLS = {"frozen": "frozen encoder", "fine-tuned": "fine-tuned"}
MARKS = {"helped": " ▲", "hurt": " ▼", "undecided": ""}
NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1", RARE: "recall of rare classes", "ece": "ECE", "nll": "NLL"}
KEY = f"""Gains are points of accuracy over `{BASELINE}`: the same rows, not augmented, for as many optimiser steps.
▲ helped, ▼ hurt: exact Wilcoxon signed-rank test over splits, Holm over sets, p < {ALPHA:g}; unmarked: undecided.
Intervals of the mean gain ({LEVEL * 100:g} %): on these sets, were other rows drawn from them; on sets like these.
P: probabilities that on a set like these it is worse, within ±{{rope:g}}, better.
Means are over what a method was run on; where methods were not run on the same splits, only gains compare."""

Cells = Mapping[str, Mapping[str, Any]]


def render_tables(summary: Mapping[str, Any], pictures: Mapping[tuple[str, str], str]) -> str:
    """Two tables for each protocol and number of shots: gains by set, and every measure over the sets.

    Args:
        summary: see :func:`inversedmixup.benchmark.summary.summarise`.
        pictures: file names by shots and protocol.
    """
    parts = ["# Benchmark tables", f"{summary['runs']:,} runs.", KEY.format(rope=summary["rope"] * 100)]
    over = summary["over_sets"]
    groups = sorted(((protocol, shots) for shots in over for protocol in over[shots]), key=_group_order)
    for protocol, shots in groups:
        sets = {
            name: by_shots[shots][protocol]
            for name, by_shots in sorted(summary["sets"].items())
            if protocol in by_shots.get(shots, {})
        }
        methods = by_gain(over[shots][protocol])
        parts.append(f"## {PROTOCOLS.get(protocol, protocol)}, {shots_words(shots)}")
        parts.append(_gains(sets, over[shots][protocol], methods))
        parts.append(_measures(over[shots][protocol], methods))
        if (shots, protocol) in pictures:
            parts.append(f"![mean ranks and critical difference]({pictures[shots, protocol]})")
    return "\n\n".join(parts) + "\n"


def by_gain(methods: Cells) -> list[str]:
    """The baseline, then the methods from the largest mean gain to the smallest, then those without a comparison."""

    def key(name: str) -> tuple[bool, float, str]:
        gain = methods[name]["measures"]["accuracy"].get("difference")
        return name != BASELINE, float("inf") if gain is None else -gain, name

    return sorted(methods, key=key)


def shots_words(shots: str) -> str:
    """``10`` → ``10 shots``; the others say what they are."""
    return f"{shots} shots" if shots.isdecimal() else shots.replace("%", " %")


def shots_order(shots: str) -> tuple[bool, float, str]:
    """Numbers first and in their order, then shares and words."""
    number = shots.removesuffix("%")
    return not shots.isdecimal(), float(number) if number.isdecimal() else 101, shots


def points(share: float) -> str:
    """``+2.4`` for 0.024."""
    tenths = round(share * 100, 1)
    return f"{tenths:+.1f}".replace("-", "−") if tenths else "0.0"  # which of both signs it has, nobody can see


def _group_order(group: tuple[str, str]) -> tuple[Any, ...]:
    protocol, shots = group
    return protocol != "frozen", protocol, shots_order(shots)


def _gains(sets: Mapping[str, Cells], over: Cells, methods: Sequence[str]) -> str:
    splits = {name: max(cell["splits"] for cell in cells.values()) for name, cells in sets.items()}
    header = ["method", *(f"{name} (n = {splits[name]})" for name in sets), "mean gain", "on these sets"]
    rows = [[*header, "on sets like these", "helped / hurt / undecided", "P worse / equal / better"]]
    for method in methods:
        cells = [_gain(sets[name].get(method), splits[name], baseline=method == BASELINE) for name in sets]
        rows.append([method, *cells, *_verdict(over[method], len(sets), baseline=method == BASELINE)])
    return _table(rows)


def _gain(cell: Mapping[str, Any] | None, splits: int, *, baseline: bool) -> str:
    """``+2.4 ▲``, with the number of splits where it is not that of the set; the baseline's accuracy."""
    if cell is None:
        return "–"
    accuracy = cell["measures"]["accuracy"]
    if baseline:
        return f"{accuracy['mean'] * 100:.1f}" + _fewer(cell["splits"], splits)
    if "difference" not in accuracy:
        return "no baseline"
    return (
        points(accuracy["difference"]) + MARKS[cell.get("outcome", "undecided")] + _fewer(cell["paired_splits"], splits)
    )


def _fewer(count: int, splits: int) -> str:
    return f" (n = {count})" if count < splits else ""


def _verdict(cell: Mapping[str, Any], sets: int, *, baseline: bool) -> list[str]:
    accuracy = cell["measures"]["accuracy"]
    if baseline or "difference" not in accuracy:
        return [f"accuracy {accuracy['mean'] * 100:.1f}" if baseline else "–", "–", "–", "–", "–"]
    gain = f"**{points(accuracy['difference'])}**"
    if cell["compared_sets"] < sets:
        gain += f" ({cell['compared_sets']} sets)"
    chances = cell["probability"]
    return [
        gain, _interval(accuracy["interval_on_these"]), _interval(accuracy["interval"]),
        f"{cell['helped']} / {cell['hurt']} / {cell['undecided']}",
        " / ".join(f"{share:.2f}" for share in chances.values()) if chances else "–",
    ]  # fmt: skip


def _measures(over: Cells, methods: Sequence[str]) -> str:
    """Means over the sets that a method has, and differences over those that the baseline has too; rows added."""
    measures = [name for name in (*MEASURES, RARE) if any(name in over[method]["measures"] for method in methods)]
    titles = [f"{NAMES[name]}{' (less is better)' * (name in {'ece', 'nll'})}" for name in measures]
    rows = [["mean over sets", *titles, "rows added"]]
    for method in methods:
        found, added = over[method]["measures"], over[method].get(ADDED)
        cells = [_measure(found.get(name), percent=name != "nll") for name in measures]
        rows.append([method, *cells, "–" if added is None else f"{added:,.0f}"])
    return _table(rows)


def _measure(found: Mapping[str, Any] | None, *, percent: bool) -> str:
    if found is None:
        return "–"
    mean = f"{found['mean'] * 100:.1f}" if percent else f"{found['mean']:.3f}"
    if "difference" not in found:
        return mean
    difference = points(found["difference"]) if percent else f"{found['difference']:+.3f}".replace("-", "−")
    return f"{mean} ({difference})"


def _interval(ends: Sequence[float] | None) -> str:
    return f"[{', '.join(map(points, ends))}]" if ends else "–"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
