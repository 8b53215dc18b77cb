"""Does the cost per row stay flat? Stage 3 on tiny random models, so that what is ours is what is measured."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"


def run(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Milliseconds a row and peak memory of jobs of several sizes, each in a process of its own."""
    out: dict[str, Any] = {}
    for rows in sizes:
        command = [sys.executable, "-m", "benchmarks.scaling", str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        out[str(rows)] = json.loads(done.stdout.splitlines()[-1])
    return out


def _job(rows: int) -> dict[str, float]:
    """As many input rows as pairs tried; every finished shard and both output files are written."""
    sys.path.insert(0, str(TESTS))
    from inversedmixup.data import Example, RowFile
    from inversedmixup.options import build
    from inversedmixup.runs import RunFolder
    from inversedmixup.stages.augment import AugmentConfig, run_augment
    from tiny import SENTENCES, make_encoder, make_llm, make_pair  # type: ignore[import-not-found]  # the tests' own

    with tempfile.TemporaryDirectory() as folder:
        pair = make_pair(make_encoder(Path(folder)), make_llm(Path(folder)))
        words = sorted({word for sentence in SENTENCES for word in sentence.split()})
        classes = ["a", "b", "c"]
        pair.task_model.set_classes(classes, seed=0)
        examples = [
            Example(str(at), f"{words[at % len(words)]} {words[at // 7 % len(words)]} {at}", classes[at % 3])
            for at in range(rows)
        ]
        config = build(
            AugmentConfig, {"n": rows, "tries": 1.0, "max_tokens": 8, "accept_labels": "any", "labels": "soft"}
        )
        before, started = _peak(), time.perf_counter()
        with RowFile(Path(folder) / "out.jsonl", classes) as file:
            summary = run_augment(
                pair, examples, classes, config, lambda row: file.write(vars(row)), RunFolder(Path(folder) / "run", {})
            )
        spent = time.perf_counter() - started
        return {
            "tried": summary["tried"], "ms_per_row": 1000 * spent / summary["tried"],
            "peak_mb_before": before, "peak_mb": _peak(),
        }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_job(int(sys.argv[1]))) + "\n")
