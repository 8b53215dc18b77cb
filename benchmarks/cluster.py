"""Stage 3 on a local Ray cluster of several nodes against one process: throughput, memory, and what a death costs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from inversedmixup.cluster import SHARDS_A_TASK
from inversedmixup.stages.augment import SHARD_ROWS

TESTS = Path(__file__).parents[1] / "tests"
WORKING = ("one process", "cluster", "cluster, a node dies")


def run(rows: int, nodes: int, *, tiny: bool) -> dict[str, Any]:
    """``rows`` pairs tried by one process, by a cluster of one-core nodes, and by one that loses a node half-way."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepare(Path(folder), tiny=tiny)
        figures = {
            how: _measured([sys.executable, "-m", "benchmarks.cluster", how, str(rows), str(nodes), *prepared, folder])
            for how in WORKING
        }
    expected = figures[WORKING[0]]["sha256"]
    for figure in figures.values():
        figure["same_rows"] = figure.pop("sha256") == expected
    return {"rows": rows, "nodes": nodes, "pair": "tiny random models" if tiny else "default", **figures}


def _prepare(folder: Path, *, tiny: bool) -> list[str]:
    """A pair (the word ``default``, or a folder) and a training file."""
    from importlib.resources import files

    if not tiny:
        return ["default", str(files("inversedmixup") / "example" / "train.jsonl")]
    sys.path.insert(0, str(TESTS))
    from tiny import LABELS, SENTENCES, make_encoder, make_llm, make_pair  # type: ignore[import-not-found]

    make_pair(make_encoder(folder), make_llm(folder)).save(folder / "pair", encoder=False)
    rows = [{"text": text, "label": label} for text, label in zip(SENTENCES, LABELS, strict=True)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(folder / "pair"), str(folder / "train.jsonl")]


def _measured(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _job(how: str, rows: int, nodes: int, pair: str, train: str, folder: str) -> dict[str, Any]:
    """One run of the main job, timed from the first shard to the last."""
    from inversedmixup.augment_job import AugmentJobConfig, run_augment_job
    from inversedmixup.options import build

    out = Path(folder) / f"{how.replace(' ', '-')}.parquet"
    options: dict[str, Any] = {
        "n": rows, "tries": 1.0, "candidates": 1, "pair": None if pair == "default" else pair, "min_cycle": -1.0,
        "fluency_margin": 99.0, "accept_labels": "any", "max_parent_overlap": 1.0, "tolerance": 1.0,
    }  # fmt: skip
    if pair == "default":  # stage 2 and a tuned judge are the driver's, whatever writes the texts
        options |= {"labels": "hard:task", "train_encoder": "head"}
    else:
        options |= {"max_tokens": 8, "task_steps": 3, "follow_steps": 2, "refine_steps": 1}
    config, cluster = build(AugmentJobConfig, options), None
    if how != WORKING[0]:
        from ray.cluster_utils import Cluster

        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # as nice as the one process
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        others = [cluster.add_node(num_cpus=1) for _ in range(nodes - 1)]
        config = dataclasses.replace(config, engine=f"ray:{cluster.address}")
    shards = Path(f"{out}.run") / "shards"
    watch = Watch(shards, rows // SHARD_ROWS)
    if how == WORKING[2] and cluster is not None:
        watch.half_way = lambda: cluster.remove_node(others[-1], allow_graceful=False)
    with watch:
        summary = run_augment_job(train, str(out), config).summary
    if cluster is not None:
        cluster.shutdown()
    digest = hashlib.sha256(out.read_bytes() + out.with_name(f"{out.stem}.rejected{out.suffix}").read_bytes())
    return {"tried": summary["tried"], "sha256": digest.hexdigest(), **watch.figures()}


class Watch:
    """Looks every half second at how many shards there are and how much memory the run's processes take."""

    def __init__(self, shards: Path, total: int) -> None:
        self.shards, self.total = shards, total
        self.half_way: Callable[[], None] | None = None
        self.seen: list[tuple[float, int, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look_once()
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            self._look_once()
            act = self.half_way
            if act and self.seen[-1][1] > self.total // 2:
                self.half_way = None
                act()

    def _look_once(self) -> None:
        import psutil  # type: ignore[import-untyped]

        made = len(list(self.shards.iterdir())) if self.shards.exists() else 0
        memory = psutil.Process().memory_info().rss / 2**20
        self.seen.append((time.monotonic(), made, memory))

    def figures(self) -> dict[str, Any]:
        """Rows a second between the first shard and the last, and the driver's memory at quarters of the way."""
        working = [look for look in self.seen if look[1]]
        first, last = working[0], working[-1]
        spent = last[0] - first[0]
        quarters = [next(look[2] for look in working if look[1] >= share * last[1]) for share in (0.25, 0.5, 0.75, 1.0)]
        pause = max((b[0] - a[0] for a, b in self._steps()), default=0.0)
        return {
            "rows_a_second": SHARD_ROWS * (last[1] - first[1]) / spent if spent else None, "seconds": spent,
            "seconds_to_first_shard": first[0] - self.seen[0][0], "longest_pause_seconds": pause,
            "driver_mb_at_quarters": [round(value) for value in quarters], "rows_a_task": SHARDS_A_TASK * SHARD_ROWS,
        }  # fmt: skip

    def _steps(self) -> list[tuple[tuple[float, int, float], tuple[float, int, float]]]:
        """Looks at which there were more shards than before, each with the next such."""
        grown = [b for a, b in pairwise(self.seen) if b[1] > a[1]]
        return list(pairwise(grown))


if __name__ == "__main__":
    kind, count, machines, *rest = sys.argv[1:]
    sys.stdout.write(json.dumps(_job(kind, int(count), int(machines), *rest)) + "\n")
