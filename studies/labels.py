"""Which labels should augmented texts get? ``python -m studies.labels DATA -o DIR``.

For each set, number of shots and seed: cross-class texts are written once by the default pair with its encoder as it
is; then every label policy labels the same texts. Its error is counted against a reference (a classifier fitted to up
to 5,000 labelled rows), its worth is the accuracy of a linear head on the frozen encoder, fitted to the shots and to
the texts at weight 0.3, less that of the head fitted to the shots alone. Same texts, same shots: paired.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from inversedmixup.data import read_examples
from inversedmixup.errors import write_whole
from inversedmixup.judges import Case, JudgeConfig, make_panel
from inversedmixup.judges.panel import named, pool
from inversedmixup.labelled import take_shots
from inversedmixup.labels import LabelPolicy, choose_label
from inversedmixup.models.pair import Pair
from inversedmixup.reference import ReferenceLabeller
from inversedmixup.stages.warmup import CrossValidation, WarmupConfig, fit_task_model
from studies.common import (
    SETS,
    WEIGHT,
    encode,
    head_accuracy,
    one_hot,
    paired,
    run_grid,
    sample,
    study_run,
    write_texts,
)

POLICIES = {
    "interpolated": ("soft", None), "larger parent": ("soft", 0.0),
    **{f"{kind} {judge}": (f"{kind}:{judge}", None) for kind in ("hard", "mitigated", "drop")
       for judge in ("task", "llm", "tuned", "agreement", "pool", "reference")},
    "pool": ("pool:pool", None),
}  # fmt: skip
JUDGES = "task+llm+tuned"


def cell(pair: Pair, data: Path, name: str, shots: int, seed: int, n: int) -> dict[str, Any]:
    """One set, number of shots and seed: accuracies, label errors and coverages by policy."""
    train, test = (read_examples(data / name / f"{part}.jsonl") for part in ("train", "test"))
    examples = take_shots(train, shots, seed=seed)
    classes = sorted({example.label for example in examples})
    config = WarmupConfig(train_encoder="head", seed=seed)
    fit_task_model(pair.task_model, examples, classes, config, lambda _: None)
    embeddings = pair.task_model.encode([example.text for example in examples])
    soft, written = write_texts(pair, examples, classes, embeddings, n, seed)
    reread = written.reread
    known = sample(train)
    reference = ReferenceLabeller(encode(pair, known), [row.label for row in known])
    fit = CrossValidation(Pair.load_task_model, examples, classes, config)
    panel = make_panel(JUDGES, Case(pair, examples, classes, JudgeConfig(), seed, fit))
    said = panel.hear(written.texts, reread)
    true = reference.label(reread)
    said["pool"] = pool([said["task"], said["tuned"]])
    said["reference"] = (true[:, None] == np.array(classes)).astype(float)
    points, answers = encode(pair, test), np.array([example.label for example in test])
    base = head_accuracy(embeddings, one_hot(examples, classes), np.ones(len(examples)), classes, points, answers)
    record: dict[str, Any] = {
        "set": name, "shots": shots, "seed": seed, "n": n, "classes": len(classes), "accuracy_without": base,
        "reference": {"accuracy": reference.accuracy, "n": reference.n}, "policies": {},
    }  # fmt: skip
    for policy, (labels, temperature) in POLICIES.items():
        kind, _, judge = labels.partition(":")
        heard = [named(said[judge][at], classes) if judge else None for at in range(n)]
        chosen = [choose_label(LabelPolicy(kind, judge or None), soft[at], heard[at], temperature) for at in range(n)]
        kept = [at for at in range(n) if chosen[at].refused is None]
        targets = np.array([[chosen[at].probs[c] for c in classes] for at in kept]).reshape(len(kept), len(classes))
        accuracy = head_accuracy(
            torch.cat([embeddings, reread[kept]]), np.concatenate([one_hot(examples, classes), targets]),
            np.array([1.0] * len(examples) + [WEIGHT] * len(kept)), classes, points, answers,
        )  # fmt: skip
        wrong = [chosen[at].label != true[at] for at in kept]
        record["policies"][policy] = {
            "gain": round(accuracy - base, 4), "coverage": len(kept) / n,
            "label_error": round(float(np.mean(wrong)), 4) if kept else None,
        }  # fmt: skip
    return record


# ---- the table ---------------------------------------------------------------------------------------------------


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each set, number of shots and policy: means over the seeds, 95 % bootstrap interval and Wilcoxon's p."""
    rows = []
    for key in dict.fromkeys((record["set"], record["shots"]) for record in records):
        cells = [record for record in records if (record["set"], record["shots"]) == key]
        for policy in POLICIES:
            found = [record["policies"][policy] for record in cells]
            errors = [one["label_error"] for one in found if one["label_error"] is not None]
            rows.append({
                "set": key[0], "shots": key[1], "seeds": len(cells), "policy": policy,
                "accuracy_without": float(np.mean([record["accuracy_without"] for record in cells])),
                "label_error": float(np.mean(errors)) if errors else None,
                "coverage": float(np.mean([one["coverage"] for one in found])),
                **paired([one["gain"] for one in found]),
            })  # fmt: skip
    return rows


def main() -> None:
    """Run the grid; finished cells are not run again."""
    parser = argparse.ArgumentParser(prog="python -m studies.labels", description="Label policies on the same texts.")
    parser.add_argument("data", type=Path, help="folder with a folder for each set: train.jsonl and test.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the cells and summary.json")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--shots", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--n", type=int, default=60, help="texts of a cell")
    parser.add_argument("--pair", help="pair folder; default: the one that ships")
    options = parser.parse_args()
    run = study_run(options.output, {"data": str(options.data.resolve()), "n": options.n}, [options.pair])
    pair = Pair.load(options.pair)

    def make(name: str, shots: int, seed: int) -> dict[str, Any]:
        return cell(pair, options.data, name, shots, seed, options.n)

    grid = ((name, shots, seed) for shots in options.shots for seed in range(options.seeds) for name in options.sets)
    records = run_grid(grid, make, run)
    rows = summarise(records)
    write_whole(options.output / "summary.json", json.dumps(rows, indent=1).encode())
    table = Table("set", "shots", "seeds", "without", "policy", "label error", "coverage", "gain", "95 %", "p")
    for row in rows:
        interval = "–" if row["low"] is None else f"{row['low']:+.3f} … {row['high']:+.3f}"
        error, p = ("–" if row[key] is None else f"{row[key]:.3f}" for key in ("label_error", "p"))
        table.add_row(
            row["set"], str(row["shots"]), str(row["seeds"]), f"{row['accuracy_without']:.3f}", row["policy"], error,
            f"{row['coverage']:.2f}", f"{row['gain']:+.3f}", interval, p,
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
