"""How well texts come back from their embeddings: BLEU, token F1, exact match, cosine.

Token F1 and exact match compare lower-cased, whitespace-split words, BLEU is sacrebleu's corpus BLEU with its
defaults; the cosine is between the embedding of the reconstruction and the one it was written from.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LENGTHS = (8, 16, 24, 40)  # upper bounds, in words, of the buckets of a report
ALL_LENGTHS = ("1-8", "9-16", "17-24", "25-40", "41+")
# what stands beside scores
KEY = (
    "token_f1 (words in common) and exact (the same up to case and spacing): 0 to 1; bleu: 0 to 100; cosine: of the "
    "embeddings; fluency: mean log-likelihood of a token, in nats"
)


def token_f1(candidate: str, reference: str) -> float:
    """F1 of the two bags of words, in [0, 1]."""
    ours, theirs = Counter(candidate.lower().split()), Counter(reference.lower().split())
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0


def exact_match(candidate: str, reference: str) -> bool:
    """Whether the two texts are the same up to case and spacing."""
    return candidate.lower().split() == reference.lower().split()


def score(candidates: Sequence[str], references: Sequence[str], found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Mean scores of reconstructions.

    Args:
        candidates: the texts decoded from ``wanted``.
        references: the original texts.
        found: embeddings [n, d] of the candidates.
        wanted: embeddings [n, d] they were decoded from.
    """
    import sacrebleu

    n = len(references)
    pairs = list(zip(candidates, references, strict=True))
    return {
        "token_f1": sum(token_f1(*pair) for pair in pairs) / n,
        "bleu": sacrebleu.corpus_bleu(list(candidates), [list(references)]).score,
        "exact": sum(exact_match(*pair) for pair in pairs) / n,
        "cosine": nn.functional.cosine_similarity(found, wanted, dim=-1).mean().item(),
        "n": float(n),
    }


def report(
    candidates: Sequence[str], references: Sequence[str], found: Tensor, wanted: Tensor, fluency: np.ndarray,
    sources: Sequence[str | None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Mean scores of reconstructions: overall, by length of the original, and by its source where there are several.

    Args:
        candidates: the texts decoded from ``wanted``.
        references: the original texts.
        found: embeddings [n, d] of the candidates.
        wanted: embeddings [n, d] they were decoded from.
        fluency: mean token log-likelihoods [n] of the candidates, in nats.
        sources: where each original comes from.
    """

    def part(rows: np.ndarray) -> dict[str, Any]:
        at = torch.from_numpy(rows)
        scores = score([candidates[i] for i in rows], [references[i] for i in rows], found[at], wanted[at])
        return {**scores, "fluency": float(np.mean(fluency[rows]))}

    def parts(keys: Sequence[str | None]) -> dict[str, Any]:
        names: list[str | None] = [name for name in ALL_LENGTHS if name in keys]
        names = names or [name for name, _ in Counter(keys).most_common()]
        return {str(name): part(np.array([i for i, key in enumerate(keys) if key == name])) for name in names}

    out = {**part(np.arange(len(references))), "by_length": parts([length_bucket(text) for text in references])}
    if sources and len(set(sources)) > 1:
        out["by_source"] = parts(list(sources))
    return out


def length_bucket(text: str) -> str:
    """``9-16`` for a text of twelve words: the bucket that it falls into."""
    return ALL_LENGTHS[bisect.bisect_left(LENGTHS, len(text.split()))]
