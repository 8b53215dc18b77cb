"""One visitor's decisions about rows: keep, reject, relabel; filters; the curated set as a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from inversedmixup.errors import InputError
from inversedmixup.labels import is_intruded
from inversedmixup.mixing import soft_label
from inversedmixup.report.evidence import Evidence
from inversedmixup.row_file import RowFile, check_output
from inversedmixup.schema import PERSON, Row

ANY = "any"
STATES = (ANY, "kept", "rejected", "changed by you")
PAGE_ROWS = 25
BY_HAND = "rejected_by_hand"


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a person decided about a row; ``None`` where nothing was."""

    kept: bool | None = None
    label: str | None = None


Decisions = Mapping[str, Decision]


def decide(
    decisions: Decisions, row: Row, *, kept: bool | None = None, label: str | None = None
) -> dict[str, Decision]:
    """The decisions with one more; what agrees with the row as it was is no decision.

    Raises:
        InputError: for a row to be kept without a label.
    """
    before = decisions.get(row.id, Decision())
    label = before.label if label is None else label
    if kept and not (label or row.label):
        raise InputError(f"{row.id} has no label; choose one, then keep it")
    kept = before.kept if kept is None else kept
    after = Decision(None if kept == row.kept else kept, None if label == row.label else label)
    rest = {identity: decision for identity, decision in decisions.items() if identity != row.id}
    return rest if after == Decision() else {**rest, row.id: after}


def curated(row: Row, decisions: Decisions, evidence: Evidence, classes: Sequence[str]) -> Row:
    """The row as the decisions leave it; a label given by hand is certain, and says so itself what is intruded."""
    decision = decisions.get(row.id, Decision())
    if decision.label is not None:
        probs = {name: float(name == decision.label) for name in classes}
        first, second = (parent.label for parent in evidence.parents_of(row))
        row = dataclasses.replace(
            row, label=decision.label, label_probs=probs, labels={**row.labels, PERSON: decision.label},
            intruded=is_intruded(decision.label, soft_label(first, second, row.lam, classes)),
        )  # fmt: skip
    if decision.kept is not None:
        row = dataclasses.replace(row, kept=decision.kept, reject_reason=None if decision.kept else BY_HAND)
    return row


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which rows the table shows."""

    state: str = ANY
    label: str = ANY
    reason: str = ANY
    pair: str = ANY
    words: str = ""
    intruded: bool = False


def pair_name(classes: tuple[str, str]) -> str:
    """Two classes as a filter spells them."""
    return " × ".join(classes)


def select(
    rows: Sequence[Row], decisions: Decisions, filters: Filters, evidence: Evidence, classes: Sequence[str]
) -> Iterator[Row]:
    """Rows, as the decisions leave them, that pass the filters."""
    wanted = filters.words.lower().strip()
    for original in rows:
        row = curated(original, decisions, evidence, classes)
        state = (ANY, "kept" if row.kept else "rejected", "changed by you" if row.id in decisions else ANY)
        if (
            filters.state in state
            and filters.label in (ANY, row.label)
            and filters.reason in (ANY, row.reject_reason)
            and filters.pair in (ANY, pair_name(evidence.classes_of(row)))
            and wanted in row.text.lower()
            and (row.intruded or not filters.intruded)
        ):
            yield row


def export(
    rows: Sequence[Row], decisions: Decisions, path: str | Path, evidence: Evidence, classes: Sequence[str], *,
    originals: Sequence[Row] = (),
) -> int:  # fmt: skip
    """Write the rows that are kept after all decisions, after ``originals``, by the file's suffix; returns how many.

    Raises:
        InputError: for a suffix that is not .jsonl, .csv or .parquet.
    """
    written = 0
    with RowFile(check_output(path), classes) as file:
        for original in (*originals, *rows):
            row = curated(original, decisions, evidence, classes)
            if row.kept:
                file.write(dataclasses.asdict(row))
                written += 1
    return written
