"""Small helpers around the libraries' model loaders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message, for one-line reports."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


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
