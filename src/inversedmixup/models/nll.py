"""Negative log-likelihood from hidden states, without a full-vocabulary copy that outlives its chunk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 2**24  # fp32 logits alive at a time: 64 MB


class _ChunkedNLL(torch.autograd.Function):
    """NLL [m] of targets [m] under softmax(hidden · weightᵀ + bias).

    The gradient of the hidden states is made in the forward pass, chunk by chunk, while the chunk's probabilities are
    at hand: p · W − W[target]. The projection itself gets no gradient, so it must be frozen.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:  # noqa: ANN401
        wanted = ctx.needs_input_grad[0]
        nll = torch.empty(len(hidden), device=hidden.device)
        grad = torch.empty_like(hidden) if wanted else None
        size = max(1, CHUNK_LOGITS // len(weight))
        for at in range(0, len(hidden), size):
            part = slice(at, at + size)
            logits = torch.nn.functional.linear(hidden[part], weight, bias).float()
            top = logits.amax(1, keepdim=True)
            picked = logits.gather(1, targets[part, None]) - top
            mass = logits.sub_(top).exp_()
            total = mass.sum(1, keepdim=True)
            nll[part] = (total.log() - picked)[:, 0]
            if grad is not None:
                # both terms in one product: rounded to bfloat16 each, they would cancel where p(target) is near 1
                off = mass.div_(total).scatter_add_(1, targets[part, None], torch.full_like(picked, -1.0))
                grad[part] = off.to(weight.dtype) @ weight
        ctx.save_for_backward(*([grad] if grad is not None else []))
        return nll

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (grad,) = ctx.saved_tensors
        return grad * grad_nll[:, None].to(grad.dtype), None, None, None


def chunked_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats, fp32 [m], of target ids [m] from hidden states [m, D].

    Args:
        hidden: hidden states of the positions that predict the targets; gradients flow into them.
        weight: output embeddings [V, D], frozen.
        bias: their bias [V], frozen, if there is one.
        targets: token ids [m].
    """
    out: Tensor = _ChunkedNLL.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    return out
