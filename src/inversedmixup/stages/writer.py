"""Texts at mixed embeddings: decoded, re-read, the best one taken, and scored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.errors import InputError
from inversedmixup.mixing import INTERPOLATIONS, interpolate, realised_ratio
from inversedmixup.models.correction import CORRECTIONS, Merit, nearness
from inversedmixup.models.pair import Pair
from inversedmixup.models.sampling import WORD_WEIGHT, Sampling
from inversedmixup.options import NOTHING, Options, at_least, option

LAM_WEIGHT = 0.5  # of |λ̂ − λ| beside cycle similarity when the best text is chosen (docs/log.md)
DIGITS = 4  # scores are rounded: beyond that they are floating-point noise


MAX_TOKENS = 512  # that a text may be allowed


@dataclasses.dataclass(frozen=True)
class WriteConfig(Options):
    """How texts are written at embeddings."""

    GROUP: ClassVar[str] = "writing"

    candidates: int = option(4, "texts written per pair; the one that keeps best to the mix is taken")
    correct: int | None = option(
        None,
        f"correction steps on the best candidate (default: {CORRECTIONS} where a word head weighs the words, else 0)",
    )
    temperature: float = option(0.7, "sampling temperature; 0 is greedy")
    top_p: float = option(0.95, "share of probability that sampling keeps")
    word_weight: float = option(
        WORD_WEIGHT, "how much the pair's word head counts beside the LLM, if it has one; 0 is the LLM alone"
    )
    max_tokens: int = option(40, "longest text, in tokens")
    batch_size: int | None = option(
        None,
        "texts decoded at a time; changes memory and speed, not the texts; default: what the device bears",
        decides=NOTHING,
    )
    seed: int = option(0, "seed of everything random but the choice of examples")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "candidates", "max_tokens", "batch_size")
        at_least(self, 0, "correct", "temperature", "word_weight", "seed")
        if self.max_tokens > MAX_TOKENS:
            raise InputError(f"max_tokens {self.max_tokens}: at most {MAX_TOKENS}; pairs learn from single sentences")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p}: lies above 0 and at most at 1")

    def sampling(self) -> Sampling:
        """The LLM's share of these settings."""
        return Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens)


@dataclasses.dataclass(frozen=True)
class DecodeConfig(WriteConfig):
    """How texts are written at mixed embeddings."""

    interpolation: str = option("linear", "how embeddings are mixed", choices=INTERPOLATIONS)


@dataclasses.dataclass(frozen=True)
class Written:
    """One text per mixed embedding, the best of those that were written, and how well it keeps to it.

    Attributes:
        texts: n texts.
        lam_realised: λ̂ [n], where the re-read text projects on the segment between the parents.
        cycle_similarity: cosine [n] between the re-read text and the mixed embedding.
        fluency: mean token log-likelihood [n] under the LLM without soft tokens, in nats.
        reread: embeddings [n, d] of the texts.
        class_probs: the task model's class probabilities [n, classes]; ``None`` before stage 2.
    """

    texts: list[str]
    lam_realised: list[float]
    cycle_similarity: list[float]
    fluency: list[float]
    reread: Tensor
    class_probs: np.ndarray | None


def write_mixes(
    pair: Pair, first: Tensor, second: Tensor, lam: Tensor, streams: Sequence[np.random.Generator], config: DecodeConfig
) -> Written:
    """Mix parents' embeddings [n, d] by ratios [n], write a text at each mix and score it."""
    mixed = interpolate(first, second, lam, config.interpolation)
    near = nearness(mixed)

    def keeps_to_the_mix(reread: Tensor, rows: Tensor) -> Tensor:
        # mixes at 0.3 lie nearer to the second parent than to most texts between: the cosine alone would take that
        return near(reread, rows) - LAM_WEIGHT * (realised_ratio(reread, first[rows], second[rows]) - lam[rows]).abs()

    texts, reread = write_texts(pair, mixed, streams, config, keeps_to_the_mix)
    cycle = nn.functional.cosine_similarity(reread, mixed, dim=1)
    return Written(
        texts, _rounded(realised_ratio(reread, first, second)), _rounded(cycle),
        _rounded(pair.llm.log_likelihood(texts)), reread,
        None if pair.task_model.head is None else pair.task_model.predict_proba(reread),
    )  # fmt: skip


def _rounded(values: Any) -> list[float]:  # noqa: ANN401 (array or tensor)
    return [round(float(value), DIGITS) for value in values]


def write_texts(
    pair: Pair, wanted: Tensor, streams: Sequence[np.random.Generator], config: WriteConfig, merit: Merit | None = None
) -> tuple[list[str], Tensor]:
    """The best text at each embedding [n, d], and its re-read embedding [n, d].

    ``candidates`` texts are drawn per embedding from its own random stream and re-read by the task model. The best by
    ``merit`` (default: cosine to the embedding wanted) is taken, and corrected.
    """
    n, many = len(wanted), config.candidates if config.temperature > 0 else 1
    uniforms = np.concatenate([stream.random((many, config.max_tokens)) for stream in streams])
    texts = pair.invert(
        wanted, config.sampling(), uniforms, candidates=many, batch_size=config.batch_size,
        word_weight=config.word_weight,
    )  # fmt: skip
    reread = pair.task_model.encode(texts)
    merit = merit or nearness(wanted)
    merits = merit(reread, torch.arange(n).repeat_interleave(many))
    merits[[at for at, text in enumerate(texts) if not text]] = -math.inf
    best = merits.view(n, many).argmax(1) + torch.arange(n) * many
    chosen, found = [texts[at] for at in best.tolist()], reread[best]
    return pair.correct(
        wanted, chosen, found, steps=pair.corrections(config.correct, config.word_weight), max_tokens=config.max_tokens,
        batch_size=config.batch_size, word_weight=config.word_weight, merit=merit,
    )  # fmt: skip
