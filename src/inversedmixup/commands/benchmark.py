"""``inversedmixup benchmark TRAIN [TEST] -o DIR``: does it help on these data?"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inversedmixup.baselines import BASELINE, methods
from inversedmixup.benchmark import BenchmarkConfig, run_benchmark
from inversedmixup.benchmark.cells import RUN
from inversedmixup.benchmark.records import ADDED, MEASURES, RARE
from inversedmixup.benchmark.tables import NAMES, points
from inversedmixup.commands import add_config, resolve
from inversedmixup.terminal import new_table, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("train", metavar="TRAIN", help="labelled .jsonl, .csv or .parquet")
    parser.add_argument(
        "test", metavar="TEST", nargs="?", help="labelled rows to measure on; default: cross-validation"
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for every run and what follows")
    add_config(parser, BenchmarkConfig)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    width = max(map(len, methods())) + 2
    parser.epilog = "methods:\n" + "\n".join(f"  {name:{width}}{method.about}" for name, method in methods().items())
    parser.epilog += f"\n  ({BASELINE} is always run: the others are compared with it)"


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Every run, and the verdicts."""
    train, test, where = options.pop("train"), options.pop("test"), options.pop("output")
    config = resolve(BenchmarkConfig, options)
    return {**run_benchmark(train, test, where, config), "output": where}


def show(result: dict[str, Any]) -> None:
    """A line a method, and the verdicts in words."""
    out = output()
    methods = result["methods"]
    shown = [name for name in (*MEASURES, RARE) if any(name in found for found in methods.values())]
    titles = (NAMES[name] for name in shown)
    table = new_table("method", *titles, "rows added", "gain in points of accuracy", "95 %", "verdict")
    for name, found in methods.items():
        means = (f"{found[measure]:.3f}" if measure in found else "–" for measure in shown)
        added = f"{found[ADDED]:,.0f}" if ADDED in found else "–"
        table.add_row(name, *means, added, *_compared(found))
    out.print(table)
    rare = "; rare classes have fewer rows than the median one" if RARE in shown else ""
    out.print(f"{BASELINE}: the same rows alone, trained as long; gains are over it{rare}", soft_wrap=True)
    for sentence in result["verdicts"]:
        out.print(sentence, soft_wrap=True)
    out.print(f"every run is a file in {Path(result['output'], RUN, 'runs')}", soft_wrap=True)


def _compared(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Gain, interval and verdict; nothing for the baseline itself."""
    verdict = found.get("verdict")
    if verdict is None:
        return "", "", ""
    interval = "" if verdict["interval"] is None else " … ".join(map(points, verdict["interval"]))
    return points(verdict["gain"]), interval, verdict["word"]
