"""``inversedmixup mix "A" "B"``: the λ strip."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inversedmixup.commands import add_config, resolve
from inversedmixup.data import read_examples, take_shots
from inversedmixup.mixer import InversedMixup
from inversedmixup.models.pair import PairOptions
from inversedmixup.options import option
from inversedmixup.stages.writer import DecodeConfig


@dataclasses.dataclass(frozen=True)
class MixConfig(PairOptions, DecodeConfig):
    """Settings of ``mix``. A pair from ``OUT.run/model`` of an earlier ``augment`` shows its labels."""

    steps: int = option(7, "points on the strip, from λ = 1 to λ = 0")
    train: str | None = option(None, "labelled file: fit the task model to it first, to show label probabilities")
    shots: int | None = option(None, "with --train: use only this many rows of each class")
    text_column: str = option("text", "column of the text")
    label_column: str = option("label", "column of the label")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("first", metavar="A", help="the sentence at λ = 1")
    parser.add_argument("second", metavar="B", help="the sentence at λ = 0")
    add_config(parser, MixConfig)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """The strip's rows."""
    first, second = options.pop("first"), options.pop("second")
    config = resolve(MixConfig, options)
    models = {field.name: getattr(config, field.name) for field in dataclasses.fields(PairOptions)}
    mixer = InversedMixup(**models, seed=config.seed)
    if config.train:
        examples = read_examples(config.train, text_column=config.text_column, label_column=config.label_column)
        if config.shots is not None:
            examples = take_shots(examples, config.shots, seed=config.seed)
        mixer.fit([example.text for example in examples], [example.label for example in examples])
    decode = {field.name: getattr(config, field.name) for field in dataclasses.fields(DecodeConfig)}
    return {"first": first, "second": second, "strip": mixer.strip(first, second, steps=config.steps, **decode)}


def show(result: dict[str, Any]) -> None:
    """The strip as a table."""
    labelled = "label_probs" in result["strip"][0]
    table = Table("λ", "λ̂", "cycle", "text", *(["labels"] if labelled else []))
    for row in result["strip"]:
        cells: list[str | Text] = [
            f"{row['lam']:.2f}",
            f"{row['lam_realised']:.2f}",
            f"{row['cycle_similarity']:.2f}",
            Text(row["text"]),
        ]
        if labelled:
            best = sorted(row["label_probs"].items(), key=lambda item: -item[1])[:2]
            cells.append(Text(", ".join(f"{name} {p:.2f}" for name, p in best)))
        table.add_row(*cells)
    Console(file=sys.stdout, highlight=False).print(table)
