"""TMix (Chen et al. 2020, "MixText: linguistically-informed interpolation of hidden space …", section 3.1).

The hidden states of two texts are mixed after one layer of the encoder, drawn for each batch; the layers above see the
mix alone. As in the paper, training is on mixes alone, and λ is the larger of λ and 1 − λ, one for each batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.baselines import Method, Split
from inversedmixup.baselines.batches import draw_partners, mix_rows, transformer_of, unite_masks
from inversedmixup.errors import InputError
from inversedmixup.models.task_model import TaskModel

DEPTHS = (7 / 12, 9 / 12, 12 / 12)  # the paper's layers 7, 9 and 12 of 12, as shares of the encoder's
FIXED_MASK = ("t5", "mt5", "umt5", "longt5")  # the first layer puts it into the position bias of all
ALPHA_FEW, ALPHA_MANY, FEW = 16.0, 0.4, 100  # of λ ~ Beta(α, α), below and from so many rows a class: section 4.3


@dataclasses.dataclass(frozen=True)
class HiddenMixer:
    """A :class:`~inversedmixup.models.task_model.Mixer` with λ ~ Beta(``alpha``, ``alpha``)."""

    alpha: float

    def __call__(
        self, model: TaskModel, texts: Sequence[str], known: Tensor | None, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [b, d] of texts mixed in a hidden layer and targets [b, classes]."""
        layers = layers_of(model)
        partner, share = draw_partners(len(texts), rng), rng.beta(self.alpha, self.alpha)
        depth = max(1, round(float(rng.choice(DEPTHS)) * len(layers)))
        lam = torch.full((len(texts),), max(share, 1 - share))
        with torch.set_grad_enabled(known is None):
            return mix_hidden(model, texts, layers, depth, partner, lam), mix_rows(targets, partner, lam)


def mix_hidden(
    model: TaskModel, texts: Sequence[str], layers: nn.ModuleList, depth: int, partner: Tensor, lam: Tensor
) -> Tensor:
    """Embeddings [b, d] of texts whose hidden states are mixed after ``depth`` layers.

    Args:
        model: the task model.
        texts: b sentences.
        layers: those of the encoder.
        depth: 1 … layers.
        partner: row numbers [b].
        lam: the share λ [b] of the row itself.
    """
    features = model.features(texts)
    mask = features["attention_mask"]
    transformer, *after = model.encoder.children()
    with _mixing(layers, depth, mask, partner, lam):
        features = transformer(features)
    features["attention_mask"] = unite_masks(mask, partner, lam)  # what pooling averages over
    for module in after:
        features = module(features)
    embeddings: Tensor = features["sentence_embedding"]
    return embeddings[..., : model.dim]  # truncated, if the encoder was saved so


@contextlib.contextmanager
def _mixing(layers: nn.ModuleList, depth: int, mask: Tensor, partner: Tensor, lam: Tensor) -> Iterator[None]:
    """One pass does it: rows read themselves up to a layer, mixes go on with the tokens of both."""

    def mix_output(_: nn.Module, __: Any, output: Any) -> Any:  # noqa: ANN401 (a layer's output has many types)
        hidden = output[0] if isinstance(output, tuple) else output
        mixed = mix_rows(hidden * mask.unsqueeze(-1), partner, lam)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    def widen_mask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        if torch.is_tensor(kwargs.get("attention_mask")):
            kwargs = {**kwargs, "attention_mask": unite_masks(kwargs["attention_mask"], partner, lam)}
        elif len(args) > 1 and torch.is_tensor(args[1]):
            args = (args[0], unite_masks(args[1], partner, lam), *args[2:])
        return args, kwargs

    hooks = [layers[depth - 1].register_forward_hook(mix_output)]
    hooks += [layer.register_forward_pre_hook(widen_mask, with_kwargs=True) for layer in layers[depth:]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def layers_of(model: TaskModel) -> nn.ModuleList:
    """The layers of the encoder's transformer: BERT, RoBERTa, MPNet, DistilBERT and their like.

    Raises:
        InputError: if they cannot be told, or do not take their mask layer by layer.
    """
    transformer = transformer_of(model, "tmix")
    kind = str(getattr(transformer.config, "model_type", ""))
    if kind in FIXED_MASK:
        raise InputError(
            f"method tmix: encoder {model.name!r} is of type {kind}, whose layers share one mask that cannot grow "
            f"half-way; leave the method away"
        )
    count = getattr(transformer.config, "num_hidden_layers", None)
    for module in transformer.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError(f"method tmix: the layers of encoder {model.name!r} cannot be told; leave the method away")


def hidden_mixer(split: Split) -> HiddenMixer:
    """With the paper's α for so many rows a class."""
    smallest = min(Counter(example.label for example in split.examples).values())
    return HiddenMixer(ALPHA_FEW if smallest < FEW else ALPHA_MANY)


METHODS = (Method("tmix", "hidden states of the encoder mixed (Chen et al. 2020)", mixer=hidden_mixer),)
