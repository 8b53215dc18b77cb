"""How the next token is drawn, and what anything that writes texts from soft tokens must offer."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

WORD_WEIGHT = 0.7  # of a pair's word head beside the LLM, chosen on validation texts (docs/log.md)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_p: smallest set of tokens with this much probability is kept.
        top_k: no more than this many tokens are kept; drawing needs no sort of the whole vocabulary.
        max_tokens: longest text, in tokens.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 64
    max_tokens: int = 48


GREEDY = Sampling(temperature=0.0)


class Decoder(Protocol):
    """What writes texts from soft tokens: the transformers LLM itself, or another engine with the same weights."""

    def decode(
        self, soft: Tensor, sampling: Sampling = GREEDY, uniforms: np.ndarray | None = None, *,
        candidates: int = 1, batch_size: int | None = None, lift: Tensor | None = None,
    ) -> list[str]:  # fmt: skip
        """Texts from soft tokens [n, k, D]: ``candidates`` in a row for the first, then for the second.

        Args:
            soft: soft tokens.
            sampling: how tokens are drawn.
            uniforms: [n · candidates, max_tokens] numbers in [0, 1): each text's own random stream. Not needed for
                greedy decoding.
            candidates: texts per row of soft tokens.
            batch_size: texts decoded at a time; default: what the device bears.
            lift: [n, V] nats that are added to the odds of each token until it is written.
        """
        ...


def pick(logits: Tensor, sampling: Sampling, uniforms: np.ndarray | None) -> Tensor:
    """The next token [n], on the CPU, from logits [n, V].

    Greedy, or by inverting the nucleus' distribution at ``uniforms`` [n].
    """
    if sampling.temperature <= 0 or uniforms is None:
        return logits.argmax(-1).cpu()
    # chosen where the logits are: only these few come to the processor
    top, tokens = (part.cpu() for part in logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1))
    top = top.double()
    probs = ((top - top[:, :1]) / sampling.temperature).softmax(-1)  # so that a small one does not overflow
    ahead = probs.cumsum(-1) - probs
    probs = probs.masked_fill(ahead >= sampling.top_p, 0.0)
    edges = probs.cumsum(-1)
    at = torch.from_numpy(np.ascontiguousarray(uniforms, dtype=np.float64))[:, None] * edges[:, -1:]
    chosen = (edges <= at).sum(-1).clamp(max=tokens.shape[-1] - 1)
    # a uniform that lands exactly on an edge of a removed token must not pick it
    last_kept = (probs > 0).sum(-1) - 1
    return tokens.gather(1, torch.minimum(chosen, last_kept)[:, None])[:, 0]
