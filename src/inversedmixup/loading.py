"""Small helpers around the libraries' model loaders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from inversedmixup.errors import InputError

# said outright: left out, transformers asks at the terminal whether to run the code that a model brings along
SAFE = {"trust_remote_code": False}


def refuse_pickles(folder: str) -> None:
    """Refuse a model folder that has pickled weights where safetensors are missing.

    Raises:
        InputError: naming the file.
    """
    for path in sorted(Path(folder).rglob("pytorch_model*.bin")):
        if not any(path.parent.glob("model*.safetensors")):
            raise InputError(f"{path}: pickled weights are not read, as a pickle can run code; convert to safetensors")


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence the loaders' progress bars and notices, and put their settings back afterwards."""
    from transformers.utils import logging as hf

    level, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        yield
    finally:
        hf.set_verbosity(level)
        if bars:
            hf.enable_progress_bar()
