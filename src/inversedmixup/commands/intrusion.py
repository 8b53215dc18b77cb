"""``inversedmixup intrusion TRAIN -o DIR``: how often a mix belongs to another class than interpolation says."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from inversedmixup.commands import add_config, resolve
from inversedmixup.errors import clear_write_errors, local_path
from inversedmixup.figures import can_draw, draw_intrusion
from inversedmixup.intrusion import LAMS, IntrusionConfig, run_intrusion
from inversedmixup.rates import KINDS
from inversedmixup.terminal import new_table, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("train", metavar="TRAIN", help="labelled .jsonl, .csv or .parquet")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for intrusion.json and pictures")
    add_config(parser, IntrusionConfig)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """The study; pictures too where matplotlib is there."""
    train, where = options.pop("train"), options.pop("output")
    result = run_intrusion(train, where, resolve(IntrusionConfig, options))
    folder = local_path(where)
    with clear_write_errors(folder):
        pictures = draw_intrusion(result, folder) if can_draw() else []
    return {**result, "output": where, "pictures": pictures}


def show(result: dict[str, Any]) -> None:
    """Who looked, and the contradicted share by λ as the reference sees it."""
    out = output()
    for observer in result["observers"]:
        share = (
            "unknown" if observer["accuracy"] is None else f"{observer['accuracy']:.1%} of {observer['n']} real rows"
        )
        out.print(f"{observer['name']}: right on {share}", soft_wrap=True)
    if result["reference_knows_the_parents"]:
        out.print("the reference learnt from the parents too: give a larger file with --reference for a fairer one")
    table = new_table(
        "mixes", *(f"λ {lam}" for lam in LAMS), "all λ < 1", "foreign", title="contradicted, by the reference"
    )
    for space, pairs, how in dict.fromkeys((r["space"], r["pairs"], r["interpolation"]) for r in result["rates"]):
        rates = {
            rate["lam"]: rate
            for rate in result["rates"]
            if (rate["space"], rate["pairs"], rate["interpolation"], rate["observer"])
            == (space, pairs, how, "reference")
        }
        overall = rates[None]
        table.add_row(
            Text(f"{space}, {pairs}, {how}"), *(_share(rates[lam]["contradicted"]) for lam in LAMS),
            _full(overall["contradicted"]), _full(overall["foreign"]),
        )  # fmt: skip
    out.print(table)
    out.print("; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items()), soft_wrap=True)
    out.print(
        f"shares with 95 % intervals; → without the reference's own errors. All of it is in {result['output']}"
        + ("" if result["pictures"] else " (no pictures: pip install matplotlib)"),
        soft_wrap=True,
    )  # fmt: skip


def _share(found: Mapping[str, Any]) -> str:
    return "–" if found["rate"] is None else f"{found['rate']:.0%}"


def _full(found: Mapping[str, Any]) -> str:
    """A share, its interval, and the share without the observer's errors."""
    if found["rate"] is None:
        return "–"
    corrected = "" if found["corrected"] is None else f" → {found['corrected']:.0%}"
    return f"{found['rate']:.0%} ({found['low']:.0%}–{found['high']:.0%}){corrected}"
