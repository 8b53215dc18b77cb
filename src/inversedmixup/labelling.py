"""``inversedmixup label``: a labelled file and an unlabelled one in, the second with labels out."""

from __future__ import annotations

import dataclasses
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inversedmixup.data import Example, LabelledText, RowFile, check_output, iter_unlabelled, read_examples
from inversedmixup.errors import InputError, clear_write_errors
from inversedmixup.judges.api import endpoint
from inversedmixup.labelled import ExampleFile, check_classes, check_known_labels, class_counts, take_shots
from inversedmixup.models.pair import Pair, PairOptions
from inversedmixup.options import at_least, option
from inversedmixup.pipeline import run_settings
from inversedmixup.provenance import provenance
from inversedmixup.remote import fetched, is_url, local_name, put, sibling
from inversedmixup.runs import RunFolder, ShardedRows
from inversedmixup.sealed import write_json
from inversedmixup.stages.downstream import DownstreamConfig, run_downstream
from inversedmixup.stages.pseudo_label import SHARD_TEXTS, PseudoLabelConfig, check_policy, run_pseudo_label
from inversedmixup.stages.warmup import (
    CrossValidation,
    TaskModelConfig,
    fit_settings,
    fit_task_model,
    fitted,
    training_accuracy,
)
from inversedmixup.terminal import progress

SAMPLE_ROWS = 8  # labelled texts to show


@dataclasses.dataclass(frozen=True)
class LabelJobConfig(PairOptions, TaskModelConfig, PseudoLabelConfig, DownstreamConfig):
    """Settings of ``label``."""

    label_column: str = option("label", "column of the label")
    shots: int | None = option(None, "use only this many labelled rows of each class, drawn by --data-seed")
    data_seed: int = option(0, "seed of the choice of rows by --shots")
    test: str | None = option(None, "labelled file: measure accuracy on it with and without the new rows")
    overwrite: bool = option(False, "replace a finished or interrupted run with other settings")

    def __post_init__(self) -> None:
        for part in (TaskModelConfig, PseudoLabelConfig, DownstreamConfig):
            part.__post_init__(self)
        at_least(self, 0, "data_seed")


def run_label(train: str, unlabelled: str, output: str, config: LabelJobConfig) -> dict[str, Any]:
    """Label a file. Finished work in ``OUTPUT.run`` is taken up again, not redone; any file may be a URL.

    Returns:
        What ``--json`` prints: what :func:`~inversedmixup.stages.pseudo_label.run_pseudo_label` counted, where the
        files are, accuracies if there is a test file, and a ``sample`` of the labelled texts.

    Raises:
        InputError: for input that cannot be used, a judge that is not to be trusted, or when the disk is full.
    """
    out = check_output(local_name(output))
    rejected = out.with_name(f"{out.stem}.rejected{out.suffix}")
    with fetched(train) as labelled_file, fetched(unlabelled) as text_file, clear_write_errors(out):
        for read in (labelled_file, text_file, config.test):
            if read and Path(read).expanduser().resolve() in (out.resolve(), rejected.resolve()):
                raise InputError(f"output {output}: would replace the input {read}; choose another name")
        result = _run(labelled_file, text_file, out, rejected, config)
    if is_url(output):
        put(out, output)
        put(rejected, sibling(output, rejected.name))
    return result


def _run(train: str, unlabelled: str, out: Path, rejected: Path, config: LabelJobConfig) -> dict[str, Any]:
    started = time.monotonic()
    columns = {"text_column": config.text_column, "label_column": config.label_column}
    examples = read_examples(train, **columns)
    if config.shots is not None:
        examples = take_shots(examples, config.shots, seed=config.data_seed)
    classes = check_classes(examples, train)
    test = read_examples(config.test, **columns) if config.test else []
    check_known_labels(test, classes, config.test or "")
    check_policy(config.labels, config)
    config.described(classes)
    # they may be a million: on disk, in a file of nobody's
    texts = ExampleFile.write(out.parent, iter_unlabelled(unlabelled, text_column=config.text_column))
    run = RunFolder(
        out.with_name(out.name + ".run"), run_settings(config, endpoint(config), examples, texts, test),
        overwrite=config.overwrite,
    )  # fmt: skip
    run.write("provenance", provenance("label", [train, unlabelled], str(out), config))
    pair = fitted(config, run, lambda pair: _fit(pair, examples, classes, config))
    sample, numbers, place = list[LabelledText](), array("q"), 0
    with RowFile(out, classes, LabelledText) as kept, RowFile(rejected, classes, LabelledText) as others:

        def take(row: LabelledText) -> None:
            nonlocal place
            (others if row.reject_reason else kept).write(dataclasses.asdict(row))
            if not row.reject_reason:
                numbers.append(place)
                if len(sample) < SAMPLE_ROWS:
                    sample.append(row)
            place += 1

        made = run_pseudo_label(
            pair, examples, classes, texts, config, take, seed=config.seed, run=run,
            cross_validated=CrossValidation(config.load_task_model, examples, classes, config),
        )  # fmt: skip
    rows = ShardedRows(run, numbers, SHARD_TEXTS, LabelledText)
    summary = {
        "output": str(out), "rejected_output": str(rejected), "originals": class_counts(examples), **made,
        **(_downstream(run, examples, rows, test, classes, config) if test else {}),
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    write_json(run.folder / "summary.json", summary)
    return {**summary, "sample": [dataclasses.asdict(row) for row in sample]}


def _fit(pair: Pair, examples: Sequence[Example], classes: Sequence[str], config: LabelJobConfig) -> dict[str, Any]:
    """Stage 2 without the adaptor, which is not needed where nothing is written."""
    with progress("task model", config.task_steps) as advance:
        fit_task_model(pair.task_model, examples, classes, config, advance)
    return {"train_accuracy": training_accuracy(pair.task_model, examples)}


def _downstream(
    run: RunFolder, examples: Sequence[Example], rows: Sequence[LabelledText], test: Sequence[Example],
    classes: Sequence[str], config: LabelJobConfig,
) -> dict[str, Any]:  # fmt: skip
    """Accuracies with and without the new rows, from the run folder if they were measured."""
    stored = run.read("downstream")
    if stored is None:
        stored = run_downstream(
            config.load_task_model, examples, rows, test, classes, fit_settings(config, config.downstream_steps),
            weight=config.augmented_weight,
        )  # fmt: skip
        run.write("downstream", stored)
    return dict(stored)
