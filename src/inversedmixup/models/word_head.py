"""From one sentence embedding to the words of its sentence: which of the LLM's tokens occur in it. Beyond the paper.

Which tokens a sentence holds takes a small classifier and no LLM to learn, so it is learnt from far more text than
the adaptor can be taught with on the same machine. Decoding multiplies the two experts (Hinton 2002, products of
experts): the LLM, which writes sentences, and this head, which says what they are about.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.errors import InputError
from inversedmixup.models.randomness import own_randomness

LIMIT = 10.0  # nats by which a token's odds may rise or fall; a wrong word then costs no more than that
RAREST = 10  # a token in fewer texts than this is not learnt


@dataclasses.dataclass(frozen=True)
class WordHeadConfig:
    """Shape of a word head.

    Attributes:
        embedding_dim: d, size of the task model's embedding.
        vocabulary: V, tokens of the LLM.
        words: W, how many of them the head knows.
        hidden: width of the hidden layer.
        rank: width of the layer before the tokens; nearly all weights lie behind it.
    """

    embedding_dim: int
    vocabulary: int
    words: int
    hidden: int = 1024
    rank: int = 256


class WordHead(nn.Module):
    """Log-odds that each known token occurs in a sentence, from the sentence's embedding.

    Attributes:
        tokens: ids [W] of the known tokens.
        prior: log-odds [W] of each token in any text.
    """

    tokens: Tensor
    prior: Tensor

    def __init__(self, config: WordHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.net = nn.Sequential(
            nn.Linear(config.embedding_dim, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.rank)
        )
        self.direct = nn.Linear(config.embedding_dim, config.rank, bias=False)
        self.out = nn.Linear(config.rank, config.words)
        self.register_buffer("tokens", torch.zeros(config.words, dtype=torch.long))
        self.register_buffer("prior", torch.zeros(config.words))

    @classmethod
    def for_texts(cls, texts: Iterable[Iterable[int]], *, embedding_dim: int, vocabulary: int, seed: int) -> WordHead:
        """An untrained head that knows the tokens of these texts, and how common they are.

        They should be words: a raised question mark ends a text before it is said what is asked. The caller's global
        random state is untouched.

        Raises:
            InputError: if there is no token to learn.
        """
        total, texts_with = 0, Counter[int]()
        for ids in texts:
            total += 1
            texts_with.update(set(ids))
        tokens = sorted(token for token, count in texts_with.items() if count >= RAREST) or sorted(texts_with)
        if not tokens:
            raise InputError("no words to teach: the corpus has none, or the LLM's tokens are parts of characters")
        share = np.array([texts_with[token] for token in tokens], dtype=np.float64)
        with own_randomness(seed):
            head = cls(WordHeadConfig(embedding_dim, vocabulary, len(tokens)))
            nn.init.normal_(head.out.weight, std=0.02)
        head.tokens.copy_(torch.tensor(tokens))
        head.prior.copy_(torch.from_numpy(np.log((share + 0.5) / (total - share + 0.5))))
        with torch.no_grad():
            head.out.bias.copy_(head.prior)
        return head

    def forward(self, embeddings: Tensor) -> Tensor:
        """Log-odds [n, W] of each known token for embeddings [n, d] of about unit length."""
        scaled = embeddings * self.config.embedding_dim**0.5
        out: Tensor = self.out(self.net(scaled) + self.direct(scaled))
        return out

    def present(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Which known tokens each text, token ids, holds: zeros and ones [n, W]."""
        place = torch.full((self.config.vocabulary,), -1)
        place[self.tokens.cpu()] = torch.arange(self.config.words)
        columns = place[torch.tensor([token for ids in texts for token in ids], dtype=torch.long)]
        rows = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(ids) for ids in texts]))
        mark = torch.zeros(len(texts), self.config.words)
        mark[rows[columns >= 0], columns[columns >= 0]] = 1.0
        return mark.to(self.prior.device)

    def loss(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """Cross-entropy of presence in nats, summed over the known tokens: [n] for embeddings [n, d]."""
        found = self(embeddings)
        return nn.functional.binary_cross_entropy_with_logits(found, present, reduction="none").sum(1)

    def lift(self, embeddings: Tensor) -> Tensor:
        """By how many nats an embedding raises the odds of every token of the LLM: [n, V] for embeddings [n, d].

        At most :data:`LIMIT` up or down; 0 for tokens that the head does not know.
        """
        raised = (self(embeddings) - self.prior).clamp(-LIMIT, LIMIT)
        whole: Tensor = raised.new_zeros(len(embeddings), self.config.vocabulary)
        whole[:, self.tokens] = raised
        return whole
