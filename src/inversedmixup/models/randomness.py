"""Weights that begin at random, without a trace in the caller's random state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def own_randomness(seed: int | None = None) -> Iterator[None]:
    """Leave the caller's global random state as it is, whatever is drawn in this block; ``seed`` decides what that is.

    Only that of the CPU: torch and peft begin modules there and move them afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # not the device's
        yield
