"""Which labels should augmented texts get? ``python -m studies.labels DATA -o DIR --config studies/evidence.yaml``.

For each split of the evidence study, texts between two classes are written once (in the same folder, they and the
tuned judges are taken from there). Every judge says which class each text belongs to, every label policy labels the
same texts, and a task model is trained on them as in that study. A reference, a classifier of up to 5,000 labelled
rows, says what is right; its own accuracy is in every cell. ``DIR/labels`` holds the cells, also as ``cells.jsonl``,
their ``runs.jsonl`` with the benchmark's tables, in which a policy is a method, and ``labels.json``: the figures that
are printed. ``--finished`` takes the ``cells.jsonl`` of an earlier study, in which fewer judges may have been asked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from torch import Tensor

from inversedmixup.baselines import BASELINE, Added, Method, Split
from inversedmixup.benchmark import statistics
from inversedmixup.benchmark.cells import Bench
from inversedmixup.benchmark.report import write_report
from inversedmixup.errors import write_whole
from inversedmixup.judges import score
from inversedmixup.judges.panel import majority, named, pool
from inversedmixup.labelled import class_numbers
from inversedmixup.labels import LabelPolicy, choose_label, is_intruded
from inversedmixup.options import read_settings
from inversedmixup.runs import recorded
from inversedmixup.terminal import new_table, output, show_logs
from studies.common import interval_words, json_lines, read_json_lines, run, study_run
from studies.evidence import Reference, add_options, benches, cell_name, cross_class, place

ASKED = "task+probe+llm+tuned+incontext"
REFERENCE = "reference"
# what some of them say together; left out where one of them is not asked
TOGETHER: dict[str, tuple[Callable[[Sequence[np.ndarray]], np.ndarray], tuple[str, ...]]] = {
    "agreement": (majority, ("task", "llm", "tuned")),
    "both": (majority, ("task", "tuned")),
    "pool": (pool, ("task", "tuned")),
    "pool of three": (pool, ("task", "llm", "tuned")),
    "task and probe": (pool, ("task", "probe")),
    "task and incontext": (pool, ("task", "incontext")),
    "tuned and incontext": (pool, ("tuned", "incontext")),
    "pool with incontext": (pool, ("task", "tuned", "incontext")),
}
JUDGES = (*ASKED.split("+"), *TOGETHER, "prototypes", "self-training", REFERENCE)
POLICIES: dict[str, tuple[LabelPolicy, float | None]] = {
    "interpolated": (LabelPolicy("soft", None), None),
    "larger parent": (LabelPolicy("soft", None), 0.0),
    **{
        f"{kind} {judge}": (LabelPolicy(kind, judge), None)
        for kind in ("hard", "mitigated", "drop")
        for judge in JUDGES
    },
    **{
        judge: (LabelPolicy("pool", judge), None)
        for judge in (*ASKED.split("+"), *(name for name, (way, _) in TOGETHER.items() if way is pool))
    },
    "pool, half way": (LabelPolicy("pool", "pool"), 0.5),  # to its likeliest class
}


def opinions(split: Split, texts: Sequence[str], embeddings: Tensor, asked: str) -> dict[str, np.ndarray]:
    """Class probabilities [n, classes] that each of :data:`JUDGES` but the reference gives; NaN where it abstains."""
    panel = split.panel(f"pool:{asked}")
    assert panel is not None
    heard = panel.hear(texts, embeddings)
    said = {judge.name: heard[judge.name] for judge in panel.judges}
    for name, (way, judges) in TOGETHER.items():
        if said.keys() >= set(judges):
            said[name] = way([said[judge] for judge in judges])
    return said | by_distance(split, embeddings)


def by_distance(split: Split, embeddings: Tensor) -> dict[str, np.ndarray]:
    """Classes, as probabilities of 0 and 1, of two labellers that look at embeddings [n, d] alone.

    ``prototypes``: the class with the nearest mean. ``self-training``: logistic regression that labels the ten texts
    that it is surest of, learns from them, and so on to the last (Yarowsky 1995).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestCentroid
    from sklearn.semi_supervised import SelfTrainingClassifier

    known = split.pair.task_model.encode([row.text for row in split.examples]).numpy()
    numbers, points = class_numbers(split.examples, split.classes), embeddings.numpy()
    prototypes = NearestCentroid().fit(known, numbers).predict(points)
    every = np.concatenate([known, points]), np.concatenate([numbers, np.full(len(points), -1)])
    learner = SelfTrainingClassifier(
        LogisticRegression(C=10.0), criterion="k_best", k_best=min(10, len(points)), max_iter=None
    )
    self_trained = learner.fit(*every).transduction_[len(known) :]
    sure = np.eye(len(split.classes))
    return {"prototypes": sure[prototypes], "self-training": sure[self_trained]}


def cell(bench: Bench, number: int, reference: Reference, asked: str = ASKED) -> dict[str, Any]:
    """One split: what the judges that are asked say of its texts, and what each label policy is worth."""
    split, test = bench.split(number)
    rows = cross_class(split)
    texts = [row.text for row in rows]
    embeddings = split.pair.task_model.encode(texts)
    said = opinions(split, texts, embeddings, asked)
    true = np.array(reference.label(texts, split.config))
    said[REFERENCE] = (true[:, None] == np.array(split.classes)).astype(float)
    numbers = np.array([split.classes.index(name) if name in split.classes else -1 for name in true])
    base = {**place(bench, number), "seed": split.config.seed}
    baseline = next(method for method in bench.methods if method.name == BASELINE)
    runs = [{**base, "method": BASELINE, **bench.measured(baseline, split, test)}]
    for policy, (labels, temperature) in POLICIES.items():
        if labels.judge and labels.judge not in said:
            continue
        heard = [named(said[labels.judge][at], split.classes) if labels.judge else None for at in range(len(rows))]
        labelled = [
            choose_label(labels, row.label_probs, own, temperature) for row, own in zip(rows, heard, strict=True)
        ]
        kept = [at for at, one in enumerate(labelled) if one.refused is None]
        targets = np.array([[labelled[at].probs[name] for name in split.classes] for at in kept])
        added = Added([texts[at] for at in kept], targets.reshape(len(kept), len(split.classes)))
        method = Method(policy, "", added=lambda _, added=added: added)  # type: ignore[misc]
        runs.append({
            **base, "method": policy, **bench.measured(method, split, test), "coverage": len(kept) / len(rows),
            "label_error": float(np.mean([labelled[at].label != true[at] for at in kept])) if kept else None,
        })  # fmt: skip
    scores = {judge: score(said[judge], numbers) for judge in JUDGES if judge in said}
    _, labeller = reference.fitted(split.config)
    return {
        **base, "n": len(rows), "reference": {"accuracy": labeller.accuracy, "n": labeller.n},
        "intrusion": float(np.mean([is_intruded(own, row.label_probs) for own, row in zip(true, rows, strict=True)])),
        "judges": {
            judge: {"coverage": own["coverage"], "precision": own["accuracy"]} for judge, own in scores.items()
        }, "runs": runs,
    }  # fmt: skip


# ---- tables ------------------------------------------------------------------------------------------------------


def summarise(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each protocol, draw and judge or policy, means over the splits of each set, and over the sets.

    Judges have a ``precision`` and a ``coverage``; policies a ``gain`` over the baseline, a ``label_error`` and a
    ``coverage``. ``interval`` is that of a set's mean gain over its splits, or of the mean gain over sets.
    """
    found = []
    for setting, own in _by_setting(cells):
        for judge in JUDGES:
            values = [(cell["set"], cell["judges"][judge]) for cell in own if judge in cell["judges"]]
            if values:
                found.append({**setting, "judge": judge, **_by_set(values, ("precision", "coverage"))})
        for policy in POLICIES:
            values = [(cell["set"], {**run, "gain": run["accuracy"] - cell["runs"][0]["accuracy"]})
                      for cell in own for run in cell["runs"] if run["method"] == policy]  # fmt: skip
            if values:
                found.append({**setting, "policy": policy, **_by_set(values, ("gain", "label_error", "coverage"))})
    return found


def _by_setting(records: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Records of the same protocol and draw, with these two."""
    for protocol, shots in dict.fromkeys((record["protocol"], record["shots"]) for record in records):
        own = [record for record in records if (record["protocol"], record["shots"]) == (protocol, shots)]
        yield {"protocol": protocol, "shots": shots}, own


def _by_set(values: Sequence[tuple[str, dict[str, Any]]], measures: Iterable[str]) -> dict[str, Any]:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for name, value in values:
        by_name.setdefault(name, []).append(value)
    sets: dict[str, Any] = {name: {"splits": len(found)} for name, found in by_name.items()}
    over: dict[str, Any] = {}
    for measure in measures:
        numbers = {name: np.array([value[measure] for value in found if value[measure] is not None], dtype=float)
                   for name, found in by_name.items()}  # fmt: skip
        for name, own in numbers.items():
            sets[name][measure] = float(own.mean()) if len(own) else None
            if measure == "gain":
                sets[name]["interval"] = statistics.interval_on_splits(own)
        known = [own for own in numbers.values() if len(own)]
        over[measure] = float(np.mean([own.mean() for own in known])) if known else None
        if measure == "gain":
            over |= statistics.intervals(known)
    return {"sets": sets, "over_sets": over}


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """For each protocol and draw, precision and coverage of judges, and gain and label error of policies."""
    found = []
    for setting, there in _by_setting(rows):
        for kind, first, second, sign in (
            ("judge", "precision", "coverage", ""),
            ("policy", "gain", "label_error", "+"),
        ):
            own = [row for row in there if kind in row]
            names = list(dict.fromkeys(name for row in own for name in row["sets"]))
            words = f"{first} / {second.replace('_', ' ')}"
            title = f"{setting['protocol']}, {setting['shots']}: {words}"
            table = new_table(kind, *names, "mean", "on these sets", "on sets like these", title=title)
            for row in own:
                columns = [*(row["sets"].get(name, {}) for name in names), row["over_sets"]]
                cells = [_two(column, first, second, sign) for column in columns]
                ends = [interval_words(row["over_sets"].get(key)) for key in ("interval_on_these", "interval")]
                table.add_row(row[kind], *cells, *ends)
            found.append(table)
    return found


def _two(values: dict[str, Any], first: str, second: str, sign: str) -> str:
    one, two = values.get(first), values.get(second)
    return f"{'–' if one is None else format(one, sign + '.3f')} / {'–' if two is None else format(two, '.2f')}"


def main() -> None:
    """Run the grid; finished cells are not run again."""
    parser = argparse.ArgumentParser(prog="python -m studies.labels", description="Label policies on the same texts.")
    add_options(parser)
    parser.add_argument("--judges", default=ASKED, help=f"who is asked, joined by +; default: {ASKED}")
    parser.add_argument("--finished", type=Path, help="cells.jsonl of an earlier study, made with the same settings")
    options = parser.parse_args()
    show_logs()
    settings = read_settings(options.config) if options.config else {}
    settings["methods"] = BASELINE
    folder = options.output / "labels"
    run = study_run(
        folder,
        {"data": str(options.data.resolve()), "settings": settings, "judges": options.judges},
        [settings.get("pair")],
    )
    if options.finished:
        for done in read_json_lines(options.finished):
            recorded(run, cell_name(done), lambda done=done: done)  # type: ignore[misc]
    references: dict[str, Reference] = {}
    cells: list[dict[str, Any]] = []
    for number, bench in benches(options, settings):
        reference = references.setdefault(bench.name, Reference(bench.rows))
        where = place(bench, number)
        cells.append(recorded(run, cell_name(where), partial(cell, bench, number, reference, options.judges)))
    write_whole(folder / "cells.jsonl", json_lines(cells))
    runs = [record for cell in cells for record in cell["runs"]]
    write_whole(folder / "runs.jsonl", json_lines(runs))
    write_report(runs, folder)
    rows = summarise(cells)
    write_whole(folder / "labels.json", json.dumps(rows, indent=1).encode())
    for table in tables(rows):
        output().print(table)


if __name__ == "__main__":
    run(main)
