"""``inversedmixup label``: a labelled file and an unlabelled one in, the second with labels out."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

from inversedmixup.data import iter_unlabelled
from inversedmixup.errors import InputError
from inversedmixup.job import Job, JobOptions, Names, on_this_machine
from inversedmixup.labelled import class_counts
from inversedmixup.models.pair import Pair
from inversedmixup.outputs import is_marked, mark
from inversedmixup.report.dataset_card import card_path
from inversedmixup.runs import FITTED, SUMMARY
from inversedmixup.schema import LabelledText
from inversedmixup.sealed import as_written, write_json
from inversedmixup.stages.pseudo_label import SHARD_TEXTS, PseudoLabelConfig, check_policy, run_pseudo_label
from inversedmixup.stages.warmup import fit_task_model
from inversedmixup.terminal import progress

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LabelJobConfig(PseudoLabelConfig, JobOptions):
    """Settings of ``label``."""

    engine: str = "transformers"  # no option: nothing is written


def run_label_job(
    train: str | Path, unlabelled: str | Path, output: str | Path, config: LabelJobConfig
) -> dict[str, Any]:
    """Label a file. Finished work in ``OUTPUT.run`` is taken up again, not redone; all three files may be URLs.

    Returns:
        What ``--json`` prints: what :func:`~inversedmixup.stages.pseudo_label.run_pseudo_label` counted, where the
        files are, accuracies if there is a test file, and a ``sample`` of the labelled texts.

    Raises:
        InputError: for input that cannot be used, a judge that is not to be trusted, or when the disk is full.
    """
    with on_this_machine([train, unlabelled], output, config) as names:
        return _LabelJob(names, config).run()


class _LabelJob(Job[LabelledText]):
    """One run of ``label``."""

    command, kind, shard_rows = "label", LabelledText, SHARD_TEXTS

    def __init__(self, names: Names, config: LabelJobConfig) -> None:
        super().__init__(names, config)
        policy = check_policy(config.labels, config)
        config.check_descriptions(self.classes, policy.judges)
        texts = iter_unlabelled(names.inputs[1], text_column=config.text_column, origin=names.given[1])
        self.texts = self.on_disk(texts)
        self.begin(texts=self.texts)

    def run(self) -> dict[str, Any]:
        """Task model, labels, output files and, with a test file, the downstream check."""
        started, run = time.monotonic(), self.run_folder
        pair = self._fitted()
        with self.taking() as take:
            made = run_pseudo_label(
                pair, self.examples, self.classes, self.texts, self.config, take, run,
                known=self.test, cross_validated=self.cross_validated,
            )  # fmt: skip
        self._remove_pages()
        summary = {
            "output": str(self.names.output), "rejected_output": str(self.names.rejected),
            "originals": class_counts(self.examples),
            **made, **self.downstream(), "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        write_json(run.folder / SUMMARY, summary)
        return {**summary, "sample": [dataclasses.asdict(row) for row in self.sample]}

    def _remove_pages(self) -> None:
        """Remove report and card of a run of ``augment`` that this one replaced: they would speak of these rows."""
        output = self.names.output
        report, card = self.names.beside("report.html"), card_path(output)
        if is_marked(report, mark("report", output)):
            report.unlink()
        if not is_marked(card, mark("card", output)):
            return
        if as_written(card):
            card.unlink()
        else:
            logger.warning("%s was changed by hand, and stays, though it speaks of rows that were replaced", card)

    def _fitted(self) -> Pair:
        """The pair with a task model fitted to the rows. Its adaptor does not follow: nothing is written with it."""
        config, folder = self.config, self.folder / "task_model"
        pair: Pair = config.load_pair()
        self.check_pair(pair)
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
