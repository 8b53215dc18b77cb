"""The main job: labelled file in, larger labelled file out. Stage 2, stage 3, downstream check, summary."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from inversedmixup import __version__
from inversedmixup.cluster import Cluster, ClusterConfig, Models, address_of, check_address, check_labels
from inversedmixup.data import SOURCES, Example, Row, RowFile, check_output, check_texts, iter_examples
from inversedmixup.errors import InputError, clear_write_errors
from inversedmixup.judges import JUDGE_MANNERS
from inversedmixup.judges.api import endpoint
from inversedmixup.labelled import (
    ExampleFile,
    check_classes,
    check_known_labels,
    class_counts,
    inputs_digest,
    iter_shots,
    warn_of_seen,
)
from inversedmixup.models.pair import ENGINES, PAIR_FILES, Pair, PairOptions, default_pair_folder
from inversedmixup.models.sources import file_sha256
from inversedmixup.options import at_least, option
from inversedmixup.outputs import check_apart, check_ours, mark
from inversedmixup.provenance import provenance
from inversedmixup.remote import check_local, fetched, is_url, local_name, put, sibling
from inversedmixup.report.dataset_card import card_path, write_dataset_card
from inversedmixup.report.page import write_report
from inversedmixup.report.results import EXAMPLES_FILE, read_run
from inversedmixup.runs import RunFolder, ShardedRows, recorded
from inversedmixup.sealed import write_json
from inversedmixup.stages.augment import SHARD_ROWS, AugmentConfig, check_rows, number_of, run_augment
from inversedmixup.stages.downstream import DownstreamConfig, run_downstream
from inversedmixup.stages.warmup import CrossValidation, WarmedConfig, WarmupConfig, fit_settings, warmed_up

logger = logging.getLogger(__name__)
T = TypeVar("T")

SAMPLE_ROWS = 8  # kept rows to show

# They change speed, memory, where things go or how much is done, never the rows.
_NOT_SETTINGS = (
    "batch_size", "overwrite", "device", "include_original", "workers", "worker_cpus", "worker_gpus", *JUDGE_MANNERS,
    "methods", "splits", "processes",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class JobConfig(WarmedConfig, AugmentConfig, DownstreamConfig, ClusterConfig):
    """Settings of ``augment``."""

    engine: str = option(
        "transformers", "what writes the texts; vllm needs a GPU and its package; ray, or ray:ADDRESS: many machines"
    )

    label_column: str = option("label", "column of the label")
    shots: int | None = option(None, "use only this many rows of each class, drawn by --data-seed")
    data_seed: int = option(0, "seed of the choice of rows by --shots")
    test: str | None = option(None, "labelled file: measure accuracy on it with and without augmentation")
    include_original: bool = option(False, "repeat the original rows at the head of the output")
    overwrite: bool = option(False, "replace a finished or interrupted run with other settings")

    def __post_init__(self) -> None:
        for part in (WarmupConfig, AugmentConfig, DownstreamConfig, ClusterConfig):
            part.__post_init__(self)
        if self.engine not in ENGINES and address_of(self.engine) is None:
            raise InputError(f"engine: {self.engine!r} is not one of {', '.join(ENGINES)}, ray, ray:ADDRESS")
        at_least(self, 0, "data_seed")


@dataclasses.dataclass(frozen=True)
class JobResult:
    """What ``augment`` made: the summary that ``--json`` prints, a few kept rows to look at, and the originals."""

    summary: dict[str, Any]
    sample: list[Row]
    examples: ExampleFile


def run_job(train: str, output: str, config: JobConfig) -> JobResult:
    """Augment a labelled file. Finished work in ``OUTPUT.run`` is taken up again, not redone.

    Either file may be a URL that fsspec knows. An output at a URL is made in the working folder, with its run folder
    beside it, and put there whole.

    Raises:
        InputError: for input that cannot be used, or when the disk is full.
    """
    out = check_output(local_name(output))
    with fetched(train) as there, clear_write_errors(out):
        job = _Job(there, out, config)
        result = job.run()
    if is_url(output):
        put(out, output)
        put(job.rejected, sibling(output, job.rejected.name))
    return result


class _Job:
    """One run of the main job."""

    def __init__(self, train: str, output: Path, config: JobConfig) -> None:
        self.cluster = address_of(config.engine)
        if self.cluster is not None:
            check_labels(config.labels)
            check_address(self.cluster)
            # each worker, and this process, has the one engine of its own
            config = dataclasses.replace(config, engine=ENGINES[0])
        self.config, self.output, self.seconds = config, output, dict[str, float]()
        self.sample, self.kept = list[Row](), array("q")
        self.rejected = self._beside(f"rejected{output.suffix}")
        check_local("augment", config.test, config.unlabelled, config.descriptions)
        check_apart((output, self.rejected), train, config.test, config.unlabelled)
        folder = output.with_name(output.name + ".run")
        check_ours(
            folder / "config.json", output, self.rejected, overwrite=config.overwrite,
            pages={self._beside("report.html"): mark("report", output), card_path(output): mark("card", output)},
        )  # fmt: skip
        columns = {"text_column": config.text_column, "label_column": config.label_column}
        # rows stay on disk: in a file of nobody's until it is known that the run folder is this run's
        self.examples = ExampleFile.write(output.parent, iter_examples(train, **columns))
        if config.shots is not None:
            shots = iter_shots(self.examples, config.shots, seed=config.data_seed)
            self.examples = ExampleFile.write(output.parent, shots)
        self.classes = check_classes(self.examples, train)
        given = iter_examples(config.test, **columns) if config.test else ()
        self.test = ExampleFile.write(output.parent, given)
        check_known_labels(self.test, self.classes, config.test or "")
        warn_of_seen(self.test, self.examples, config.test or "")
        # everything that can be refused is refused here, before minutes of warm-up and before the run is recorded
        check_rows(self.examples, config)
        config.check_corrects(config.correct)
        if config.include_original and any(re.fullmatch(r"aug-\d+", example.id) for example in self.examples):
            raise InputError(
                f"{train}: its rows have ids of augmented rows (aug-…), and --include-original would give them twice; "
                f"rename the column id, or leave the option away"
            )
        if config.unlabelled is not None:
            check_texts(config.unlabelled, config.text_column)
        settings = run_settings(config, endpoint(config), self.examples, self.test)
        made = provenance("augment", [train], str(output), config)
        self.run_folder = RunFolder(folder, settings, overwrite=config.overwrite)
        self.run_folder.write("provenance", made)
        self.examples.save(folder / EXAMPLES_FILE)
        config.warn_if_fitted()
        self.cross_validated = CrossValidation(config.load_task_model, self.examples, self.classes, config)

    def _beside(self, ending: str) -> Path:
        """A sibling of the output."""
        return self.output.with_name(f"{self.output.stem}.{ending}")

    def run(self) -> JobResult:
        """Every stage that is not finished yet, then the output files."""
        run, given = self.run_folder, (self.config, self.examples, self.classes)
        pair = self._timed("warm-up", lambda: warmed_up(*given, run, self.cross_validated))
        made = self._timed("augmentation", lambda: self._augment(pair))
        downstream = self._timed("downstream", self._downstream) if self.test else {}
        summary = {
            "output": str(self.output), "rejected_output": str(self.rejected),
            "report": str(self._beside("report.html")), "originals": class_counts(self.examples),
            **{k: v for k, v in made.items() if k != "seconds"},
            "warmup": run.read("warmup"), **downstream,
            "seconds_by_stage": {name: round(value, 1) for name, value in self.seconds.items()},
        }  # fmt: skip
        write_json(run.folder / "summary.json", summary)
        results = read_run(run.folder, examples=self.examples)
        evidence = write_report(results, self._beside("report.html"))
        write_dataset_card(results, evidence.labels["kept"])
        return JobResult(summary, self.sample, self.examples)

    def _augment(self, pair: Pair) -> dict[str, Any]:
        """Stage 3, into the output files. Of kept rows only the numbers are held."""
        with RowFile(self.output, self.classes) as kept, RowFile(self.rejected, self.classes) as rejected:
            for original in self._originals():
                kept.write(original)

            def take(row: Row) -> None:
                (kept if row.kept else rejected).write(dataclasses.asdict(row))
                if row.kept:
                    self.kept.append(number_of(row))
                    if len(self.sample) < SAMPLE_ROWS:
                        self.sample.append(row)

            with self._workers() as workers:
                return run_augment(
                    pair, self.examples, self.classes, self.config, take, self.run_folder,
                    cross_validated=self.cross_validated, workers=workers,
                )  # fmt: skip

    def _workers(self) -> contextlib.AbstractContextManager[Cluster | None]:
        """The cluster that the engine names; nothing for an engine of this process."""
        if self.cluster is None:
            return contextlib.nullcontext()
        config, model = self.config, self.run_folder.folder / "model"
        models = Models.read(model, llm=config.llm, device=config.device, dtype=config.precision)
        return Cluster(self.cluster, config, models)

    def _timed(self, name: str, work: Callable[[], T]) -> T:
        started = time.monotonic()
        result = work()
        self.seconds[name] = time.monotonic() - started
        return result

    def _downstream(self) -> dict[str, Any]:
        config, rows = self.config, ShardedRows(self.run_folder, self.kept, SHARD_ROWS, Row)
        measure = partial(
            run_downstream, config.load_task_model, self.examples, rows, self.test, self.classes,
            fit_settings(config, config.downstream_steps), weight=config.augmented_weight,
        )  # fmt: skip
        return dict(recorded(self.run_folder, "downstream", measure))

    def _originals(self) -> Iterator[dict[str, Any]]:
        """Originals as rows of the schema, if they were asked for: λ = 1, their own parents."""
        examples = self.examples if self.config.include_original else ()
        return (_original_row(example, self.classes, self.config.seed) for example in examples)


def run_settings(config: PairOptions, api_url: str | None, *inputs: Sequence[Example]) -> dict[str, Any]:
    """Everything that decides the rows of a run: options, input, the pair's files, where judge ``api`` asks."""
    return {
        **{name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_SETTINGS},
        "dtype": config.precision, "version": __version__, "api_url": api_url, "inputs_sha256": inputs_digest(*inputs),
        "files_sha256": files_digest(config),
    }  # fmt: skip


def files_digest(config: PairOptions) -> dict[str, str]:
    """sha256 of the pair's files, the replayed text and the descriptions: a changed file is a changed run."""
    folder = default_pair_folder() if config.pair is None else Path(config.pair).expanduser()
    parts = [
        folder / name for name in PAIR_FILES if name != "pair.json"
    ]  # a card written into the record changes nothing
    files = sorted(path for part in parts for path in (part, *part.rglob("*")) if path.suffix == ".safetensors")
    paths = {str(path.relative_to(folder)): path for path in files if path.is_file()}
    for name in ("unlabelled", "descriptions"):
        given = getattr(config, name, None)
        if given and (path := Path(given).expanduser()).is_file():
            paths[name] = path
    return {name: file_sha256(path) for name, path in paths.items()}


def _original_row(example: Example, classes: Sequence[str], seed: int) -> dict[str, Any]:
    return {
        "id": example.id, "text": example.text, "label": example.label,
        "label_probs": {name: float(name == example.label) for name in classes},
        "parents": [example.id, example.id], "lam": 1.0, "lam_realised": 1.0, "cycle_similarity": 1.0,
        "fluency": None, "labels": {**dict.fromkeys(SOURCES), "soft": example.label},
        "intruded": False, "seed": seed, "kept": True, "reject_reason": None,
    }  # fmt: skip
