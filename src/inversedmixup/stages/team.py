"""Several processes, one run."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor


class Team:
    """The processes that share a run, started by ``accelerate launch`` or ``torchrun``; one if there are no others.

    Each takes its share of every batch and adds up the gradients, so the weights are those of a single process but
    for rounding.

    Attributes:
        rank: which of them this is.
        size: how many there are.
        device: torch device of this one.
    """

    def __init__(self, device: str) -> None:
        self.rank, self.size, self.device = 0, 1, device
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            state = PartialState(cpu=device == "cpu")
            self.rank, self.size, self.device = state.process_index, state.num_processes, str(state.device)

    @property
    def leads(self) -> bool:
        """Whether this process reports, validates and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def add_up(self, weights: Sequence[Tensor], numbers: list[float]) -> list[float]:
        """Sum the gradients of ``weights``, in place, and some numbers over the processes."""
        if self.size == 1:
            return numbers
        from accelerate.utils import reduce

        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        extra = torch.tensor(numbers, device=grads[0].device)
        summed = reduce(torch.cat([*(grad.flatten() for grad in grads), extra]), "sum")
        *parts, rest = summed.split([*(grad.numel() for grad in grads), len(numbers)])
        for weight, part in zip(weights, parts, strict=True):
            weight.grad = part.view_as(weight)
        return list(rest.tolist())
