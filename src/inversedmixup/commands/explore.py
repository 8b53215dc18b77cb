"""``inversedmixup explore [RUN | TRAIN]``: the explorer page."""

from __future__ import annotations

import argparse
import dataclasses
import socket
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

from inversedmixup.commands import EXAMPLE, add_config, resolve
from inversedmixup.errors import InputError
from inversedmixup.models.pair import PairOptions
from inversedmixup.options import at_least, option
from inversedmixup.remote import check_local
from inversedmixup.terminal import console, output


@dataclasses.dataclass(frozen=True)
class ExploreConfig(PairOptions):
    """Settings of ``explore``. A run brings its own pair."""

    text_column: str = option("text", "column of the text in TRAIN")
    label_column: str = option("label", "column of the label in TRAIN")
    host: str = option("127.0.0.1", "address to bind; 0.0.0.0 lets the whole network in")
    port: int | None = option(None, "port (default: the first free one from 7860)")
    browser: bool = option(True, "open the page in a browser")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "port")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "target", metavar="RUN|TRAIN", nargs="?", default=EXAMPLE,
        help=f"OUT or OUT.run of `augment`, or a labelled .jsonl, .csv or .parquet (default: the bundled `{EXAMPLE}`)",
    )  # fmt: skip
    add_config(parser, ExploreConfig)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Serve the page until Ctrl-C."""
    target = options.pop("target")
    check_local("explore", target)
    config = resolve(ExploreConfig, options)
    try:
        from inversedmixup.explore.page import launch
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError("explore needs gradio; install it with: pip install gradio") from None
    from inversedmixup.explore.explorer import open_explorer

    _check_host(config.host)
    if target == EXAMPLE and not Path(target).is_file():
        target = str(files("inversedmixup") / "example" / "train.jsonl")
    explorer = open_explorer(target, config, text_column=config.text_column, label_column=config.label_column)
    page = launch(explorer, host=config.host, port=config.port, browser=config.browser)
    console.print(f"{page.local_url} is open; Ctrl-C closes it", markup=False, soft_wrap=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)
    return {"url": page.local_url}


def _check_host(host: str) -> None:
    """Refuse, before any model is loaded, an address that no port of this machine has: gradio would try them all."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, 0), family=family):
            pass
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"explore: host {host!r} cannot be bound here ({error}); leave --host out, or give one of this machine"
        ) from None


def show(result: dict[str, Any]) -> None:
    """Where the page was."""
    output().print(f"{result['url']} is closed")
