"""Does the cost per row stay flat, and the memory? Whole jobs on tiny random models, so that what is ours is measured.

``python -m benchmarks.scaling LABELLED TRIED`` is one job: so many labelled rows, so many pairs tried.
"""

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
    """Time and peak memory of jobs with as many labelled rows as pairs, each in a process of its own."""
    out: dict[str, Any] = {}
    for rows in sizes:
        command = [sys.executable, "-m", "benchmarks.scaling", str(rows), str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        out[str(rows)] = json.loads(done.stdout.splitlines()[-1])
    return out


def _job(labelled: int, tried: int) -> dict[str, float]:
    """Stage 2, stage 3 and the report; every finished shard and both output files are written."""
    sys.path.insert(0, str(TESTS))
    from inversedmixup.augment_job import AugmentJobConfig, run_augment_job
    from inversedmixup.options import build
    from tiny import SENTENCES, make_encoder, make_llm, make_pair  # type: ignore[import-not-found]  # the tests' own

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pair(make_encoder(folder), make_llm(folder)).save(folder / "pair", encoder=False)
        words = sorted({word for sentence in SENTENCES for word in sentence.split()})
        with (folder / "train.jsonl").open("w") as file:
            for at in range(labelled):
                text = " ".join(words[at // 7**place % len(words)] for place in range(12))
                file.write(json.dumps({"text": f"{text} {at}", "label": "abc"[at % 3]}) + "\n")
        size = (folder / "train.jsonl").stat().st_size / 2**20
        options = {
            "n": tried, "tries": 1.0, "max_tokens": 8, "accept_labels": "any", "labels": "soft", "min_cycle": -1.0,
            "fluency_margin": 99.0, "tolerance": 1.0, "task_steps": 3, "follow_steps": 2, "refine_steps": 1,
        }  # fmt: skip
        config = build(AugmentJobConfig, {"pair": str(folder / "pair"), **options})
        before, started = _peak(), time.perf_counter()
        summary = run_augment_job(str(folder / "train.jsonl"), str(folder / "out.jsonl"), config).summary
        spent = time.perf_counter() - started
        return {
            "tried": summary["tried"], "seconds": spent, "train_mb": size,
            "stage_3_ms_a_row": 1000 * summary["seconds_by_stage"]["augmentation"] / summary["tried"],
            "peak_mb_before": before, "peak_mb": _peak(),
        }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_job(*map(int, sys.argv[1:]))) + "\n")
