"""One module a command: ``add_arguments``, ``run`` (returns what ``--json`` prints) and ``show``."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from inversedmixup.options import Options, build, check_known, read_settings
from inversedmixup.options import add_arguments as add_options

T = TypeVar("T", bound=Options)
EXAMPLE = "example"  # names the bundled rows where a labelled file is expected


def add_config(parser: argparse.ArgumentParser, config: type) -> None:
    """The flags of a config, and ``--config`` for a YAML file with the same names."""
    parser.add_argument("--config", metavar="FILE.yaml", help="settings by the names of the flags; flags win")
    add_options(parser, config)


def resolve(config: type[T], options: dict[str, Any]) -> T:
    """The config from defaults, the ``--config`` file and flags, in rising order."""
    options = dict(options)
    path = options.pop("config", None)
    settings = {} if path is None else read_settings(path)
    check_known(config, settings, f"--config {path}: ")
    return build(config, settings, options)


@contextlib.contextmanager
def kept(output: str | None) -> Iterator[None]:
    """Let an interruption promise nothing where there is no output to keep finished work beside."""
    try:
        yield
    except KeyboardInterrupt:
        if output:
            raise
        raise KeyboardInterrupt("nothing is kept without --output") from None


def compared(result: Mapping[str, Any]) -> str:
    """What :func:`~inversedmixup.stages.downstream.run_downstream` measured, in words."""
    from inversedmixup.report.results import changed  # numpy, which `--help` does without

    trained = f"{result['steps']} steps each" if result["steps"] else "a head each, to its optimum"
    return (
        f"accuracy on {result['test_rows']} test rows: {result['accuracy_without']:.3f} without, "
        f"{result['accuracy_with']:.3f} with the new rows ({trained}; macro-F1 "
        f"{result['macro_f1_without']:.3f} and {result['macro_f1_with']:.3f}); {changed(result)}"
    )
