"""``inversedmixup align CORPUS -o DIR``: stage 1 for any encoder and LLM."""

from __future__ import annotations

import argparse
from typing import Any

from inversedmixup.commands import add_config, resolve
from inversedmixup.remote import check_local
from inversedmixup.stages.align import METRICS, AlignConfig, run_align
from inversedmixup.terminal import output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "corpus",
        metavar="CORPUS",
        nargs="+",
        help="unlabelled text, one file or several: .txt, .jsonl, .csv or .parquet",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the run and of the pair")
    add_config(parser, AlignConfig)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Train, or take up again; the last validation record, or nothing if another process has it."""
    corpus, where = options.pop("corpus"), options.pop("output")
    config = resolve(AlignConfig, options)
    check_local("align", *corpus, where, config.validation)
    record = run_align(corpus, where, config)
    return record and {**record, "output": where}


def show(result: dict[str, Any]) -> None:
    """The scores, and how to use the pair."""
    scores = ", ".join(f"{name} {result[name]:.4g}" for name in METRICS if name in result)
    out = output()
    out.print(f"{result['sentences']} sentences seen: {scores}", soft_wrap=True)
    out.print(f"use it with --pair {result['output']}", soft_wrap=True)
