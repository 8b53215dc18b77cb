"""Does it help, on whose data, against what? ``python -m studies.evidence DATA -o DIR``.

Every method of the benchmark on every evaluation set, with the same splits, steps and weights. Splits are the outer
loop: whenever the study is stopped, every set has had about as many. Finished runs are not done again, nor those of
``--finished results/runs.jsonl``; ``--splits``, ``--sets`` and ``--methods`` can grow. ``DIR/runs.jsonl`` holds every
run, ``summary.json`` and ``tables.md`` what follows from them; ``studies.merge`` joins the runs of several folders.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from inversedmixup.baselines import BASELINE, Added, Method, Split
from inversedmixup.baselines.inversed import kept_rows
from inversedmixup.baselines.pseudo_label import of_texts
from inversedmixup.benchmark import BenchmarkConfig
from inversedmixup.benchmark.cells import RUN, Bench, run_name
from inversedmixup.benchmark.estimate import tunes
from inversedmixup.benchmark.records import Record
from inversedmixup.benchmark.report import write_report
from inversedmixup.errors import InputError, write_whole
from inversedmixup.models.task_model import TaskModel
from inversedmixup.options import build, read_settings
from inversedmixup.reference import ReferenceLabeller
from inversedmixup.schema import Example, Row
from inversedmixup.terminal import progress, show_logs
from studies.common import SETS, json_lines, read_json_lines, run, sample

REFERENCE = "inversed-reference"
DESCRIBED = "-described"  # ending of a method whose judges are told what the class names mean
PSEUDO = "pseudo-label"  # the benchmark's method of this name, on training rows that the split did not draw

# with an encoder that stays as it ships, stage 2 would only polish the adaptor on the shots: left out for its cost
PROTOCOLS: dict[str, dict[str, Any]] = {
    "frozen": {"train_encoder": "head", "follow_steps": 0, "refine_steps": 0},
    "fine-tuned": {"train_encoder": "full"},
}


def places(root: Path) -> Iterator[Path]:
    """The folders of finished and unfinished benchmarks under a study: protocol / draw / set."""
    yield from sorted(path.parents[1] for path in root.glob(f"*/*/*/{RUN}/config.json"))


def gathered(root: Path) -> list[Record]:
    """Every record of the study, in one order."""
    return in_order(
        json.loads(path.read_text(encoding="utf-8"))["value"]
        for place in places(root)
        for path in sorted((place / RUN / "runs").glob("*.json"))
    )


def in_order(records: Iterable[Record]) -> list[Record]:
    """The order of ``runs.jsonl``."""
    keys = ("protocol", "shots", "set", "split", "method")
    return sorted(records, key=lambda record: [record[key] for key in keys])


class Reference:
    """Labels that nobody with few rows has: those of a classifier of all training rows, on the encoder as it ships.

    Args:
        rows: the training rows; at most :data:`~studies.common.REFERENCE_ROWS` of them are used.
    """

    def __init__(self, rows: Sequence[Example]) -> None:
        self.rows = sample(rows)
        self._fitted: tuple[TaskModel, ReferenceLabeller] | None = None

    def fitted(self, config: BenchmarkConfig) -> tuple[TaskModel, ReferenceLabeller]:
        """The encoder as it ships, and the classifier on its embeddings."""
        if self._fitted is None:
            encoder = config.load_task_model()
            points = encoder.encode([row.text for row in self.rows])
            self._fitted = encoder, ReferenceLabeller(points, [row.label for row in self.rows])
        return self._fitted

    def label(self, texts: Sequence[str], config: BenchmarkConfig) -> list[str]:
        """The class of each text."""
        encoder, labeller = self.fitted(config)
        return labeller.label(encoder.encode(texts)).tolist() if texts else []

    def added(self, split: Split) -> Added:
        """Mixes across classes with these labels: what right labels would be worth."""
        texts = [row.text for row in cross_class(split)]
        said = self.label(texts, split.config)
        known = [(text, name) for text, name in zip(texts, said, strict=True) if name in split.classes]
        targets = np.array([[float(name == own) for own in split.classes] for _, name in known])
        return Added([text for text, _ in known], targets.reshape(len(known), len(split.classes)))


def cross_class(split: Split) -> list[Row]:
    """The split's mixes across classes under their interpolated labels; every label policy shares them."""
    return kept_rows(split, dataclasses.replace(split.config, pairs="cross-class", labels="soft", accept_labels="any"))


def pseudo(bench: Bench, split: Split) -> Added:
    """Training rows that the split did not draw, without their labels, labelled as the policy does."""
    return of_texts(split, (row.text for row in bench.rows))


def take_over(bench: Bench, finished: list[dict[str, Any]]) -> None:
    """Count runs of an earlier study as finished here: those of this benchmark's set, draw, protocol and splits.

    Raises:
        InputError: for one with another seed or other test rows. That the other settings are the same is for the
            caller to know.
    """
    own = {"set": bench.name, "shots": bench.draw, "protocol": bench.protocol}.items()
    for record in finished:
        if own <= record.items() and record["split"] < bench.config.splits:
            name = run_name(record["split"], record["method"])
            if (record["seed"], record["test"]) != (bench.config.seed + record["split"], len(bench.test)):
                raise InputError(f"--finished: {bench.name} {name} has another seed, or other test rows")
            if bench.run.read(name) is None:
                bench.run.write(name, record)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say on what: sets, draws, protocols, splits, and the settings of all of them."""
    parser.add_argument("data", type=Path, help="folder with a folder for each set: train.jsonl and test.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--config", help="YAML file with settings of `benchmark`, the same for every set")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--draws", nargs="+", default=["10"])
    parser.add_argument("--protocols", nargs="+", default=["frozen"], choices=PROTOCOLS)
    parser.add_argument("--splits", type=int, default=10, help="draws of the training rows; default: 10")
    parser.add_argument("--descriptions", type=Path, help="folder of SET.yaml files that say what class names mean")
    parser.add_argument("--first-split", type=int, default=0, help="leave out those before it")


def benches(options: argparse.Namespace, settings: dict[str, Any]) -> Iterator[tuple[int, Bench]]:
    """Every split from ``--first-split`` on with its benchmark, split by split."""
    known: dict[str, Tensor] = {}
    for split in range(options.first_split, options.splits):
        for protocol in options.protocols:
            for draw in options.draws:
                for name in options.sets:
                    own = {"draw": draw, "splits": split + 1, **PROTOCOLS[protocol]}
                    if options.descriptions:
                        own["descriptions"] = str(options.descriptions / f"{name}.yaml")
                    yield split, Bench(
                        str(options.data / name / "train.jsonl"), str(options.data / name / "test.jsonl"),
                        str(options.output / protocol / draw.replace(":", "-") / name),
                        build(BenchmarkConfig, settings, own), known,
                    )  # fmt: skip


def place(bench: Bench, number: int) -> dict[str, Any]:
    """Which cell of the grid a split of a benchmark is."""
    return {"set": bench.name, "shots": bench.draw, "split": number, "protocol": bench.protocol}


def cell_name(cell: dict[str, Any]) -> str:
    """Name of a cell's record, from what :func:`place` says."""
    return "cells/" + re.sub(r"[^\w-]", "_", f"{cell['protocol']}-{cell['shots']}-{cell['set']}-{cell['split']:03d}")


def main() -> None:
    """Run the grid and write what follows from it."""
    parser = argparse.ArgumentParser(prog="python -m studies.evidence", description="Every method on every set.")
    add_options(parser)
    parser.add_argument(
        "--methods", help=f"default: those of the config file; with --descriptions, method descriptions and those that "
        f"tune judges, which are then called …{DESCRIBED}"
    )  # fmt: skip
    parser.add_argument("--unlabelled", action="store_true", help=f"also {PSEUDO}, of other training rows")
    parser.add_argument("--reference", action="store_true", help=f"also {REFERENCE}: labels of all training rows")
    parser.add_argument("--finished", type=Path, help="runs.jsonl of an earlier study, made with the same settings")
    options = parser.parse_args()
    show_logs()
    finished = read_json_lines(options.finished) if options.finished else []
    settings = read_settings(options.config) if options.config else {}
    if options.methods:
        settings["methods"] = options.methods
    references: dict[str, Reference] = {}
    for number, bench in benches(options, settings):
        if options.reference:
            reference = references.setdefault(bench.name, Reference(bench.rows))
            about = "mixes across classes, labelled by a classifier of all training rows"
            bench.methods.append(Method(REFERENCE, about, added=reference.added, writes=True))
        if options.unlabelled:
            about = "other training rows, labelled as the policy does"
            bench.methods.append(Method(PSEUDO, about, added=partial(pseudo, bench), tunes=1))
        if options.descriptions:
            tuning = [method for method in bench.methods if tunes([method], bench.config)]
            bench.methods = [
                *(method for method in bench.methods if method.name in (BASELINE, "descriptions")),
                *(dataclasses.replace(method, name=method.name + DESCRIBED) for method in tuning),
            ]
        take_over(bench, finished)
        with progress(f"{bench.name}, split {number}", len(bench.missing(number))) as advance:
            bench.run_split(number, advance)
    records = gathered(options.output)
    write_whole(options.output / "runs.jsonl", json_lines(records))
    write_report(records, options.output)


if __name__ == "__main__":
    run(main)
