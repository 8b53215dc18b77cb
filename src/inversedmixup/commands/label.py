"""``inversedmixup label TRAIN TEXTS -o OUT``."""

from __future__ import annotations

import argparse
from typing import Any

from rich.text import Text

from inversedmixup.commands import add_config, compared, resolve
from inversedmixup.label_job import LabelJobConfig, run_label_job
from inversedmixup.stages.pseudo_label import REASONS
from inversedmixup.stages.trust import describe
from inversedmixup.terminal import new_table, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("train", metavar="TRAIN", help="labelled .jsonl, .csv or .parquet")
    parser.add_argument("texts", metavar="TEXTS", help="unlabelled .jsonl, .csv, .parquet or .txt (a text a line)")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="output .jsonl, .csv or .parquet")
    add_config(parser, LabelJobConfig)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Label the texts; the summary, with a few of them to look at."""
    train, texts, output = options.pop("train"), options.pop("texts"), options.pop("output")
    return run_label_job(train, texts, output, resolve(LabelJobConfig, options))


def show(result: dict[str, Any]) -> None:
    """Some of the labelled texts, the counts, what the judge is worth, and the accuracies."""
    out = output()
    if result["labelled"]:
        table = new_table("label", "confidence", "sentence", title="A few of the labelled sentences")
        for row in result["sample"]:
            table.add_row(Text(row["label"]), f"{row['confidence']:.2f}", Text(row["text"]))
        out.print(table)
    parts = [f"{result['output']}: labelled {result['labelled']} of {result['asked']}"]
    if result["rejected"]:
        parts.append("left out " + ", ".join(f"{count} {reason}" for reason, count in result["rejected"].items()))
    out.print("; ".join([*parts, describe(result["judge"])]), soft_wrap=True)
    for reason in result["rejected"]:
        out.print(f"  {reason}: {REASONS[reason]} (in {result['rejected_output']})", soft_wrap=True)
    if result["labelled"]:
        counts = ", ".join(f"{count} {name}" for name, count in result["classes"].items())
        out.print(f"classes: {counts}", soft_wrap=True)
    if "accuracy_with" in result:
        out.print(compared(result), soft_wrap=True)
    out.print(f"time: {result['seconds']:.0f} s", soft_wrap=True)
