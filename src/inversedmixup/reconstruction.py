"""How well texts come back from their embeddings: BLEU, token F1, exact match, cosine.

Token F1 and exact match compare lower-cased, whitespace-split words, BLEU is sacrebleu's corpus BLEU with its
defaults; the cosine is between the embedding of the reconstruction and the one it was written from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn


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
