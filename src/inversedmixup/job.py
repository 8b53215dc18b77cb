"""What ``augment`` and ``label`` share: labelled rows in, new rows out, finished work in a folder beside them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from inversedmixup.data import iter_examples
from inversedmixup.errors import clear_write_errors, local_path
from inversedmixup.identity import choice_settings, work_settings
from inversedmixup.judges import check_pair
from inversedmixup.labelled import (
    ExampleFile,
    check_classes,
    check_known_labels,
    class_counts,
    iter_shots,
    warn_of_seen,
)
from inversedmixup.labels import parse_labels
from inversedmixup.models.pair import Pair, PairOptions
from inversedmixup.options import NOTHING, at_least, option
from inversedmixup.outputs import check_apart, check_ours, check_unchanged
from inversedmixup.provenance import provenance
from inversedmixup.remote import check_local, check_target, fetched, is_url, local_name, put, shown, sibling
from inversedmixup.row_file import RowFile, check_output
from inversedmixup.runs import RUN_SUFFIX, RunFolder, ShardedRows, recorded
from inversedmixup.schema import Example, LabelledText, Row
from inversedmixup.stages.downstream import DownstreamConfig, run_downstream
from inversedmixup.stages.warmup import CrossValidation, TaskModelConfig, fit_settings

SAMPLE_ROWS = 8  # new rows to show
UNEVEN = 3  # times as many rows in the largest class as in the smallest: a word is said about it

logger = logging.getLogger(__name__)

New = TypeVar("New", Row, LabelledText)


@dataclasses.dataclass(frozen=True)
class JobOptions(PairOptions, TaskModelConfig, DownstreamConfig):
    """Settings that both have."""

    GROUP: ClassVar[str] = "labelled rows"

    label_column: str = option("label", "column of the label")
    shots: int | None = option(None, "use only this many labelled rows of each class, drawn by --data-seed")
    data_seed: int = option(0, "seed of the choice of rows by --shots")
    # its rows decide something, its name does not
    test: str | None = option(
        None, "labelled file: measure accuracy on it with and without the new rows", decides=NOTHING
    )
    overwrite: bool = option(False, "replace a finished or interrupted run with other settings", decides=NOTHING)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "data_seed")


@dataclasses.dataclass(frozen=True)
class Names:
    """The files of a job: as they were given, maybe as URLs, and where they lie on this machine.

    Attributes:
        given: what the user called the inputs and then the output.
        inputs: paths of the inputs.
        output: path of the output.
    """

    given: Sequence[str]
    inputs: Sequence[str]
    output: Path

    @property
    def rejected(self) -> Path:
        """Where rows go that are not to be trained on."""
        return self.beside(f"rejected{self.output.suffix}")

    def beside(self, ending: str) -> Path:
        """A sibling of the output."""
        return self.output.with_name(f"{self.output.stem}.{ending}")


@contextlib.contextmanager
def on_this_machine(files: Sequence[str | Path], output: str | Path, config: JobOptions) -> Iterator[Names]:
    """The files of a job on this machine; what was made for a URL is put there whole when the job has ended well."""
    inputs, output = [str(name) for name in files], str(output)
    out = check_output(local_name(output))
    names = Names([shown(name) if is_url(name) else name for name in (*inputs, output)], inputs, out)
    targets = {out: output, names.rejected: sibling(output, names.rejected.name)} if is_url(output) else {}
    record = out.with_name(out.name + RUN_SUFFIX) / "put.json"
    read = [*inputs, *filter(None, _also_read(config))]
    for url in targets.values():
        check_target(url, inputs=read, record=record, overwrite=config.overwrite)
    with contextlib.ExitStack() as stack:
        there = [stack.enter_context(fetched(name)) for name in inputs]
        stack.enter_context(clear_write_errors(out))
        yield dataclasses.replace(names, inputs=there)
    for path, url in targets.items():
        put(path, url, record)


def _also_read(config: Any) -> tuple[str | None, ...]:  # noqa: ANN401 (JobOptions and what a subclass adds)
    return config.test, getattr(config, "unlabelled", None)


class Job(Generic[New]):
    """One run: whatever can be refused is refused while it is made, before minutes of work and before it is recorded.

    Subclasses say what else they read, and call :meth:`begin` once they know it is usable.

    Args:
        names: its files.
        config: settings.
    """

    command: ClassVar[str]
    kind: ClassVar[type]
    shard_rows: ClassVar[int]

    def __init__(self, names: Names, config: Any) -> None:  # noqa: ANN401 (JobOptions and what a subclass adds)
        self.names, self.config = names, config
        self.kept = array("q")
        self.sample: list[New] = []
        also_read = _also_read(config)
        check_local(self.command, *also_read, config.descriptions)
        check_apart((names.output, names.rejected), *names.inputs, *also_read)
        self.folder = names.output.with_name(names.output.name + RUN_SUFFIX)
        check_ours(
            self.folder / "config.json", names.output, names.rejected, overwrite=config.overwrite, pages=self.pages()
        )
        self.made = self.folder / "made.json"
        check_unchanged(self.made, names.output, names.rejected, overwrite=config.overwrite)
        # rows stay on disk: in a file of nobody's until it is known that the run folder is this run's
        train = names.given[0]
        self.examples = self._labelled(names.inputs[0], train)
        if config.shots is not None:
            self.examples = self.on_disk(iter_shots(self.examples, config.shots, seed=config.data_seed))
        self.classes = check_classes(self.examples, train)
        self.test = self._labelled(config.test, config.test) if config.test else self.on_disk(())
        check_known_labels(self.test, self.classes, config.test or "")
        warn_of_seen(self.test, self.examples, config.test or "")
        most, *_, least = class_counts(self.examples).values()
        if most >= UNEVEN * least and not config.class_weights:
            logger.info(
                "the largest class has %d rows, the smallest %d: where rare classes matter as much, train with class "
                "weights (--class-weights measures that)", most, least,
            )  # fmt: skip

    def pages(self) -> dict[Path, str]:
        """Reports and cards that it is going to write, with their marks."""
        return {}

    def on_disk(self, examples: Iterable[Example]) -> ExampleFile:
        """Rows in a file without a name."""
        return ExampleFile.write(self.names.output.parent, examples)

    def _labelled(self, path: str, origin: str) -> ExampleFile:
        columns = {"text_column": self.config.text_column, "label_column": self.config.label_column}
        return self.on_disk(iter_examples(path, **columns, origin=origin))

    def check_pair(self, pair: Pair) -> None:
        """Refuse a pair whose LLM cannot tell the classes apart; see :func:`~inversedmixup.judges.check_pair`."""
        check_pair(pair, self.classes, parse_labels(self.config.labels).judges, self.config)

    def begin(
        self, *, unread: Sequence[Example] = (), texts: Sequence[Example] | None = None,
        given: JobOptions | None = None,
    ) -> None:  # fmt: skip
        """Take the run up, or begin it.

        Args:
            unread: see :mod:`inversedmixup.identity`.
            texts: the same.
            given: the settings as they were given, where those of the job are others.
        """
        config, names = self.config, self.names
        *inputs, output = names.given
        made = provenance(self.command, inputs, output, given or config, train=local_path(names.inputs[0]))
        self.run_folder = RunFolder(
            self.folder, work_settings(config, self.examples, unread=unread),
            choice=choice_settings(config, self.test, texts), overwrite=config.overwrite,
        )  # fmt: skip
        self.run_folder.write("provenance", made)
        config.warn_if_fitted()
        self.cross_validated = CrossValidation(config.load_task_model, self.examples, self.classes, config)

    @contextlib.contextmanager
    def taking(self, originals: Iterable[dict[str, Any]] = ()) -> Iterator[Callable[[New], None]]:
        """The output files, open for every row in its order. Of those kept only the numbers are held."""
        names, seen = self.names, 0
        with (
            RowFile(names.output, self.classes, self.kind, self.made) as kept,
            RowFile(names.rejected, self.classes, self.kind, self.made) as rejected,
        ):
            for original in originals:
                kept.write(original)

            def take(row: New) -> None:
                nonlocal seen
                (rejected if row.reject_reason else kept).write(dataclasses.asdict(row))
                if not row.reject_reason:
                    self.kept.append(seen)
                    self.sample += [row] if len(self.sample) < SAMPLE_ROWS else []
                seen += 1

            yield take

    def downstream(self) -> dict[str, Any]:
        """Accuracies on the test file, if there is one, with and without the new rows."""
        if not self.test:
            return {}
        config, rows = self.config, ShardedRows(self.run_folder, self.kept, self.shard_rows, self.kind)
        measure = partial(
            run_downstream, config.load_task_model, self.examples, rows, self.test, self.classes,
            fit_settings(config, config.downstream_steps), config,
        )  # fmt: skip
        # that of an earlier version does not say on how many rows the two differ
        return dict(recorded(self.run_folder.chosen, "downstream", measure, fits=lambda found: "p_value" in found))
