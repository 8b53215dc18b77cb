"""Clocks, and the bound: how long the matrix products of a pass take on this machine by themselves."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


def side_by_side(ways: dict[str, Callable[[], Any]], repeats: int = 3) -> dict[str, float]:
    """The fastest run of each way, in rounds, so that a slow minute of the machine falls on all of them."""
    for work in ways.values():
        work()
    rounds = [{name: _once(work) for name, work in ways.items()} for _ in range(repeats)]
    return {name: min(one[name] for one in rounds) for name in ways}


def _once(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def linears(model: nn.Module, head: nn.Module) -> list[nn.Linear]:
    """The linear layers of a model without its output projection."""
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]


def products(layers: Sequence[nn.Linear], rows: int, *, backward: bool) -> Callable[[], None]:
    """The matrix products of these layers on ``rows`` rows, with those of the inputs' gradients if ``backward``."""
    weights = [layer.weight.detach() for layer in layers]
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1], dtype=w.dtype, device=w.device) for w in weights}
    outputs = {w.shape[0]: torch.randn(rows, w.shape[0], dtype=w.dtype, device=w.device) for w in weights}

    def work() -> None:
        with torch.no_grad():
            for weight in weights:
                nn.functional.linear(inputs[weight.shape[1]], weight)
                if backward:
                    outputs[weight.shape[0]] @ weight

    return work


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    capable: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "processor": capable.get("cpu_name") or platform.processor(), "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": [name for name in ("amx_bf16", "avx512_bf16") if capable.get(name)],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip
