"""Pieces of the page as HTML, every value escaped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from inversedmixup.explore.curation import Decisions, pair_name
from inversedmixup.explore.explorer import Explorer, Strip
from inversedmixup.gate import REASONS
from inversedmixup.report.page import grid
from inversedmixup.schema import Row

MAP_POINTS = 600  # training rows drawn; more would only be a cloud, and each λ move sends them
MARKS = 20  # different ones; of more classes the map shows those of the two parents
PROBS = 8  # label probabilities shown of a point
SIZE = 320  # of the map, in its own units
PAD = 14
# Gradio reads what it shows as a template once more: these are written as entities
TEMPLATE_CHARACTERS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;", "\\": "&#92;"})


@cache
def _macros() -> Any:  # noqa: ANN401 (a jinja2 TemplateModule)
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("inversedmixup", "explore"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("fragments.html").module


def _fragment(name: str, *values: Any) -> str:
    return str(getattr(_macros(), name)(*values)).translate(TEMPLATE_CHARACTERS)


def status(text: str, done: int | None = None, total: int = 0) -> str:
    """A line that screen readers announce, with a progress bar while ``done`` is given."""
    return _fragment("status", text, done, total)


def points(strip: Strip | None) -> str:
    """Every point of a strip, of which the page shows one: the text, its scores, its label probabilities."""
    if strip is None:
        return _fragment("nothing", "Choose two sentences and press “Write the strip”.")
    probs = [sorted(point.label_probs.items(), key=lambda item: -item[1])[:PROBS] for point in strip.points]
    return _fragment("points", list(zip(strip.points, probs, strict=True)))


def whole_strip(strip: Strip) -> str:
    """The strip as a table."""
    return _fragment("strip", strip)


def candidates(rows: Sequence[Row]) -> str:
    """Candidates with the gate's verdicts."""
    return _fragment("candidates", rows, REASONS)


def heat_map(explorer: Explorer) -> str:
    """Intrusion by class pair; each cell is a button that carries the pair's name."""
    cells = [
        [cell and {**cell, "pair": pair_name((cell["first"], cell["second"]))} for cell in row]
        for row in grid(explorer.evidence)
    ]
    return _fragment("heat_map", explorer.evidence.classes, cells)


def table(explorer: Explorer, rows: Sequence[Row], decisions: Decisions, total: int) -> str:
    """Rows with their buttons."""
    shown = [{"row": row, "parents": explorer.evidence.parents_of(row)} for row in rows]
    return _fragment("table", shown, decisions, explorer.classes, total)


def training_map(explorer: Explorer, strip: Strip | None, kind: str) -> str:
    """The training rows, the way between the parents and, for every point, where it was meant to be and where it is.

    Classes have marks of their own; where there are too many for that, those of the two parents have.
    """
    places = explorer.places(kind)
    step = max(1, -(-len(places) // MAP_POINTS))
    classes, marked = explorer.evidence.classes, explorer.evidence.classes
    if len(classes) > MARKS:
        marked = sorted(set(explorer.labels_of(strip)) & set(classes)) if strip else []
    marks = {name: number for number, name in enumerate(marked)}
    examples = explorer.examples
    rows = [
        (*_scaled(places[index]), marks.get(examples[index].label), examples[index])
        for index in range(0, len(places), step)
    ]
    rows.sort(key=lambda row: row[2] is not None)  # what has a mark of its own is drawn above the rest
    path, ends = [], []
    if strip is not None:
        mixed, reread = explorer.places_of(strip, kind)
        path = [_scaled(place) for place in mixed]
        ends = list(zip(strip.points, path, map(_scaled, reread), strict=False))
    return _fragment("training_map", rows, marks, len(classes) - len(marks), path, ends, kind, SIZE)


def _scaled(place: Any) -> tuple[float, float]:  # noqa: ANN401 (a row [2] of an array)
    """A place in [0, 1]² as coordinates of the drawing; what lies outside is drawn at the edge."""
    x, y = (min(max(float(value), -0.02), 1.02) for value in place)
    return round(PAD + x * (SIZE - 2 * PAD), 1), round(SIZE - PAD - y * (SIZE - 2 * PAD), 1)
