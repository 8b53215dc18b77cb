"""``inversedmixup augment TRAIN -o OUT``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from inversedmixup.augment_job import AugmentJobConfig, run_augment_job
from inversedmixup.commands import EXAMPLE, add_config, compared, resolve
from inversedmixup.gate import REASONS
from inversedmixup.report.evidence import NEAR_COPY
from inversedmixup.report.results import observer, those_of
from inversedmixup.stages.trust import describe
from inversedmixup.terminal import new_table, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("train", metavar="TRAIN", help=f"labelled .jsonl, .csv or .parquet; or the word `{EXAMPLE}`")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="output .jsonl, .csv or .parquet")
    add_config(parser, AugmentJobConfig)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Run the main job; the summary, with a few rows to look at."""
    train, output = options.pop("train"), options.pop("output")
    config = resolve(AugmentJobConfig, options)
    if train == EXAMPLE and not Path(train).is_file():
        folder = Path(str(files("inversedmixup") / "example"))
        train = str(folder / "train.jsonl")
        config = dataclasses.replace(config, test=config.test or str(folder / "test.jsonl"))
    result = run_augment_job(train, output, config)
    parents = [[result.examples.find(parent) for parent in row.parents] for row in result.sample]
    sample = [
        {"text": row.text, "label": row.label, "lam": row.lam, "parents": [one.text for one in both if one]}
        for row, both in zip(result.sample, parents, strict=True)
    ]
    return {**result.summary, "sample": sample}


def show(result: dict[str, Any]) -> None:
    """The rows, the counts and the accuracies, as a person wants to read them."""
    out = output()
    if result["kept"]:
        out.print(_table(result["sample"], "\n" if out.is_terminal else " | "))
    out.print(_summary(result), soft_wrap=True)
    for reason in result["rejected"]:
        out.print(f"  {reason}: {REASONS[reason]}", soft_wrap=True)
    if result["kept"]:
        rates = [f"mean cycle similarity {result['cycle_similarity']}"]
        if result["lam_correlation"] is not None:
            rates.append(f"λ against λ̂: r = {result['lam_correlation']}")
        out.print(", ".join(rates), soft_wrap=True)
        out.print(_near_copies(result), soft_wrap=True)
    if "accuracy_with" in result:
        out.print(compared(result), soft_wrap=True)
    out.print(f"report: {result['report']}", soft_wrap=True)
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["seconds_by_stage"].items())
    out.print(f"time: {spent}", soft_wrap=True)


def _table(sample: Sequence[dict[str, Any]], between: str) -> Table:
    """A few of the new rows."""
    table = new_table("λ", "label", "new sentence", "between", title="A few of the new rows")
    for row in sample:
        parents = Text(between).join(Text(parent, style="dim") for parent in row["parents"])
        table.add_row(f"{row['lam']:.2f}", Text(row["label"]), Text(row["text"]), parents)
    return table


def _summary(result: dict[str, Any]) -> str:
    """One line: kept, rejected by reason, what the judge is worth, and intrusion as he sees it."""
    parts = [f"{result['output']}: kept {result['kept']} of {result['asked']} asked for, {result['tried']} tried"]
    if result["rejected"]:
        parts.append("rejected " + ", ".join(f"{count} {reason}" for reason, count in result["rejected"].items()))
    if "judge" in result:
        share = result["judge"]["interpolated_accuracy"]
        beside = "" if share is None else f", the interpolated label on about {share:.0%} of the new texts"
        parts.append(describe(result["judge"]) + beside)
    if result["kept"]:
        parts.append(_intruded(result))
    return "; ".join(parts)


def _near_copies(result: dict[str, Any]) -> str:
    """How many of the kept rows nearly repeat a training text."""
    found, searched = result["near_copies"], those_of(result["kept"], result["near_copies_searched"])
    return f"near-copies of training text (at least {NEAR_COPY:.0%} of the words in common): {found} of {searched}"


def _intruded(result: dict[str, Any]) -> str:
    """Intrusion of the rows kept, of those tried beside it, and who says so."""
    name, error = observer(result)
    kept, tried = result["intrusion_rate_kept"], result["intrusion_rate"]
    errs = "" if error is None else f", who errs on {error:.0%}"
    return f"intruded, as {name} sees it{errs}: {kept:.0%} of those kept, {tried:.0%} of those tried"
