"""A_φ: from one sentence embedding to k soft tokens in the LLM's input-embedding space (paper, §2 stage 1)."""

from __future__ import annotations

import dataclasses
import itertools

from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class AdaptorConfig:
    """Shape of an adaptor.

    Attributes:
        embedding_dim: d, size of the task model's embedding.
        llm_dim: D, size of the LLM's input embeddings.
        soft_tokens: k, how many soft tokens one embedding becomes.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        norm: length that every soft token is scaled to: the mean length of the LLM's own token embeddings.
    """

    embedding_dim: int
    llm_dim: int
    soft_tokens: int = 8
    hidden: int = 2048
    layers: int = 2
    norm: float = 1.0


class Adaptor(nn.Module):
    """An MLP with a norm-matched output.

    The paper says only that the adaptor is a light MLP. Scaling every soft token to the mean length of the LLM's
    token embeddings keeps it where the frozen LLM has learnt to read, whatever the length of h.
    """

    def __init__(self, config: AdaptorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.embedding_dim] + [config.hidden] * config.layers
        blocks: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            blocks += [nn.Linear(before, after), nn.GELU()]
        self.net = nn.Sequential(*blocks, nn.Linear(widths[-1], config.soft_tokens * config.llm_dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Soft tokens of shape [n, k, D] for embeddings of shape [n, d] of about unit length."""
        # unit-length embeddings have entries of about 1/sqrt(d): bring them to order one first
        raw = self.net(embeddings * self.config.embedding_dim**0.5)
        soft: Tensor = raw.view(-1, self.config.soft_tokens, self.config.llm_dim)
        matched: Tensor = soft * (self.config.norm / soft.norm(dim=-1, keepdim=True).clamp_min(1e-6))
        return matched
