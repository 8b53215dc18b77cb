"""A finished run of ``augment``, read from its folder and the files beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from inversedmixup.errors import InputError, first_line, local_path
from inversedmixup.labelled import ExampleFile
from inversedmixup.row_file import iter_rows
from inversedmixup.runs import EXAMPLES_FILE, FITTED, PLACES, RUN_SUFFIX, SUMMARY
from inversedmixup.schema import Row
from inversedmixup.sealed import digest

MADE = {"command", "train", "train_sha256", "versions", "platform"}  # what a provenance says
COUNTS = {"kept": int, "tried": int, "rejected": dict, "originals": dict}  # without which it is no summary of a run
NOT_AS_WRITTEN = "{}: not as `augment` wrote it; run the same command again (of another command there is no report)"
BENCHMARK_FILE = "benchmark.json"  # what ``benchmark`` found, in its folder
OWN = "inversed"  # its method that does what ``augment`` does
# settings that decide nothing that a verdict is about, or are looked at apart
NO_MATTER = {"seed", "data_seed", "dtype", "engine", "api_url", "inputs_sha256", "test_sha256", "unread_sha256"}
COLUMNS = {"text_column", "label_column"}
UNKNOWN = "The benchmark is one of an earlier version: whether it is about the same rows and settings cannot be told."
APART = ("encoder", "llm", "unlabelled", "descriptions")  # files that are no part of the pair


@dataclasses.dataclass(frozen=True)
class Benchmarked:
    """What a benchmark says that bears on a run.

    Attributes:
        verdict: on ``inversed``, what ``augment`` does; ``None`` if the benchmark did not run it.
        note: how far it is about this run, if that is not plain; else empty.
        others: its verdicts on other methods.
    """

    verdict: str | None
    note: str
    others: list[str]


@dataclasses.dataclass(frozen=True)
class RunResults:
    """What a run left.

    Attributes:
        folder: the run folder, ``OUT.run``.
        output: the file of kept rows.
        rejected: the file of rejected rows.
        settings: the resolved config.
        summary: counts, rates, mean scores.
        provenance: command, versions; see :func:`inversedmixup.provenance.provenance`.
        examples: the labelled rows that were mixed.
        benchmark: what a benchmark says of it, if one was given.
    """

    folder: Path
    output: Path
    rejected: Path
    settings: dict[str, Any]
    summary: dict[str, Any]
    provenance: dict[str, Any]
    examples: ExampleFile
    benchmark: Benchmarked | None

    @property
    def fluencies(self) -> list[float] | None:
        """Fluencies of training texts, as the run recorded them for its gate; ``None`` if they are gone or damaged."""
        try:
            return [float(value) for value in _read(self.folder / "fluencies.json")["value"]] or None
        except (ValueError, LookupError, TypeError):
            return None

    @property
    def asked(self) -> int:
        """How many rows were asked for."""
        return int(self.settings["n"])  # the summary of an earlier version does not say

    def rows(self) -> Iterator[Row]:
        """See :func:`judged_rows`."""
        return judged_rows(self.output, self.rejected)

    def originals(self) -> Iterator[Row]:
        """Repeated originals: the head of the output, of a run with ``include_original``."""
        return takewhile(_is_original, iter_rows(self.output))


def changed(summary: Mapping[str, Any]) -> str | None:
    """On how many test rows the new rows change who is right, in words; ``None`` if that is not known."""
    if "p_value" not in summary:
        return None
    p, rows = summary["p_value"], summary["test_rows"]
    return (
        f"of {rows} test rows {summary['became_right']} became right and {summary['became_wrong']} wrong; "
        f"p {'< 0.001' if p < 0.001 else f'= {p:.2g}'} (exact McNemar test)"
    )


def judged_rows(output: Path, rejected: Path) -> Iterator[Row]:
    """Kept rows, then rejected ones, without repeated originals."""
    for path in (output, rejected):
        yield from (row for row in iter_rows(path) if not _is_original(row))


def observer(summary: Mapping[str, Any]) -> tuple[str, float | None]:
    """Who says which rows are intruded, and on what share of the user's rows he errs; ``None`` where nobody knows."""
    if "judge" not in summary:
        return "the task model", None
    accuracy = summary["judge"]["accuracy"]
    return f"judge {summary['judge']['name']}", None if accuracy is None else 1 - accuracy


def those_of(kept: int, looked_at: int) -> str:
    """Which kept rows were looked at, the first ones in their order, in words."""
    return f"the {kept:,} kept rows" if looked_at >= kept else f"the first {looked_at:,} of {kept:,} kept rows"


def _is_original(row: Row) -> bool:
    """Whether it is its own parents."""
    return row.parents == [row.id, row.id]


def is_run(path: str | Path) -> bool:
    """Whether there is a run that :func:`read_run` can be asked for: of ``augment``, not of ``label``."""
    folder = run_folder(path)
    return folder.is_dir() and not (folder / f"{FITTED}.json").exists()


def read_run(
    path: str | Path, benchmark: str | Path | None = None, *, examples: ExampleFile | None = None
) -> RunResults:
    """The run in a folder ``OUT.run``, or the run that wrote the file ``OUT``.

    Args:
        path: either of them.
        benchmark: the folder of a ``benchmark`` of the same rows, whose verdict belongs to the results.
        examples: the rows that were mixed, where they have been read already.

    Raises:
        InputError: if there is no finished run, or no finished benchmark, if a file of it is damaged, or if the
            benchmark is known to be of other rows.
    """
    folder = run_folder(path)
    if not (folder / "config.json").is_file():
        raise InputError(f"{path}: no run there; give OUT or OUT{RUN_SUFFIX} of `inversedmixup augment TRAIN -o OUT`")
    output = folder.with_name(folder.name.removesuffix(RUN_SUFFIX))
    if not (folder / SUMMARY).is_file():
        raise InputError(f"{folder}: the run is not finished; run the same `augment` command again to finish it")
    settings, made = _settings(folder / "config.json"), _provenance(folder / "provenance.json")
    return RunResults(
        folder, output, output.with_name(f"{output.stem}.rejected{output.suffix}"), settings,
        _summary(folder / SUMMARY), made, examples or _examples(folder / EXAMPLES_FILE),
        None if benchmark is None else _benchmarked(local_path(benchmark), settings, made),
    )  # fmt: skip


def _settings(path: Path) -> dict[str, Any]:
    settings = _read(path)
    places = settings.pop(PLACES, {})  # decide nothing, and have no part in the seal
    if settings.pop("sha256", None) != digest(settings):
        raise InputError(NOT_AS_WRITTEN.format(path))
    return {**settings, PLACES: places}


def _summary(path: Path) -> dict[str, Any]:
    summary = _read(path)
    seal = summary.pop("sha256", None)  # that of an earlier version has none
    counted = all(isinstance(summary.get(name), kind) for name, kind in COUNTS.items())
    if not counted or seal not in (None, digest(summary)):
        raise InputError(NOT_AS_WRITTEN.format(path))
    return summary


def _provenance(path: Path) -> dict[str, Any]:
    made = _read(path).get("value")
    if not isinstance(made, dict) or not made.keys() >= MADE or not isinstance(made["versions"], dict):
        raise InputError(NOT_AS_WRITTEN.format(path))
    return made


def _examples(path: Path) -> ExampleFile:
    try:
        return ExampleFile.read(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({first_line(error)}); run the same `augment` command again"
        ) from None


def _benchmarked(folder: Path, settings: dict[str, Any], made: dict[str, Any]) -> Benchmarked:
    """What the benchmark in a folder says of a run with these settings and this provenance."""
    path = folder / BENCHMARK_FILE
    if not path.is_file():
        raise InputError(f"{folder}: no finished benchmark there; give the folder of `inversedmixup benchmark -o`")
    found = _read(path, "benchmark")
    same_rows = found.get("inputs_sha256") == settings.get("inputs_sha256")
    if "train_sha256" in found and not same_rows and found["train_sha256"] != made["train_sha256"]:
        raise InputError(
            f"{folder}: is a benchmark of other rows than the run's, which says nothing of it; give one of "
            f"{made['train']} as it was, or leave --benchmark away"
        )
    try:
        verdict = found.get("methods", {}).get(OWN, {}).get("verdict", {}).get("sentence")
        others = [str(sentence) for sentence in found.get("verdicts", []) if sentence != verdict]
        note = _differences(found["settings"], settings, same_rows) if "train_sha256" in found else UNKNOWN
    except (AttributeError, LookupError, TypeError):
        raise InputError(f"{path}: not as `benchmark` wrote it; run the same command again") from None
    return Benchmarked(verdict, note, others)


def _differences(there: dict[str, Any], here: dict[str, Any], same_rows: bool) -> str:
    """The settings of a benchmark that are others than a run's, in words; empty: none that matters."""
    files = there["files_sha256"]
    own = here.get("files_sha256", files)
    changed = {name for name in {*files, *own} if files.get(name) != own.get(name)}
    parts = {name if name in APART else "pair" for name in changed}
    said = {name: f"another {name}" for name in sorted(parts)}
    there = {**there, "shots": None}  # it draws rows of its own
    for name in sorted(here.keys() & there.keys() - NO_MATTER - {"files_sha256"} - (COLUMNS if same_rows else set())):
        if here[name] != there[name]:
            theirs, ours = ("none" if value is None else value for value in (there[name], here[name]))
            said.setdefault(name, f"{name} {theirs} (here {ours})")
    return f"The benchmark had other settings: {', '.join(said.values())}." if said else ""


def run_folder(path: str | Path) -> Path:
    """``OUT.run`` for either ``OUT`` or ``OUT.run``."""
    given = local_path(path).absolute()  # `.` has no name
    return given if given.name.endswith(RUN_SUFFIX) else given.parent / (given.name + RUN_SUFFIX)


def _read(path: Path, command: str = "augment") -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run the same `{command}` command again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object, found a {type(value).__name__}; run `{command}` again")
    return value
