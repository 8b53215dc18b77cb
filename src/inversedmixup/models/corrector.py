"""Correction: a second look at a text whose embedding is not quite the one that was asked for. Beyond the paper.

After the idea of iterative inversion (Morris et al. 2023, "Text Embeddings Reveal (Almost) As Much As Text"): the text
is read back, and what is missing between what was wanted and what it became goes into the next one. The word head
tells that in words, without further training; a corrector, where a pair has one, in soft tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inversedmixup.models.adaptor import Adaptor, AdaptorConfig
from inversedmixup.models.sampling import Sampling
from inversedmixup.models.word_head import LIMIT

if TYPE_CHECKING:
    from inversedmixup.models.pair import Pair

RATE = 0.2  # share of what a text lacks that a correction adds to the odds of its words; chosen on validation texts
CORRECTIONS = 3  # as many decodes as four candidates, with the first; more gains less and less (docs/log.md)
ARRIVED = 0.9999  # cosine from which on nothing is left to correct


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


def rewrite(
    pair: Pair, wanted: Tensor, texts: Sequence[str], found: Tensor, *, steps: int, max_tokens: int,
    batch_size: int | None, word_weight: float,
) -> tuple[list[str], Tensor]:  # fmt: skip
    """:meth:`Pair.correct <inversedmixup.models.pair.Pair.correct>` for rows that fit into memory at once.

    With ℓ(h) what the word head adds to the odds of every token at h, text t + 1 is decoded with
    ℓ(wanted) · ``word_weight`` + :data:`RATE` · Σ_{s ≤ t} (ℓ(wanted) − ℓ(found_s)): what texts keep lacking is raised
    further and further, what they have too much of lowered. Each row for itself, so that it does not depend on others.
    """
    best, reread, last = list(texts), found.clone(), found.clone()
    device = pair.llm.device
    aim = pair.word_head.lift(wanted.to(device)) if pair.word_head else None
    lift = None if aim is None else word_weight * aim
    going = torch.ones(len(best), dtype=torch.bool)
    for _ in range(steps):
        going &= _cosines(reread, wanted) < ARRIVED
        rows = going.nonzero()[:, 0]
        if not len(rows):
            break
        if pair.word_head and lift is not None and aim is not None:
            lacking = aim[rows] - pair.word_head.lift(last[rows].to(device))
            lift[rows] = (lift[rows] + RATE * lacking).clamp(-LIMIT, LIMIT)
        new = _again(
            pair,
            wanted[rows],
            [best[row] for row in rows.tolist()],
            reread[rows],
            None if lift is None else lift[rows],
            max_tokens,
            batch_size,
        )
        last[rows] = pair.task_model.encode(new)
        nearer = _cosines(last[rows], wanted[rows]) > _cosines(reread[rows], wanted[rows])
        nearer &= torch.tensor([bool(text) for text in new])
        for row, text, better in zip(rows.tolist(), new, nearer.tolist(), strict=True):
            if better:
                best[row], reread[row] = text, last[row]
            elif lift is None:  # the same soft tokens would write the same text
                going[row] = False
    return best, reread


def _again(
    pair: Pair, wanted: Tensor, texts: Sequence[str], found: Tensor, lift: Tensor | None, max_tokens: int,
    batch_size: int | None,
) -> list[str]:  # fmt: skip
    """The next texts, greedily: from the corrector's soft tokens if the pair has one, else from the adaptor's."""
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
    if pair.corrector is None:
        return pair.llm.decode(pair.adaptor(wanted.to(pair.llm.device)), sampling, batch_size=batch_size, lift=lift)
    with pair.llm.correcting():
        soft = pair.correction(wanted, found, texts)
        return pair.llm.decode(soft, sampling, batch_size=batch_size, lift=lift)


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(first, second, dim=1)
