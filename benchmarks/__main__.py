"""``python -m benchmarks``: every benchmark, ``benchmarks/results/latest.json`` and a table."""

from __future__ import annotations

import argparse
import json
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import cluster, decoding, job, judges, scaling, training
from benchmarks.timing import machine
from inversedmixup.data import read_examples
from inversedmixup.models.llm import DTYPES

RESULTS = Path(__file__).parent / "results" / "latest.json"
PARTS = ("training", "decoding", "job", "judges", "scaling", "cluster")


def main() -> None:
    """Run the parts asked for; the others keep their last figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed, as ratios measured side by side.")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256], help="batch sizes of decoding")
    parser.add_argument("--rows", type=int, default=64, help="sentences of a training step")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="rows of the scaling jobs"
    )
    parser.add_argument("--cluster-rows", type=int, default=100_000, help="pairs tried on the cluster")
    parser.add_argument("--nodes", type=int, default=3, help="nodes of the local cluster, a core each")
    parser.add_argument("--pair", choices=("tiny", "default"), default="tiny", help="models of the cluster's jobs")
    parser.add_argument("--gguf", help="GGUF file of the default LLM, for llama.cpp's llama-batched-bench")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="of job and judges; the others measure each")
    options = parser.parse_args()
    examples = read_examples(str(files("inversedmixup") / "example" / "train.jsonl"))
    texts = [example.text for example in examples]
    parts = {
        "training": lambda: training.run(texts, rows=options.rows, device=options.device, repeats=options.repeats),
        "decoding": lambda: decoding.run(
            texts, batches=tuple(options.batches), device=options.device, repeats=options.repeats, gguf=options.gguf
        ),
        "job": lambda: job.run(examples, rows=100, kept=500, device=options.device, dtype=options.dtype),
        "judges": lambda: judges.run(examples, device=options.device, dtype=options.dtype, repeats=options.repeats),
        "scaling": lambda: scaling.run(tuple(options.sizes)),
        "cluster": lambda: cluster.run(options.cluster_rows, options.nodes, tiny=options.pair == "tiny"),
    }
    measured = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in options.only:
        if name == "cluster" and find_spec("ray") is None:
            Console().print("cluster: left out, as Ray is not installed (pip install -e '.[ray]')", markup=False)
            continue
        measured[name] = _rounded({"machine": machine(), **parts[name]()})
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        _show(name, measured[name])


def _rounded(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _show(part: str, figures: dict[str, Any]) -> None:
    table = Table("figure", "value", title=part, title_justify="left")
    for name, value in _flat(figures):
        table.add_row(name, str(value))
    Console().print(table)


def _flat(value: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, item in value.items():
        out += _flat(item, f"{before}{key} · ") if isinstance(item, dict) else [(before + key, item)]
    return out


if __name__ == "__main__":
    main()
