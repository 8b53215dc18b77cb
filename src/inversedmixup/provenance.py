"""What it takes to make a run again: the exact command, the versions, the processor."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inversedmixup import __version__
from inversedmixup.judges.api import endpoint
from inversedmixup.models.sources import file_sha256

PACKAGES = ("torch", "transformers", "sentence-transformers", "peft", "numpy")


def command_line(command: str, inputs: Sequence[str], output: str, config: Any) -> str:  # noqa: ANN401 (any options)
    """The shell command with these settings: those that differ from their defaults, as flags; without secrets."""
    words = ["inversedmixup", command, *inputs, "-o", output]
    if getattr(config, "api_url", None):
        config = dataclasses.replace(config, api_url=endpoint(config))
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), field.name.replace("_", "-")
        if value == field.default or value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag}={value}")  # with a sign of equality, so that a negative number is no flag
    return shlex.join(words)


@cache
def commit() -> str | None:
    """The commit of the checkout that this package runs from; ``None`` if it was installed, or without git."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def provenance(
    command: str,
    inputs: Sequence[str],
    output: str,
    config: Any,  # noqa: ANN401 (any options)
    *,
    train: Path,
) -> dict[str, Any]:
    """The record that a run folder keeps of how it was made.

    Args:
        command: of the command line.
        inputs: its files as they were given, the training file first.
        output: what ``-o`` names.
        config: any options dataclass.
        train: the training file on this machine.
    """
    import torch

    return {
        "command": command_line(command, inputs, output, dataclasses.replace(config, overwrite=False)),
        "train": train.name, "train_sha256": file_sha256(train),
        "versions": {
            "inversedmixup": __version__, "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "platform": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} thread(s)",
    }  # fmt: skip
