"""Does it help, on whose data, against what? ``python -m studies.evidence DATA -o DIR``.

Every method of the benchmark on every evaluation set, with the same splits, steps and weights. Splits are the outer
loop: whenever the study is stopped, every set has had about as many. Finished runs are not done again, nor those of
``--finished results/runs.jsonl``; ``--splits``, ``--sets`` and ``--methods`` can grow. ``DIR/runs.jsonl`` holds every
run, ``summary.json`` and ``tables.md`` what follows from them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from inversedmixup.benchmark import BenchmarkConfig, run_all
from inversedmixup.benchmark.cells import RUN, Bench, run_name
from inversedmixup.benchmark.report import write_report
from inversedmixup.errors import write_whole
from inversedmixup.options import build, read_settings
from inversedmixup.terminal import show_logs
from studies.common import SETS

# with an encoder that stays as it ships, stage 2 would only polish the adaptor on the shots: left out for its cost
PROTOCOLS: dict[str, dict[str, Any]] = {
    "frozen": {"train_encoder": "head", "follow_steps": 0, "refine_steps": 0},
    "fine-tuned": {"train_encoder": "full"},
}


def places(root: Path) -> Iterator[Path]:
    """The folders of finished and unfinished benchmarks under a study: protocol / draw / set."""
    yield from sorted(path.parents[1] for path in root.glob(f"*/*/*/{RUN}/config.json"))


def gathered(root: Path) -> list[dict[str, Any]]:
    """Every record of the study, in one order."""
    found = [
        json.loads(path.read_text(encoding="utf-8"))["value"]
        for place in places(root)
        for path in sorted((place / RUN / "runs").glob("*.json"))
    ]
    keys = ("protocol", "shots", "set", "split", "method")
    return sorted(found, key=lambda record: [record[key] for key in keys])


def take_over(bench: Bench, protocol: str, finished: list[dict[str, Any]]) -> None:
    """Count runs of an earlier study as finished here: those of this benchmark's set, draw, protocol and splits."""
    own = {"set": bench.folder.name, "shots": bench.draw, "protocol": protocol}.items()
    for record in finished:
        if own <= record.items() and record["split"] < bench.config.splits:
            name = run_name(record["split"], record["method"])
            if bench.run.read(name) is None:
                bench.run.write(name, record)


def main() -> None:
    """Run the grid and write what follows from it."""
    parser = argparse.ArgumentParser(prog="python -m studies.evidence", description="Every method on every set.")
    parser.add_argument("data", type=Path, help="folder with a folder for each set: train.jsonl and test.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--config", help="YAML file with settings of `benchmark`, the same for every set")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--draws", nargs="+", default=["10"])
    parser.add_argument("--protocols", nargs="+", default=["frozen"], choices=PROTOCOLS)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--methods", help="default: those of the config file")
    parser.add_argument("--finished", type=Path, help="runs.jsonl of an earlier study, made with the same settings")
    options = parser.parse_args()
    show_logs()
    lines = options.finished.read_text(encoding="utf-8").splitlines() if options.finished else []
    finished = [json.loads(line) for line in lines]
    settings = read_settings(options.config) if options.config else {}
    if options.methods:
        settings["methods"] = options.methods
    known: dict[str, Tensor] = {}
    for split in range(options.splits):
        for protocol in options.protocols:
            for draw in options.draws:
                for name in options.sets:
                    own = {"draw": draw, "splits": split + 1, **PROTOCOLS[protocol]}
                    bench = Bench(
                        str(options.data / name / "train.jsonl"), str(options.data / name / "test.jsonl"),
                        str(options.output / protocol / draw.replace(":", "-") / name),
                        build(BenchmarkConfig, settings, own), known,
                    )  # fmt: skip
                    take_over(bench, protocol, finished)
                    run_all(bench)
    records = gathered(options.output)
    write_whole(options.output / "runs.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    write_report(records, options.output)


if __name__ == "__main__":
    main()
