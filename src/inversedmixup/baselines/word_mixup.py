"""wordMixup (Guo et al. 2019, "Augmenting data with mixup for sentence classification: an empirical study").

The input embeddings of two texts are mixed place by place; the shorter text is padded with zeros. As in the paper,
training is on mixes alone. Where one text has a token the mix has one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from inversedmixup.baselines import Method
from inversedmixup.baselines.batches import draw_partners, mix_rows, read_embeddings, unite_masks, word_embeddings
from inversedmixup.models.task_model import TaskModel

ALPHA = 1.0  # of λ ~ Beta(α, α), one for each pair: the paper's, section 3


def mix_words(
    model: TaskModel, texts: Sequence[str], known: Tensor | None, targets: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Embeddings [b, d] of mixed texts and targets [b, classes]: a :class:`~.task_model.Mixer`."""
    partner = draw_partners(len(texts), rng)
    lam = torch.from_numpy(rng.beta(ALPHA, ALPHA, size=len(texts))).float()
    with torch.set_grad_enabled(known is None):
        features = model.features(texts)
        mask = features["attention_mask"]
        words = word_embeddings(model, features["input_ids"], "word-mixup") * mask.unsqueeze(-1)
        features["attention_mask"] = unite_masks(mask, partner, lam)
        return read_embeddings(model, features, mix_rows(words, partner, lam)), mix_rows(targets, partner, lam)


METHODS = (Method("word-mixup", "input word embeddings mixed (wordMixup, Guo et al. 2019)", mixer=lambda _: mix_words),)
