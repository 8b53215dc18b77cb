"""Correction: a second look at a text whose embedding is not quite the one that was asked for. Beyond the paper.

After the idea of iterative inversion (Morris et al. 2023, "Text Embeddings Reveal (Almost) As Much As Text"): the text
is read back, and what is missing between what was wanted and what it became goes into the next one. The word head
tells that in words, without further training; a corrector, where a pair has one, in soft tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import compress
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


Merit = Callable[[Tensor, Tensor], Tensor]  # how good texts are, [m], by their embeddings [m, d] and whose they are [m]


def nearness(wanted: Tensor) -> Merit:
    """The cosine of a text's embedding with the one wanted [n, d] for its row: cycle similarity."""
    return lambda reread, rows: nn.functional.cosine_similarity(reread, wanted[rows], dim=1)


def rewrite(
    pair: Pair, wanted: Tensor, texts: Sequence[str], found: Tensor, *, merit: Merit, steps: int, max_tokens: int,
    batch_size: int | None, word_weight: float,
) -> tuple[list[str], Tensor]:  # fmt: skip
    """:meth:`Pair.correct <inversedmixup.models.pair.Pair.correct>` for rows that fit into memory at once.

    With ℓ(h) what the word head adds to the odds of every token at h, text t + 1 is decoded with
    ℓ(wanted) · ``word_weight`` + :data:`RATE` · Σ_{s ≤ t} (ℓ(wanted) − ℓ(found_s)), cut at the same nats as ℓ: what
    texts keep lacking is raised further and further, what they have too much of lowered. What becomes of a row does
    not depend on the others.
    """
    best, reread, last = list(texts), found.clone(), found.clone()
    device, near = pair.llm.device, nearness(wanted)
    soft, aim, lift = pair.adaptor(wanted.to(device)), None, None
    if pair.word_head is not None:
        aim = pair.word_head.lift(wanted.to(device))
        lift = word_weight * aim
    most = LIMIT * max(1.0, word_weight)
    going = torch.arange(len(best))
    for _ in range(steps):
        going = going[near(reread[going], going) < ARRIVED]
        if not len(going):
            break
        if pair.word_head is not None and aim is not None and lift is not None:
            # of all rows, also those that are finished: products of another number of rows round otherwise
            lift = (lift + RATE * (aim - pair.word_head.lift(last.to(device)))).clamp_(-most, most)
        rows = going.tolist()
        again = soft[going]
        if pair.corrector is not None:
            again = pair.correction(again, wanted[going], reread[going], [best[row] for row in rows])
        with pair.llm.correcting() if pair.corrector is not None else nullcontext():
            new = pair.llm.decode(
                again, Sampling(temperature=0.0, max_tokens=max_tokens), batch_size=batch_size,
                lift=None if lift is None else lift[going],
            )  # fmt: skip
        last[going] = pair.task_model.encode(new)
        better = merit(last[going], going) > merit(reread[going], going)
        better |= torch.tensor([not best[row] for row in rows])  # anything is better than nothing
        better &= torch.tensor([bool(text) for text in new])
        for row, text in zip(going[better].tolist(), compress(new, better.tolist()), strict=True):
            best[row], reread[row] = text, last[row]
        if lift is None:  # what was in vain would only be written again
            going = going[better]
    return best, reread
