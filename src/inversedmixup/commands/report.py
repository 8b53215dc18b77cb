"""``inversedmixup report RUN -o report.html``: what a run made, as one HTML file."""

from __future__ import annotations

import argparse
from typing import Any

from inversedmixup.errors import InputError, local_path
from inversedmixup.outputs import check_report
from inversedmixup.remote import check_local
from inversedmixup.report.page import write_report
from inversedmixup.report.results import read_run, those_of
from inversedmixup.terminal import output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", help="OUT or OUT.run of `augment TRAIN -o OUT`")
    parser.add_argument("-o", "--output", default="report.html", metavar="FILE.html", help="(default: report.html)")
    parser.add_argument(
        "--benchmark", metavar="DIR", help="folder of a `benchmark` of the same rows, whose verdict is shown"
    )


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Write the report."""
    check_local("report", options["run"], options["output"], options["benchmark"])
    path = local_path(options["output"])
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"output {path}: the report is an HTML file; end its name in .html")
    check_report(path)
    evidence = write_report(read_run(options["run"], options["benchmark"]), path)
    return {
        "report": str(path), "kept": evidence.labels["kept"].total(), "rejected": evidence.labels["rejected"].total(),
        "near_copies": len(evidence.near_copies), "near_copies_searched": evidence.searched,
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """Where it is."""
    output().print(
        f"{result['report']}: {result['kept']} kept and {result['rejected']} rejected rows, "
        f"{result['near_copies']} near-copies of training text among "
        f"{those_of(result['kept'], result['near_copies_searched'])}"
    )
