"""The report as one HTML file: no script, no network; charts are SVG and tables with bars."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inversedmixup.errors import clear_write_errors, write_whole
from inversedmixup.gate import REASONS
from inversedmixup.outputs import mark
from inversedmixup.report.evidence import BINS, NEAR_COPY, Evidence, PairIntrusion, gather
from inversedmixup.report.results import RunResults, changed, observer, those_of
from inversedmixup.schema import Row

SETTINGS = ("pairs", "lam", "labels", "interpolation", "candidates", "temperature", "min_cycle", "accept_labels")
COPIES = 12  # near-copies listed
MATRIX = 15  # classes of the table of all pairs; of more, it would be wider than a page, and mostly of pairs not tried
LISTED = 200  # pairs


def write_report(results: RunResults, path: Path, evidence: Evidence | None = None) -> Evidence:
    """Write the report of a run; returns the evidence in it.

    Args:
        results: the run.
        path: where to.
        evidence: what its rows show, where that has been gathered already.

    Raises:
        InputError: if the rows cannot be read or the file cannot be written.
    """
    evidence = evidence or gather(results.examples, results.rows())
    with clear_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, render(results, evidence).encode())
    return evidence


def render(results: RunResults, evidence: Evidence) -> str:
    """The report's HTML; every value in it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("inversedmixup", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    copies = evidence.near_copies
    return environment.get_template("page.html").render(
        mark=mark("report", results.output) + " -->", name=results.output.name, benchmark=results.benchmark,
        provenance=results.provenance, summary=results.summary, asked=results.asked,
        settings={name: results.settings[name] for name in SETTINGS if name in results.settings},
        seeds={name: results.settings.get(name) for name in ("seed", "data_seed")},
        reasons=REASONS, evidence=evidence, label_bars=_label_bars(evidence), lam_bars=_lam_bars(evidence),
        intrusion=evidence.intrusion("kept"), intrusion_tried=evidence.intrusion("kept", "rejected"),
        observer=observer(results.summary), grid=grid(evidence),
        pairs=most_intruded(evidence) if len(evidence.classes) > MATRIX else [],
        best=_shown(evidence, evidence.best()), worst=_shown(evidence, evidence.worst()),
        rejected={reason: _shown(evidence, rows) for reason, rows in evidence.by_reason.items()},
        copies=copies[:COPIES], copies_total=len(copies), near_copy=NEAR_COPY,
        changed=changed(results.summary), drawn=those_of(evidence.labels["kept"].total(), len(evidence.points)),
        searched=those_of(evidence.labels["kept"].total(), evidence.searched),
    )  # fmt: skip


def _label_bars(evidence: Evidence) -> list[dict[str, Any]]:
    """Per class the three counts, each with its share of the longest bar in percent."""
    longest = max(1, *(count for counts in evidence.labels.values() for count in counts.values()))
    classes = sorted({*evidence.classes, *evidence.labels["kept"], *evidence.labels["rejected"]})
    return [
        {
            "label": label,
            "bars": [(name, counts[label], 100 * counts[label] / longest) for name, counts in evidence.labels.items()],
        }
        for label in classes
    ]


def _lam_bars(evidence: Evidence) -> list[dict[str, Any]]:
    """Per tenth of λ the two counts, each as above."""
    longest = max(1, *evidence.lams["kept"], *evidence.lams["rejected"])
    return [
        {
            "label": f"{at / BINS:.1f} – {(at + 1) / BINS:.1f}",
            "bars": [(name, counts[at], 100 * counts[at] / longest) for name, counts in evidence.lams.items()],
        }
        for at in range(BINS)
    ]


def grid(evidence: Evidence) -> list[list[dict[str, Any] | None]]:
    """Intrusion by the parents' classes, [classes, classes]: the lower triangle; ``None`` where nothing was tried."""
    rows = []
    for at, second in enumerate(evidence.classes):
        row: list[dict[str, Any] | None] = []
        for first in evidence.classes[: at + 1]:
            pair = evidence.pairs.get((first, second))
            if pair is None:
                row.append(None)
                continue
            row.append(_cell((first, second), pair))
        rows.append(row)
    return rows


def most_intruded(evidence: Evidence) -> list[dict[str, Any]]:
    """The :data:`LISTED` pairs of classes with the most intruded rows, the most first."""
    pairs = sorted(evidence.pairs.items(), key=lambda item: (-item[1].intruded, -item[1].rate, item[0]))
    return [_cell(classes, pair) for classes, pair in pairs[:LISTED]]


def _cell(classes: tuple[str, str], pair: PairIntrusion) -> dict[str, Any]:
    first, second = classes
    return {"first": first, "second": second, "rate": pair.rate, "tried": pair.tried, "intruded": pair.intruded}


def _shown(evidence: Evidence, rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [{"row": row, "parents": evidence.parents_of(row)} for row in rows]
