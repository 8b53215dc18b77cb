"""One run: a method trained on a split and measured. Every run is one JSON file."""

from __future__ import annotations

import dataclasses
import gc
import logging
import time
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inversedmixup import __version__
from inversedmixup.baselines import Added, Method, Split, chosen
from inversedmixup.benchmark.splits import FOLDS, draw_rows, parse_draw, shared_rows
from inversedmixup.data import check_texts, read_examples
from inversedmixup.errors import InputError, clear_write_errors, local_path
from inversedmixup.identity import choice_settings, work_settings
from inversedmixup.labelled import check_classes, check_known_labels, class_counts, class_numbers, inputs_digest
from inversedmixup.models.sources import file_sha256
from inversedmixup.models.task_model import TaskModel
from inversedmixup.provenance import commit
from inversedmixup.report.results import BENCHMARK_FILE
from inversedmixup.runs import RunFolder
from inversedmixup.same_text import words_of
from inversedmixup.schema import Example
from inversedmixup.stages.augment import check_rows
from inversedmixup.stages.downstream import one_hot, original_weights, scores
from inversedmixup.stages.warmup import fit_settings
from inversedmixup.terminal import Advance

if TYPE_CHECKING:
    from inversedmixup.benchmark import BenchmarkConfig

RUN = "run"  # the folder of records beside what the reports say; nothing else is ever deleted
RUNS = "runs"  # in it, a record for each run
logger = logging.getLogger(__name__)

PROTOCOLS = {"full": "fine-tuned", "head": "frozen"}  # by what cross-entropy trains


class Bench:
    """Methods, labelled rows and what has run already.

    Args:
        train: file of labelled rows.
        test: file of rows to measure on; ``None`` with draw ``cv``.
        output: folder of the runs.
        config: settings.
        known: embeddings by text, under an encoder that does not learn; benches with the same one can share them.
        lock: see :class:`~inversedmixup.runs.RunFolder`.

    Raises:
        InputError: for input that cannot be used.
    """

    def __init__(
        self, train: str, test: str | None, output: str, config: BenchmarkConfig,
        known: dict[str, Tensor] | None = None, *, lock: bool = True,
    ) -> None:  # fmt: skip
        self.config, self.methods = config, chosen(config.methods)
        self.given = train, test, output
        config.warn_if_fitted()
        self.draw = config.draw or ("50%" if test else "cv")
        self._draw = parse_draw(self.draw)
        if (self._draw.kind == "cv") == bool(test):
            raise InputError(
                "draw cv: holds training rows out to measure on; leave the test file away" if test else
                f"draw {self.draw}: needs a test file; give one, or use --draw cv"
            )  # fmt: skip
        if config.test_rows is not None and not test:
            raise InputError("test_rows: are rows of a test file; give one, or leave the option away")
        columns = {"text_column": config.text_column, "label_column": config.label_column}
        self.rows = read_examples(train, **columns)
        # by which a report knows whether a run is of the same rows
        self.origin = {"train_sha256": file_sha256(local_path(train)), "inputs_sha256": inputs_digest(self.rows)}
        classes = check_classes(self.rows, train)
        self.test = _some(read_examples(test, **columns), config.test_rows) if test else []
        self.rows = _unseen(self.rows, self.test, train)
        check_known_labels(self.test, classes, test or "")
        if any(method.writes for method in self.methods):
            check_rows(self.rows, config, train)
        config.check_descriptions(classes, {judge for method in self.methods for judge in method.asked(config.labels)})
        config.check_corrects(config.correct)
        if config.unlabelled is not None:
            check_texts(config.unlabelled, config.text_column)
        for method in self.methods:
            if method.check:
                method.check(config)
        self._known = {} if known is None else known
        self.folder = local_path(output)
        with clear_write_errors(self.folder):
            # a method may add any rows: whatever decides which ones are kept decides every record
            self.settings = {**work_settings(config, self.rows), **choice_settings(config, self.test)}
            self.run = RunFolder(
                self.folder / RUN, self.settings, overwrite=config.overwrite, lock=lock,
                results=[self.folder / BENCHMARK_FILE],
            )  # fmt: skip

    @property
    def name(self) -> str:
        """What the records call the data set: the folder's name."""
        return self.folder.resolve().name

    @property
    def protocol(self) -> str:
        """How the task model is trained, one of :data:`PROTOCOLS`."""
        return PROTOCOLS[self.config.train_encoder]

    @property
    def train_rows(self) -> int:
        """Training rows of a split."""
        return len(draw_rows(self.rows, self.test, self._draw, 0, seed=self.config.data_seed)[0])

    @property
    def overlap(self) -> float:
        """Share of rows that two splits have in common; see :func:`~inversedmixup.benchmark.verdict.give_verdict`."""
        if self._draw.kind == "cv":
            return 1 / FOLDS
        return shared_rows(self.rows, self._draw, self.config.splits, seed=self.config.data_seed)

    def missing(self, number: int) -> list[Method]:
        """Methods that have not run on a split."""
        return [method for method in self.methods if self._record(number, method) is None]

    def records(self, number: int) -> list[dict[str, Any]]:
        """What has run on a split."""
        found = [self._record(number, method) for method in self.methods]
        # whatever the folder was called when they ran
        return [{**record, "set": self.name} for record in found if record is not None]

    def unshown(self) -> tuple[list[str], int]:
        """Methods that have run in the folder and are not asked for, and how many splits something has run on."""
        names = [path.stem for path in sorted((self.run.folder / RUNS).glob("*-*.json"))]
        found = [name.split("-", 1) for name in names if self.run.read(f"{RUNS}/{name}") is not None]
        asked = {method.name for method in self.methods}
        others = [method for _, method in found if method not in asked]
        return list(dict.fromkeys(others)), max((int(number) + 1 for number, _ in found), default=0)

    def _record(self, number: int, method: Method) -> dict[str, Any] | None:
        """What a finished run measured; one of a method that had other means then is not finished."""
        record: dict[str, Any] | None = self.run.read(run_name(number, method.name))
        facts = method.facts() if method.facts else {}
        return record if record is None or facts.items() <= record.items() else None

    def check_splits(self) -> None:
        """Make sure before the first run that every split can be drawn and measured.

        Raises:
            InputError: for one that cannot.
        """
        for number in range(self.config.splits):
            train, test = draw_rows(self.rows, self.test, self._draw, number, seed=self.config.data_seed)
            counts = class_counts(train)
            if not test or len(counts) < 2:
                raise InputError(
                    f"{self.given[0]}: split {number} of draw {self.draw} has {len(train)} training rows of "
                    f"{len(counts)} classes and {len(test)} to measure on; give more rows of every class, or a test "
                    f"file"
                )
            alone = [method.name for method in self.methods if method.within]
            if alone and max(counts.values()) < 2:
                raise InputError(
                    f"method {alone[0]}: mixes two rows of a class, and split {number} of draw {self.draw} has one of "
                    f"each; draw more with --draw, or leave the method away"
                )

    def split(self, number: int) -> tuple[Split, list[Example]]:
        """A split, and the rows to measure on."""
        train, test = draw_rows(self.rows, self.test, self._draw, number, seed=self.config.data_seed)
        classes = check_classes(train, f"split {number}")
        config = dataclasses.replace(self.config, seed=self.config.seed + number)
        measured = frozenset(words_of(row.text) for row in test)
        return Split(train, classes, config, self.fresh, self.run, f"{number:03d}", measured), test

    def run_split(self, number: int, advance: Advance) -> None:
        """Every method on one split, but what has run already."""
        split, test = self.split(number)
        for method in self.missing(number):
            started = time.monotonic()
            with clear_write_errors(self.folder):  # what methods make on the way is recorded, too
                try:
                    measured = self.measured(method, split, test)
                except InputError as error:
                    raise InputError(
                        f"method {method.name}, split {number}: {error}; or leave the method away"
                    ) from error
            record = {
                "set": self.name, "shots": self.draw, "split": number, "seed": split.config.seed,
                "protocol": self.protocol, "method": method.name, **measured,
                **(method.facts() if method.facts else {}), "version": __version__, "commit": commit(),
                "seconds": round(time.monotonic() - started, 2),
            }  # fmt: skip
            with clear_write_errors(self.folder):
                self.run.write(run_name(number, method.name), record)
            advance(1)
        del split
        gc.collect()  # models hold themselves in cycles: a copy of the LLM would stay for each split

    # ---- one run -------------------------------------------------------------------------------------------------

    def measured(self, method: Method, split: Split, test: Sequence[Example]) -> dict[str, Any]:
        """What the method's task model, or its own classifier, is worth on the test rows."""
        added = method.added(split) if method.added else Added([], np.empty((0, len(split.classes))))
        settings = fit_settings(self.config, self.config.downstream_steps)
        steps = settings.steps_taken(mixing=method.mixer is not None)
        if method.short:
            steps = round(steps * len(split.examples) / (len(split.examples) + split.config.n))
        if method.classify:
            probs = method.classify(split, [row.text for row in test])
        else:
            model = self._trained(method, split, added, steps)
            if method.temperature:
                model.soften(method.temperature(split))
            probs = model.predict_proba(self._embedded(model, [row.text for row in test]))
        truth = class_numbers(test, split.classes)
        return {
            **scores(probs, truth), **_recalls(probs, truth, split), "train": len(split.examples),
            "added": len(added.texts), "test": len(test), "steps": steps,
        }  # fmt: skip

    def _trained(self, method: Method, split: Split, added: Added, steps: int) -> TaskModel:
        examples, config = split.examples, split.config
        weights = added.original_weights
        if weights is None:
            weights = original_weights(examples, split.classes, even=config.class_weights)
        weight = config.augmented_weight if added.weight is None else added.weight
        texts = [row.text for row in examples] + list(added.texts)
        model = self.fresh()
        model.set_classes(split.classes)
        model.fit(
            texts, torch.from_numpy(np.concatenate([one_hot(examples, split.classes), added.targets])).float(),
            torch.from_numpy(np.concatenate([weights, np.full(len(added.texts), weight)])).float(),
            fit_settings(config, steps), mixer=method.mixer(split) if method.mixer else None,
            known=self._embedded(model, texts) if self.config.train_encoder == "head" else None,
        )  # fmt: skip
        return model

    def fresh(self) -> TaskModel:
        """An untrained task model; all share one encoder if that does not learn."""
        if self.config.train_encoder == "full":
            return self.config.load_task_model()
        return TaskModel(self._frozen.encoder, self._frozen.name)

    @cached_property
    def _frozen(self) -> TaskModel:
        return self.config.load_task_model()

    def _embedded(self, model: TaskModel, texts: Sequence[str]) -> Tensor:
        """Embeddings [n, d]; those of an encoder that does not learn are kept for the next method."""
        if self.config.train_encoder == "full":
            return model.encode(texts)
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        self._known.update(zip(new, model.encode(new), strict=True))
        return torch.stack([self._known[text] for text in texts])


def run_name(number: int, method: str) -> str:
    """Name of the record of a method's run on a split."""
    return f"{RUNS}/{number:03d}-{method}"


def _some(test: list[Example], count: int | None) -> list[Example]:
    """So many rows of the test file, the same for every split and seed."""
    order = np.random.default_rng(0).permutation(len(test))[:count]
    return [test[at] for at in sorted(order.tolist())]


def _unseen(rows: list[Example], test: Sequence[Example], train: str) -> list[Example]:
    """The training rows whose text is not measured on."""
    measured = {words_of(row.text) for row in test}
    kept = [row for row in rows if words_of(row.text) not in measured]
    if not kept:
        raise InputError(f"{train}: every row is in the test file too; measure on rows that are not trained on")
    if len(kept) < len(rows):
        logger.warning("%s: %d rows are in the test file too, and not trained on", train, len(rows) - len(kept))
        check_classes(kept, train)
    return kept


def _recalls(probs: np.ndarray, truth: np.ndarray, split: Split) -> dict[str, Any]:
    """``recall`` by class, and ``rare_recall``: its mean over the classes with fewer rows than the median class."""
    predicted, counts = probs.argmax(1), Counter(example.label for example in split.examples)
    recall = {
        name: round(float((predicted[truth == at] == at).mean()), 4)
        for at, name in enumerate(split.classes)
        if (truth == at).any()
    }
    middle = np.median([counts[name] for name in split.classes])
    rare = [recall[name] for name in recall if counts[name] < middle]
    return {"recall": recall, "rare_recall": round(float(np.mean(rare)), 4) if rare else None}
