"""``inversedmixup label``: a labelled file and an unlabelled one in, the second with labels out."""

from __future__ import annotations

import dataclasses
import logging
import time
from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from inversedmixup.data import Example, LabelledText, RowFile, check_output, iter_unlabelled, read_examples
from inversedmixup.errors import InputError, clear_write_errors
from inversedmixup.judges.api import endpoint
from inversedmixup.labelled import (
    ExampleFile,
    check_classes,
    check_known_labels,
    class_counts,
    take_shots,
    warn_of_seen,
)
from inversedmixup.models.pair import Pair, PairOptions
from inversedmixup.options import at_least, option
from inversedmixup.outputs import check_apart, check_ours
from inversedmixup.pipeline import run_settings
from inversedmixup.provenance import provenance
from inversedmixup.remote import check_local, fetched, is_url, local_name, put, sibling
from inversedmixup.runs import FITTED, RunFolder, ShardedRows, recorded
from inversedmixup.sealed import write_json
from inversedmixup.stages import pseudo_label
from inversedmixup.stages.downstream import DownstreamConfig, run_downstream
from inversedmixup.stages.pseudo_label import PseudoLabelConfig, check_policy, run_pseudo_label
from inversedmixup.stages.warmup import CrossValidation, TaskModelConfig, fit_settings, fit_task_model
from inversedmixup.terminal import progress

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 8  # labelled texts to show


@dataclasses.dataclass(frozen=True)
class LabelJobConfig(PairOptions, TaskModelConfig, PseudoLabelConfig, DownstreamConfig):
    """Settings of ``label``."""

    engine: str = "transformers"  # no option: nothing is written
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
    """Label a file. Finished work in ``OUTPUT.run`` is taken up again, not redone; all three files may be URLs.

    Returns:
        What ``--json`` prints: what :func:`~inversedmixup.stages.pseudo_label.run_pseudo_label` counted, where the
        files are, accuracies if there is a test file, and a ``sample`` of the labelled texts.

    Raises:
        InputError: for input that cannot be used, a judge that is not to be trusted, or when the disk is full.
    """
    out = check_output(local_name(output))
    rejected = out.with_name(f"{out.stem}.rejected{out.suffix}")
    with fetched(train) as labelled_file, fetched(unlabelled) as text_file, clear_write_errors(out):
        check_apart((out, rejected), labelled_file, text_file, config.test)
        result = _Job(labelled_file, text_file, out, rejected, config).run()
    if is_url(output):
        put(out, output)
        put(rejected, sibling(output, rejected.name))
    return result


class _Job:
    """One run: everything that can be refused is refused while it is made."""

    def __init__(self, train: str, unlabelled: str, out: Path, rejected: Path, config: LabelJobConfig) -> None:
        self.config, self.out, self.rejected = config, out, rejected
        check_local("label", config.test, config.descriptions)
        folder = out.with_name(out.name + ".run")
        check_ours(folder / "config.json", out, rejected, overwrite=config.overwrite)
        columns = {"text_column": config.text_column, "label_column": config.label_column}
        self.examples: Sequence[Example] = read_examples(train, **columns)
        if config.shots is not None:
            self.examples = take_shots(self.examples, config.shots, seed=config.data_seed)
        self.classes = check_classes(self.examples, train)
        self.test = read_examples(config.test, **columns) if config.test else []
        check_known_labels(self.test, self.classes, config.test or "")
        warn_of_seen(self.test, self.examples, config.test or "")
        check_policy(config.labels, config)
        config.described(self.classes)
        # they may be a million: on disk, in a file of nobody's
        self.texts = ExampleFile.write(out.parent, iter_unlabelled(unlabelled, text_column=config.text_column))
        settings = run_settings(config, endpoint(config), self.examples, self.texts, self.test)
        self.run_folder = RunFolder(folder, settings, overwrite=config.overwrite)
        self.run_folder.write("provenance", provenance("label", [train, unlabelled], str(out), config))
        config.warn_if_fitted()
        self.cross_validated = CrossValidation(config.load_task_model, self.examples, self.classes, config)
        self.sample, self.kept, self.seen = list[LabelledText](), array("q"), 0

    def run(self) -> dict[str, Any]:
        """Task model, labels, output files and, with a test file, the downstream check."""
        started, run, config = time.monotonic(), self.run_folder, self.config
        pair = self._fitted()
        with (
            RowFile(self.out, self.classes, LabelledText) as kept,
            RowFile(self.rejected, self.classes, LabelledText) as rejected,
        ):
            made = run_pseudo_label(
                pair, self.examples, self.classes, self.texts, config, partial(self._take, kept, rejected), run,
                known=self.test, cross_validated=self.cross_validated,
            )  # fmt: skip
        summary = {
            "output": str(self.out), "rejected_output": str(self.rejected), "originals": class_counts(self.examples),
            **made, **(self._downstream() if self.test else {}), "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        write_json(run.folder / "summary.json", summary)
        return {**summary, "sample": [dataclasses.asdict(row) for row in self.sample]}

    def _fitted(self) -> Pair:
        """The pair with a task model fitted to the rows. Its adaptor does not follow: nothing is written with it."""
        config, folder = self.config, self.run_folder.folder / "task_model"
        pair = config.load_pair()
        if self.run_folder.read(FITTED) is not None:
            try:
                pair.task_model = Pair.load_task_model(folder, device=config.device)
                return pair
            except InputError as error:
                logger.warning("%s; the task model is fitted again", error)
        with progress("task model", config.task_steps) as advance:
            fit_task_model(pair.task_model, self.examples, self.classes, config, advance)
        pair.task_model.soften(self.cross_validated.temperature)
        pair.save_task_model(folder)
        self.run_folder.write(FITTED, True)
        return pair

    def _take(self, kept: RowFile, rejected: RowFile, row: LabelledText) -> None:
        (rejected if row.reject_reason else kept).write(dataclasses.asdict(row))
        if not row.reject_reason:
            self.kept.append(self.seen)
            if len(self.sample) < SAMPLE_ROWS:
                self.sample.append(row)
        self.seen += 1

    def _downstream(self) -> dict[str, Any]:
        config, rows = self.config, ShardedRows(self.run_folder, self.kept, pseudo_label.SHARD_TEXTS, LabelledText)
        measure = partial(
            run_downstream, config.load_task_model, self.examples, rows, self.test, self.classes,
            fit_settings(config, config.downstream_steps), weight=config.augmented_weight,
        )  # fmt: skip
        return dict(recorded(self.run_folder, "downstream", measure))
