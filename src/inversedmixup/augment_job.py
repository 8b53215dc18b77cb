"""The main job: labelled file in, larger labelled file out. Stage 2, stage 3, downstream check, summary."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from inversedmixup.cluster import Cluster, ClusterConfig, Models, address_of, check_address, check_labels
from inversedmixup.data import check_texts
from inversedmixup.errors import InputError
from inversedmixup.job import Job, JobOptions, Names, on_this_machine
from inversedmixup.labelled import ExampleFile, class_counts
from inversedmixup.labels import parse_labels
from inversedmixup.models.pair import ENGINES, Pair
from inversedmixup.models.sources import recorded_name
from inversedmixup.options import NOTHING, option
from inversedmixup.outputs import mark
from inversedmixup.report.dataset_card import card_path, write_dataset_card
from inversedmixup.report.evidence import gather
from inversedmixup.report.page import write_report
from inversedmixup.report.results import judged_rows, read_run
from inversedmixup.runs import EXAMPLES_FILE, SUMMARY
from inversedmixup.same_text import words_of
from inversedmixup.schema import SOURCES, Example, Row
from inversedmixup.sealed import digest, write_json
from inversedmixup.stages.augment import SHARD_ROWS, AugmentConfig, check_rows, run_augment
from inversedmixup.stages.warmup import WarmedConfig, warmed_up

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class AugmentJobConfig(AugmentConfig, JobOptions, WarmedConfig, ClusterConfig):
    """Settings of ``augment``."""

    engine: str = option(
        "transformers", "what writes the texts; vllm needs a GPU and its package; ray, or ray:ADDRESS: many machines"
    )
    include_original: bool = option(False, "repeat the original rows at the head of the output", decides=NOTHING)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine not in ENGINES and address_of(self.engine) is None:
            raise InputError(f"engine: {self.engine!r} is not one of {', '.join(ENGINES)}, ray, ray:ADDRESS")


@dataclasses.dataclass(frozen=True)
class AugmentJobResult:
    """What ``augment`` made: the summary that ``--json`` prints, a few kept rows to look at, and the originals."""

    summary: dict[str, Any]
    sample: list[Row]
    examples: ExampleFile


def run_augment_job(train: str | Path, output: str | Path, config: AugmentJobConfig) -> AugmentJobResult:
    """Augment a labelled file. Finished work in ``OUTPUT.run`` is taken up again, not redone.

    Either file may be a URL that fsspec knows. An output at a URL is made in the working folder, with its run folder
    beside it, and put there whole.

    Raises:
        InputError: for input that cannot be used, or when the disk is full.
    """
    with on_this_machine([train], output, config) as names:
        return _AugmentJob(names, config).run()


class _AugmentJob(Job[Row]):
    """One run of the main job."""

    command, kind, shard_rows = "augment", Row, SHARD_ROWS

    def __init__(self, names: Names, config: AugmentJobConfig) -> None:
        self.seconds, self.cluster, given = dict[str, float](), address_of(config.engine), config
        if self.cluster is not None:
            check_labels(config.labels)
            check_address(self.cluster)
            # each worker, and this process, has the one engine of its own
            config = dataclasses.replace(config, engine=ENGINES[0])
        super().__init__(names, config)
        check_rows(self.examples, config, names.given[0])
        if config.pairs == "same-class" and (
            alone := [n for n, rows in class_counts(self.examples).items() if rows < 2]
        ):
            logger.warning("--pairs same-class: nothing is written for classes of one row (%s)", ", ".join(alone[:8]))
        config.check_descriptions(self.classes, parse_labels(config.labels).judges)
        config.check_corrects(config.correct)
        if config.include_original and any(re.fullmatch(r"aug-\d+", example.id) for example in self.examples):
            raise InputError(
                f"{names.given[0]}: its rows have ids of augmented rows (aug-…), and --include-original would give "
                f"them twice; rename the column id, or leave the option away"
            )
        if config.unlabelled is not None:
            check_texts(config.unlabelled, config.text_column)
        # texts that are measured on are not replayed
        self.unread = () if config.unlabelled is None else self.test
        self.begin(unread=self.unread, given=given)
        self.examples.save(self.folder / EXAMPLES_FILE)

    def pages(self) -> dict[Path, str]:
        """See :class:`Job`."""
        output = self.names.output
        return {self.names.beside("report.html"): mark("report", output), card_path(output): mark("card", output)}

    def run(self) -> AugmentJobResult:
        """Every stage that is not finished yet, then the output files."""
        run, given = self.run_folder, (self.config, self.examples, self.classes)
        unread = {words_of(row.text) for row in self.unread}
        pair = self._timed("warm-up", lambda: warmed_up(*given, run, self.cross_validated, unread, self.check_pair))
        made = self._timed("augmentation", lambda: self._augment(pair))
        downstream = self._timed("downstream", self.downstream) if self.test else {}
        report = self.names.beside("report.html")
        evidence = gather(self.examples, judged_rows(self.names.output, self.names.rejected))
        summary = {
            "output": str(self.names.output), "rejected_output": str(self.names.rejected),
            "report": str(report), "originals": class_counts(self.examples),
            "originals_repeated": self.config.include_original,
            **{k: v for k, v in made.items() if k != "seconds"},
            "near_copies": len(evidence.near_copies), "near_copies_searched": evidence.searched,
            "warmup": run.read("warmup"), **downstream,
            "seconds_by_stage": {name: round(value, 1) for name, value in self.seconds.items()},
        }  # fmt: skip
        write_json(run.folder / SUMMARY, {**summary, "sha256": digest(summary)})
        results = read_run(run.folder, examples=self.examples)
        write_report(results, report, evidence)
        write_dataset_card(results, evidence.labels["kept"])
        return AugmentJobResult(summary, self.sample, self.examples)

    def _augment(self, pair: Pair) -> dict[str, Any]:
        """Stage 3, into the output files."""
        with self.taking(self._originals()) as take, self._workers() as workers:
            return run_augment(
                pair, self.examples, self.classes, self.config, take, self.run_folder,
                cross_validated=self.cross_validated, workers=workers,
            )  # fmt: skip

    def _workers(self) -> contextlib.AbstractContextManager[Cluster | None]:
        """The cluster that the engine names; nothing for an engine of this process."""
        if self.cluster is None:
            return contextlib.nullcontext()
        config, model = self.config, self.run_folder.folder / "model"
        llm = recorded_name("llm", config.llm) if config.llm else None  # each worker reads the same commit
        models = Models.read(model, llm=llm, device=config.device, dtype=config.precision)
        return Cluster(self.cluster, config, models)

    def _timed(self, name: str, work: Callable[[], T]) -> T:
        started = time.monotonic()
        result = work()
        self.seconds[name] = time.monotonic() - started
        return result

    def _originals(self) -> Iterator[dict[str, Any]]:
        """Originals as rows of the schema, if they were asked for: λ = 1, their own parents."""
        examples = self.examples if self.config.include_original else ()
        return (_original_row(example, self.classes, self.config.seed) for example in examples)


def _original_row(example: Example, classes: Sequence[str], seed: int) -> dict[str, Any]:
    return {
        "id": example.id, "text": example.text, "label": example.label,
        "label_probs": {name: float(name == example.label) for name in classes},
        "parents": [example.id, example.id], "lam": 1.0, "lam_realised": 1.0, "cycle_similarity": 1.0,
        "fluency": None, "labels": {**dict.fromkeys(SOURCES), "soft": example.label},
        "intruded": False, "seed": seed, "kept": True, "reject_reason": None,
    }  # fmt: skip
