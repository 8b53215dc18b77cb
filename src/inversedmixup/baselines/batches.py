"""What the mixers of training batches share: partners and shares, mixing, masks, and the encoder's own parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.errors import InputError
from inversedmixup.models.task_model import TaskModel


def draw_partners(rows: int, rng: np.random.Generator) -> Tensor:
    """The row that each row [b] is mixed with: a permutation of the batch, as in mixup (Zhang et al. 2018)."""
    return torch.from_numpy(rng.permutation(rows))


def mix_rows(values: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """λ · row + (1 − λ) · its partner.

    Args:
        values: [b, …].
        partner: row numbers [b].
        lam: the share λ [b] of the row itself.
    """
    share = _beside(lam, values)
    return share * values + (1 - share) * values[partner]


def unite_masks(mask: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Where a mix has tokens: where the row or its partner has one, if it has any share in the mix.

    Args:
        mask: [b, …], larger where there are tokens: 1, true, or 0 of an additive mask.
        partner: row numbers [b].
        lam: the share λ [b] of the row itself.
    """
    share, other = _beside(lam, mask), mask[partner]
    united = torch.where(share < 1, torch.maximum(mask, other), mask)
    return torch.where(share > 0, united, other)


def _beside(lam: Tensor, values: Tensor) -> Tensor:
    return lam.to(values.device).view(-1, *[1] * (values.dim() - 1))


def transformer_of(model: TaskModel, method: str) -> nn.Module:
    """The transformer inside the task model's encoder.

    Raises:
        InputError: if there is none, as in encoders that average word vectors.
    """
    found: Any = model.transformer
    if found is None or not hasattr(found, "get_input_embeddings"):
        raise InputError(
            f"method {method}: encoder {model.name!r} has no transformer inside; leave the method away, or use "
            f"an encoder that has one"
        )
    return model.transformer


def word_embeddings(model: TaskModel, ids: Tensor, method: str) -> Tensor:
    """Input embeddings [b, t, e] of token numbers [b, t], before positions are added."""
    embeddings: Tensor = transformer_of(model, method).get_input_embeddings()(ids)  # type: ignore[operator]
    return embeddings


def read_embeddings(model: TaskModel, features: dict[str, Any], words: Tensor) -> Tensor:
    """Sentence embeddings [b, d] of input embeddings [b, t, e] in place of the features' token numbers."""
    rest = {key: value for key, value in features.items() if key != "input_ids"}
    return model.embedded({**rest, "inputs_embeds": words})
