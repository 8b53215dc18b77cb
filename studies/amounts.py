"""How many texts should be added, how much should each count, and does mixing tell where there are many?

``python -m studies.amounts DATA -o DIR --config studies/evidence.yaml --pairs 96 192 384 768 --weights 0.5 0.25``.

For each split of the evidence study, each of :data:`SOURCES` writes for the most pairs, and the policy labels that,
once; a task model is then trained on the first so many, at each weight. So amounts differ in nothing else, and the
first 192 ``mixed`` pairs are those of the evidence. ``DIR/amounts`` holds the runs, ``runs.jsonl``, in which
``mixed 192 × 0.5`` and ``copies 192 × 0.5`` are methods, and the benchmark's tables.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

from inversedmixup.baselines import BASELINE, Added, Method, Split
from inversedmixup.baselines.generate import pooled
from inversedmixup.baselines.inversed import ENDS, tried_rows
from inversedmixup.baselines.plain import duplicated
from inversedmixup.benchmark.cells import Bench
from inversedmixup.benchmark.report import write_report
from inversedmixup.benchmark.summary import summarise
from inversedmixup.benchmark.tables import shots_words
from inversedmixup.errors import write_whole
from inversedmixup.labels import RECOMMENDED
from inversedmixup.options import read_settings
from inversedmixup.provenance import commit
from inversedmixup.runs import recorded
from inversedmixup.stages.downstream import row_targets
from inversedmixup.terminal import show_logs
from studies.common import json_lines, read_json_lines, run, study_run
from studies.evidence import add_options, benches, cell_name, place

COPIES = "copies"
PLACE = ("set", "shots", "split", "protocol")


def _first(added: Added, counts: Sequence[int]) -> Iterator[Added]:
    return (Added(added.texts[:count], added.targets[:count]) for count in counts)


def copies(split: Split, counts: Sequence[int]) -> Iterator[Added]:
    """Copies of the originals: what an amount does without new texts."""
    return _first(duplicated(split), counts)


def written(split: Split, counts: Sequence[int], pairs: str, lam: str | None = None) -> Iterator[Added]:
    """What passes the gate of the first so many pairs, under the policy's labels."""
    config = dataclasses.replace(split.config, pairs=pairs, lam=lam or split.config.lam, labels=RECOMMENDED)
    rows = list(tried_rows(split, config))
    for count in counts:
        kept = [row for row in rows[:count] if row.kept]
        yield Added([row.text for row in kept], row_targets(kept, split.classes))


def prompted(split: Split, counts: Sequence[int]) -> Iterator[Added]:
    """The first so many usable texts of ``generate-pooled``."""
    return _first(pooled(split), counts)


SOURCES: dict[str, Callable[[Split, Sequence[int]], Iterator[Added]]] = {
    COPIES: copies,
    "mixed": partial(written, pairs="cross-class"),
    "rewritten": partial(written, pairs="same-class", lam=ENDS),  # each from one row's own embedding
    "prompted": prompted,
}


def cell(
    bench: Bench, number: int, source: str, counts: Sequence[int], weights: Sequence[float]
) -> list[dict[str, Any]]:
    """One split and source, each amount at each weight; before copies comes the baseline."""
    split, test = bench.split(number)
    methods = [method for method in bench.methods if source == COPIES and method.name == BASELINE]
    for count, added in zip(counts, SOURCES[source](split, counts), strict=True):
        for weight in weights:
            weighted = dataclasses.replace(added, weight=weight)
            methods.append(Method(f"{source} {count} × {weight:g}", "", added=partial(_the_same, weighted)))
    base = {**place(bench, number), "seed": split.config.seed}
    return [{**base, "method": one.name, **bench.measured(one, split, test), "commit": commit()} for one in methods]


def plot(runs: Sequence[dict[str, Any]], path: Path, weight: float) -> None:
    """Mean gain over the number of texts or pairs, a panel for each protocol and draw, a line for each source.

    Only splits that every source has are drawn: means over other ones would not compare.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    sources = list(dict.fromkeys(map(_source, runs)))
    had: dict[tuple[Any, ...], set[str]] = {}
    for record in runs:
        had.setdefault(tuple(record[key] for key in PLACE), set()).add(_source(record))
    whole = [run for run in runs if len(had[tuple(run[key] for key in PLACE)]) == len(sources)]
    over, ticks = summarise(whole)["over_sets"], _counts(whole)
    panels = [(shots, protocol) for shots in over for protocol in over[shots]]
    figure = Figure(figsize=(5.2 * len(panels), 3.6), layout="constrained")
    for axes, (shots, protocol) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        methods = over[shots][protocol]
        for source, marker in zip(sources, cycle("sovD"), strict=False):
            counts = [n for n in ticks if f"{source} {n} × {weight:g}" in methods]
            found = [methods[f"{source} {n} × {weight:g}"]["measures"]["accuracy"] for n in counts]
            axes.plot(counts, [100 * one["difference"] for one in found], f"{marker}-", label=source)
        axes.set(xscale="log", xlabel="pairs or texts tried", ylabel="points of accuracy gained")
        axes.set_xticks(ticks, labels=map(str, ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{protocol}, {shots_words(shots)}, weight {weight:g}")
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


def _counts(runs: Sequence[dict[str, Any]]) -> list[int]:
    return sorted({int(run["method"].split()[1]) for run in runs if run["method"] != BASELINE} - {0})


def _the_same(added: Added, split: Split) -> Added:
    return added


def _cell_name(where: dict[str, Any], source: str) -> str:
    return f"{cell_name(where)}-{source}"


def _source(record: dict[str, Any]) -> str:
    return COPIES if record["method"] == BASELINE else str(record["method"]).split()[0]


def main() -> None:
    """Run the grid; finished cells are not run again."""
    parser = argparse.ArgumentParser(prog="python -m studies.amounts", description="How many texts, at what weight.")
    add_options(parser)
    parser.add_argument("--pairs", nargs="+", type=int, default=[96, 192, 384, 768], help="how many are tried")
    parser.add_argument("--sources", nargs="+", default=["mixed"], choices=[*SOURCES][1:], help="what is written")
    parser.add_argument("--finished", type=Path, help="runs.jsonl of an earlier study, made with the same settings")
    parser.add_argument("--weights", nargs="+", type=float, default=[0.5, 0.25], help="of a text beside a row of 1")
    parser.add_argument("--plot", type=Path, help="picture to draw, of the first weight")
    options = parser.parse_args()
    show_logs()
    settings = read_settings(options.config) if options.config else {}
    settings |= {"methods": BASELINE, "n": max(options.pairs)}
    folder = options.output / "amounts"
    run = study_run(
        folder,
        {
            "data": str(options.data.resolve()), "settings": settings, "pairs of rows": options.pairs,
            "weights": options.weights,
        }, [settings.get("pair")],
    )  # fmt: skip
    if options.finished:
        for name, done in groupby(read_json_lines(options.finished), lambda one: _cell_name(one, _source(one))):
            recorded(run, name, partial(list, done))
    runs: list[dict[str, Any]] = []
    for number, bench in benches(options, settings):
        for source in (COPIES, *options.sources):
            name = _cell_name(place(bench, number), source)
            runs += recorded(run, name, partial(cell, bench, number, source, options.pairs, options.weights))
    write_whole(folder / "runs.jsonl", json_lines(runs))
    write_report(runs, folder)
    if options.plot:
        plot(runs, options.plot, options.weights[0])


if __name__ == "__main__":
    run(main)
