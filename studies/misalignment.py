"""How well must the adaptor be aligned? ``python -m studies.misalignment DATA -o DIR --plot FILE``.

The adaptor is degraded on purpose, the same texts are asked for, and what comes of them is set against how well it
reconstructs: the share of texts that a reference finds contradicted (manifold intrusion), their cycle similarity, and
the accuracy that they add to a linear head on the encoder as it ships, under interpolated labels and the reference's.
Ways to degrade it: noise on the embedding that it sees, a rotation of the space that it was trained in, an encoder that
stage 2 moved without the adaptor following (and with it), and earlier pairs (``--earlier``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.benchmark.statistics import interval_on_splits
from inversedmixup.data import read_examples
from inversedmixup.errors import InputError, write_whole
from inversedmixup.labelled import take_shots
from inversedmixup.labels import is_intruded
from inversedmixup.models.pair import Pair
from inversedmixup.models.task_model import TaskModel
from inversedmixup.reference import ReferenceLabeller
from inversedmixup.schema import Example
from inversedmixup.stages.lessons import evaluate_pair
from inversedmixup.stages.warmup import WarmupConfig, fit_task_model, run_warmup
from inversedmixup.terminal import new_table, output
from studies.common import gained_accuracy, interval_words, run, run_grid, sample, study_run, write_texts

PROBE = 32  # test sentences on which reconstruction is measured
NOISE = (0.25, 0.5, 1.0, 2.0)  # length of the noise; an embedding has length 1
TURN = (15, 30, 60, 90)  # degrees
KINDS = {  # by the first word of a condition
    "as": "as shipped", "noise": "noise", "rotation": "rotation", "stage": "after stage 2", "pair": "earlier pairs"
}  # fmt: skip


class Degraded(nn.Module):
    """An adaptor that sees something else than the embedding."""

    def __init__(self, adaptor: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.adaptor, self.change = adaptor, change

    def forward(self, embeddings: Tensor) -> Tensor:
        """Soft tokens [n, k, D] of changed embeddings [n, d]."""
        out: Tensor = self.adaptor(self.change(embeddings))
        return out


def noise(length: float, seed: int) -> Callable[[Tensor], Tensor]:
    """Adds a random vector of this length to each embedding."""
    generator = torch.Generator().manual_seed(seed)

    def change(embeddings: Tensor) -> Tensor:
        added = nn.functional.normalize(torch.randn(embeddings.shape, generator=generator), dim=1)
        return embeddings + length * added.to(embeddings)

    return change


def rotation(degrees: float, seed: int) -> Callable[[Tensor], Tensor]:
    """Turns every embedding by this angle in random planes that lie at right angles."""

    def change(embeddings: Tensor) -> Tensor:
        d, angle = embeddings.shape[1], np.deg2rad(degrees)
        generator = torch.Generator().manual_seed(seed)  # the same planes each time
        basis = torch.linalg.qr(torch.randn(d, d, generator=generator))[0].to(embeddings)
        pairs = (embeddings @ basis).view(len(embeddings), d // 2, 2)
        turned = torch.stack([pairs[..., 0] * np.cos(angle) - pairs[..., 1] * np.sin(angle),
                              pairs[..., 0] * np.sin(angle) + pairs[..., 1] * np.cos(angle)], dim=-1)  # fmt: skip
        back: Tensor = turned.view(len(embeddings), d) @ basis.T
        return back

    return change


def conditions(earlier: Sequence[str]) -> list[str]:
    """Names of everything that is compared; the first is the pair as it ships."""
    return [
        "as shipped", *(f"noise {length}" for length in NOISE), *(f"rotation {angle}" for angle in TURN),
        "stage 2 refined", "stage 2 not refined", *(f"pair {folder}" for folder in earlier),
    ]  # fmt: skip


def shown(condition: str) -> str:
    """A condition without the folders above that of an earlier pair."""
    kind, _, amount = condition.partition(" ")
    return f"{kind} {Path(amount).name}"


def prepared(name: str, examples: Sequence[Example], classes: Sequence[str], seed: int) -> Pair:
    """The pair of one condition, its task model fitted to the examples."""
    kind, _, amount = name.partition(" ")
    pair = Pair.load(amount if kind == "pair" else None)
    if kind == "stage":
        config = WarmupConfig(seed=seed, tolerance=1.0)
        if amount == "2 not refined":
            config = dataclasses.replace(config, follow_steps=0, refine_steps=0)
        run_warmup(pair, examples, classes, config)
        return pair
    fit_task_model(pair.task_model, examples, classes, WarmupConfig(train_encoder="head", seed=seed), lambda _: None)
    if kind in ("noise", "rotation"):
        change = {"noise": noise, "rotation": rotation}[kind](float(amount), seed)
        pair.adaptor = Degraded(pair.adaptor, change)  # type: ignore[assignment]
    return pair


@cache
def reference(train: Path) -> tuple[TaskModel, ReferenceLabeller]:
    """The encoder as it ships and a classifier on it: every condition is judged by the same one."""
    encoder, known = Pair.load_task_model(), sample(read_examples(train))
    return encoder, ReferenceLabeller(encoder.encode([row.text for row in known]), [row.label for row in known])


def cell(data: Path, n: int, name: str, shots: int, seed: int, condition: str) -> dict[str, Any]:
    """What one condition makes of one set, number of shots and seed."""
    train, test = (read_examples(data / name / f"{part}.jsonl") for part in ("train", "test"))
    examples = take_shots(train, shots, seed=seed)
    classes = sorted({example.label for example in examples})
    pair = prepared(condition, examples, classes, seed)
    soft, written = write_texts(pair, examples, n, seed)
    encoder, labeller = reference(data / name / "train.jsonl")
    points = encoder.encode(written.texts)  # not by the pair's own encoder, which stage 2 may have moved
    true = labeller.label(points)
    right = (true[:, None] == np.array(classes)).astype(float)
    scores = evaluate_pair(pair, [row.text for row in test[:PROBE]], 40, word_weight=0.0)  # as the texts are written
    intruded = [is_intruded(c, dict(zip(classes, row, strict=True))) for c, row in zip(true, soft, strict=True)]
    return {
        "set": name, "shots": shots, "seed": seed, "condition": shown(condition), "n": n,
        "token_f1": scores["token_f1"], "cosine": scores["cosine"],
        "cycle_similarity": float(np.mean(written.cycle_similarity)), "intrusion": float(np.mean(intruded)),
        "reference_accuracy": labeller.accuracy,
        **{key: gained_accuracy(encoder, examples, test, points, targets)
           for key, targets in (("gain", soft), ("gain_reference", right))},
    }  # fmt: skip


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means of each condition over sets and seeds; intervals of the gains, paired with the shots alone."""
    rows = []
    for condition in dict.fromkeys(record["condition"] for record in records):
        cells = [record for record in records if record["condition"] == condition]
        row: dict[str, Any] = {"condition": condition, "cells": len(cells)}
        for key in ("token_f1", "cosine", "cycle_similarity", "intrusion", "gain", "gain_reference"):
            values = np.array([record[key] for record in cells])
            row[key] = float(values.mean())
            if key.startswith("gain"):
                row[f"{key}_interval"] = interval_on_splits(values)
        rows.append(row)
    return rows


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Intrusion, cycle similarity and gain against the token F1 of reconstructions.

    Their cosine would compare spaces: an encoder that stage 2 moved, or that of an earlier pair, has another.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.6), layout="constrained")
    panels = (
        ("intrusion", "contradicted texts"),
        ("cycle_similarity", "cycle similarity"),
        ("gain", "accuracy gained, interpolated labels"),
        ("gain_reference", "accuracy gained, right labels"),
    )
    for axes, (key, title) in zip(figure.subplots(1, 4), panels, strict=True):
        for marker, kind in zip("o^sDv", KINDS, strict=True):
            chosen = [row for row in rows if row["condition"].split()[0] == kind]
            axes.plot([r["token_f1"] for r in chosen], [r[key] for r in chosen], marker, label=KINDS[kind])
        axes.set(xlabel="token F1 of reconstructions", title=title)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the grid; finished cells are not run again."""
    parser = argparse.ArgumentParser(prog="python -m studies.misalignment", description="Degrade the adaptor and look.")
    parser.add_argument("data", type=Path, help="folder with a folder for each set: train.jsonl and test.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the cells and summary.json")
    parser.add_argument("--sets", nargs="+", default=["trec"])
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, default=60, help="texts of a cell")
    parser.add_argument("--earlier", nargs="*", default=[], help="folders of earlier pairs")
    parser.add_argument("--plot", type=Path, help="picture to draw")
    options = parser.parse_args()
    settings = {"data": str(options.data.resolve()), "n": options.n}
    if len({Path(folder).name for folder in options.earlier}) < len(options.earlier):
        raise InputError("--earlier: two folders have the same name, by which results are told apart; rename one")
    run = study_run(options.output, settings, [None, *options.earlier])

    def make(name: str, shots: int, seed: int, condition: str) -> dict[str, Any]:
        return cell(options.data, options.n, name, shots, seed, condition)

    names = conditions(options.earlier)
    grid = [(name, options.shots, s, c) for s in range(options.seeds) for name in options.sets for c in names]
    rows = summarise(run_grid(grid, make, run))
    write_whole(options.output / "summary.json", json.dumps(rows, indent=1).encode())
    table = new_table(
        "adaptor", "token F1", "cosine", "cycle", "intrusion", "gain", "95 %", "under right labels", "95 %"
    )
    for row in rows:
        figures = [f"{row[key]:.3f}" for key in ("token_f1", "cosine", "cycle_similarity", "intrusion")]
        for key in ("gain", "gain_reference"):
            figures += [f"{row[key]:+.3f}", interval_words(row[f"{key}_interval"])]
        table.add_row(row["condition"], *figures)
    output().print(table)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    run(main)
