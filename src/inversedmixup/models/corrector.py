"""Correction: a second look at a text whose embedding is not quite the one that was asked for.

After the idea of iterative inversion (Morris et al. 2023, "Text Embeddings Reveal (Almost) As Much As Text"): the text
is read back, and what it became, what was wanted and the difference are given to the LLM, which writes it anew.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from inversedmixup.models.adaptor import Adaptor, AdaptorConfig


@dataclasses.dataclass(frozen=True)
class CorrectorConfig:
    """Shape of a corrector.

    Attributes:
        embedding_dim: d, size of the task model's embedding.
        llm_dim: D, size of the LLM's input embeddings.
        soft_tokens: how many soft tokens tell what to mend.
        hidden: width of the hidden layer.
        norm: length of a soft token, as in the adaptor.
        text_tokens: length to which the text under correction is cut or filled up, the same for every row.
        lora_rank: rank of the LLM's own LoRA weights for correcting; 0 if it corrects as it writes.
    """

    embedding_dim: int
    llm_dim: int
    soft_tokens: int = 4
    hidden: int = 768
    norm: float = 1.0
    text_tokens: int = 32
    lora_rank: int = 0


class Corrector(nn.Module):
    """Soft tokens that say where a text should go, from the embedding wanted and the one found."""

    def __init__(self, config: CorrectorConfig) -> None:
        super().__init__()
        self.config = config
        self.net = Adaptor(
            AdaptorConfig(3 * config.embedding_dim, config.llm_dim, config.soft_tokens, config.hidden, 1, config.norm)
        )

    def forward(self, wanted: Tensor, found: Tensor) -> Tensor:
        """Soft tokens [n, k, D] for embeddings wanted and found, both [n, d]."""
        out: Tensor = self.net(torch.cat([wanted, found, wanted - found], dim=1))
        return out
