"""Did stage 1 spoil the encoder that it moved? ``python -m studies.probes DATA -o DIR``.

The default pair's encoder was trained together with its adaptor. For each set, the encoder as it came and the one of
the pair read the same rows, and three figures say what is left of its use: accuracy of a *linear probe* (logistic
regression on the training rows), *retrieval* (how often the nearest training row has the test row's class), and how
far the two encoders *agree* about similarity (Spearman's ρ of the cosines of random pairs of test rows).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from inversedmixup.data import read_examples
from inversedmixup.errors import write_whole
from inversedmixup.models.pair import Pair, default_pair_folder, read_config
from inversedmixup.models.task_model import TaskModel
from inversedmixup.schema import Example
from inversedmixup.terminal import new_table, output
from studies.common import SETS, head_accuracy, one_hot, run, run_grid, sample, study_run

PAIRS = 2000  # of test rows, whose cosines are compared


def cell(original: TaskModel, moved: TaskModel, data: Path, name: str, train: int, test: int) -> dict[str, Any]:
    """Figures of one set by encoder."""
    known, asked = (
        sample(read_examples(data / name / f"{part}.jsonl"), count)
        for part, count in (("train", train), ("test", test))
    )
    classes = sorted({row.label for row in known})
    record: dict[str, Any] = {"set": name, "train": len(known), "test": len(asked)}
    cosines = []
    for which, encoder in (("original", original), ("moved", moved)):
        points, questions = (encoder.encode([row.text for row in rows]) for rows in (known, asked))
        record[which] = {
            "probe": _probe(points, known, questions, asked, classes),
            "retrieval": _retrieval(points, known, questions, asked),
        }
        first, second = np.random.default_rng(0).integers(len(asked), size=(2, PAIRS))
        unequal = first != second
        cosines.append((questions[first] * questions[second]).sum(1).numpy()[unequal])
    from scipy.stats import spearmanr

    record["agreement"] = round(float(spearmanr(*cosines).statistic), 4)
    return record


def _probe(points: Tensor, known: list[Example], questions: Tensor, asked: list[Example], classes: list[str]) -> float:
    answers = np.array([row.label for row in asked])
    return round(head_accuracy(points, one_hot(known, classes), np.ones(len(known)), classes, questions, answers), 4)


def _retrieval(points: Tensor, known: list[Example], questions: Tensor, asked: list[Example]) -> float:
    nearest = (questions @ points.T).argmax(1).tolist()  # embeddings are of unit length
    return round(float(np.mean([known[at].label == row.label for at, row in zip(nearest, asked, strict=True)])), 4)


def main() -> None:
    """Run the sets; finished ones are not run again."""
    parser = argparse.ArgumentParser(prog="python -m studies.probes", description="What the moved encoder is worth.")
    parser.add_argument("data", type=Path, help="folder with a folder for each set: train.jsonl and test.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the cells and summary.json")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--train", type=int, default=1000, help="training rows of a set")
    parser.add_argument("--test", type=int, default=500, help="test rows of a set")
    options = parser.parse_args()
    run = study_run(options.output, {"train": options.train, "test": options.test}, [None])
    original = TaskModel.from_pretrained(read_config(default_pair_folder()).encoder)
    moved = Pair.load_task_model()

    def make(name: str) -> dict[str, Any]:
        return cell(original, moved, options.data, name, options.train, options.test)

    records = run_grid(((name,) for name in options.sets), make, run)
    write_whole(options.output / "summary.json", json.dumps(records, indent=1).encode())
    table = new_table("set", "rows", "probe: original, moved", "retrieval: original, moved", "agreement")
    for record in records:
        figures = [f"{record['original'][what]:.3f}, {record['moved'][what]:.3f}" for what in ("probe", "retrieval")]
        table.add_row(record["set"], f"{record['train']}, {record['test']}", *figures, f"{record['agreement']:.3f}")
    output().print(table)


if __name__ == "__main__":
    run(main)
