"""senMixup (Guo et al. 2019, "Augmenting data with mixup for sentence classification: an empirical study").

The embeddings that the head sees are mixed, each with another of the batch. As in the paper, training is on mixes
alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from inversedmixup.baselines import Method
from inversedmixup.baselines.batches import draw_partners, mix_rows
from inversedmixup.models.task_model import TaskModel

ALPHA = 1.0  # of λ ~ Beta(α, α), one for each pair: the paper's, section 3


def mix_sentences(
    model: TaskModel, texts: Sequence[str], known: Tensor | None, targets: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mixed sentence embeddings [b, d] and targets [b, classes]: a :class:`~.task_model.Mixer`."""
    partner = draw_partners(len(texts), rng)
    lam = torch.from_numpy(rng.beta(ALPHA, ALPHA, size=len(texts))).float()
    embeddings = model(texts) if known is None else known
    return mix_rows(embeddings, partner, lam), mix_rows(targets, partner, lam)


METHODS = (
    Method("sentence-mixup", "sentence embeddings mixed (senMixup, Guo et al. 2019)", mixer=lambda _: mix_sentences),
)
