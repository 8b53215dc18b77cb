"""Run records → ``summary.json``, ``tables.md`` and pictures; the same records give the same bytes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inversedmixup.baselines import BASELINE
from inversedmixup.benchmark.ranks import Ranks, draw_ranks, rank
from inversedmixup.benchmark.records import Record
from inversedmixup.benchmark.summary import summarise
from inversedmixup.benchmark.tables import PROTOCOLS, render_tables, shots_order, shots_words
from inversedmixup.errors import write_whole


def write_report(records: Iterable[Record], folder: Path) -> list[Path]:
    """Write what the records say into a folder.

    Args:
        records: run records, in any order; incomplete grids are compared on what they share.
        folder: made if absent. Pictures of an earlier report are replaced.

    Returns:
        The files: ``summary.json``, ``tables.md`` and a ``ranks-PROTOCOL-SHOTS.png`` for each protocol and number of
        shots with three methods on three sets.

    Raises:
        InputError: for records that cannot be compared, and without the ``benchmark`` extra.
    """
    summary = summarise(records)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for shots in sorted(summary["over_sets"], key=shots_order):
        for protocol in sorted(summary["over_sets"][shots]):
            ranks = rank(_gains(summary["sets"], shots, protocol))
            if ranks is None:
                continue
            summary.setdefault("ranks", {}).setdefault(shots, {})[protocol] = _as_dict(ranks)
            name = f"ranks-{protocol}-{re.sub(r'[^a-z0-9-]', '-', shots.lower().replace('%', 'pc'))}.png"
            draw_ranks(ranks, folder / name, f"{PROTOCOLS.get(protocol, protocol)}, {shots_words(shots)}")
            pictures[shots, protocol] = name
    written = {
        "summary.json": json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False) + "\n",
        "tables.md": render_tables(summary, pictures),
    }
    for name, text in written.items():
        write_whole(folder / name, text.encode())
    return [folder / name for name in (*written, *pictures.values())]


def _gains(sets: Mapping[str, Any], shots: str, protocol: str) -> dict[str, dict[str, float]]:
    """Mean gain by method and set, each over the splits that it shares with the baseline, whose own gain is 0.

    On a complete grid they rank as accuracies do; else a method that was spared a hard split would rank too high.
    """
    table: dict[str, dict[str, float]] = {}
    for name, by_shots in sets.items():
        for method, cell in by_shots.get(shots, {}).get(protocol, {}).items():
            gain = 0.0 if method == BASELINE else cell["measures"]["accuracy"].get("difference")
            if gain is not None:
                table.setdefault(method, {})[name] = gain
    return table


def _as_dict(ranks: Ranks) -> dict[str, Any]:
    """The numbers that a reader can check the picture by."""
    return dataclasses.asdict(ranks) | {"ranks": dict(zip(ranks.methods, ranks.ranks, strict=True))}
