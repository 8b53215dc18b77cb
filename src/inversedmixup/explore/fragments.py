"""Pieces of the page as HTML, every value escaped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from inversedmixup.data import Row
from inversedmixup.explore.curation import Decisions, pair_name
from inversedmixup.explore.explorer import Explorer, Strip
from inversedmixup.gate import REASONS
from inversedmixup.report.page import grid

MAP_POINTS = 600  # training rows drawn; more would only be a cloud, and each λ move sends them
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


def point(strip: Strip | None, at: int) -> str:
    """One point of a strip: the text, its scores, its label probabilities."""
    if strip is None or not strip.points:
        return _fragment("nothing", "Choose two sentences and press “Write the strip”.")
    found = strip.points[at]
    probs = sorted(found.label_probs.items(), key=lambda item: -item[1])
    return _fragment("point", found, probs)


def whole_strip(strip: Strip | None, at: int) -> str:
    """The strip as a table, the current point marked."""
    return "" if strip is None else _fragment("strip", strip, at)


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


def training_map(explorer: Explorer, strip: Strip | None, at: int, kind: str) -> str:
    """The training rows, the way between the parents, the mixed point and the re-read point."""
    places = explorer.places(kind)
    step = max(1, -(-len(places) // MAP_POINTS))
    classes = explorer.evidence.classes
    rows = [
        (*_scaled(places[index]), classes.index(explorer.examples[index].label), explorer.examples[index])
        for index in range(0, len(places), step)
    ]
    way = None
    if strip is not None and strip.points:
        mixed, reread = explorer.places_of(strip, kind)
        path = [_scaled(place) for place in mixed]
        way = {"path": path, "mixed": path[at], "reread": _scaled(reread[at]), "point": strip.points[at]}
    return _fragment("training_map", rows, classes, way, kind, SIZE)


def _scaled(place: Any) -> tuple[float, float]:  # noqa: ANN401 (a row [2] of an array)
    """A place in [0, 1]² as coordinates of the drawing; what lies outside is drawn at the edge."""
    x, y = (min(max(float(value), -0.02), 1.02) for value in place)
    return round(PAD + x * (SIZE - 2 * PAD), 1), round(SIZE - PAD - y * (SIZE - 2 * PAD), 1)
