"""SSMix (Yoon et al. 2021, "SSMix: saliency-based span mixup for text classification").

The least salient span of each text is replaced by the most salient span, as long, of another one of the batch. A
token's saliency is the norm of the loss's gradient at its input embedding. As in the paper the batch itself is trained
on too, and mixing starts from a model that was trained without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inversedmixup.baselines import Method, Split
from inversedmixup.baselines.batches import draw_partners, mix_rows, read_embeddings, word_embeddings
from inversedmixup.models.task_model import TaskModel

SPAN = 0.1  # tokens replaced, as a share of the text's: the paper's λ0
PLAIN_SHARE = 3 / 13  # of the steps, without mixing: the paper's 3 epochs, and 10 with it


@dataclasses.dataclass
class SpanMixer:
    """A :class:`~inversedmixup.models.task_model.Mixer` that leaves its first ``plain_steps`` batches as they are.

    Where the encoder does not learn, a text's saliency is read once, when it is first mixed: only the head changes
    afterwards, and a batch costs a third.
    """

    plain_steps: int
    _read: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __call__(
        self, model: TaskModel, texts: Sequence[str], known: Tensor | None, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [2 b, d] of the texts and of their mixes, and targets [2 b, classes]."""
        if self.plain_steps > 0:
            self.plain_steps -= 1
            return (model(texts) if known is None else known), targets
        features, partner = model.features(texts), draw_partners(len(texts), rng)
        if known is None:
            saliency, originals = read_saliency(model, texts, targets, learning=True)
        else:
            saliency, originals = self._once(model, texts, targets), known
        ids, share = splice(features["input_ids"], own_tokens(model, features), saliency, partner)
        with torch.set_grad_enabled(known is None):
            mixed = model.embedded({**features, "input_ids": ids})
        return torch.cat([originals, mixed]), torch.cat([targets, mix_rows(targets, partner, 1 - share)])

    def _once(self, model: TaskModel, texts: Sequence[str], targets: Tensor) -> list[np.ndarray]:
        new = [at for at, text in enumerate(texts) if text not in self._read]
        if new:
            found, _ = read_saliency(model, [texts[at] for at in new], targets[new], learning=False)
            self._read |= zip((texts[at] for at in new), found, strict=True)
        return [self._read[text] for text in texts]


def read_saliency(
    model: TaskModel, texts: Sequence[str], targets: Tensor, *, learning: bool
) -> tuple[list[np.ndarray], Tensor]:
    """The saliency of each text's own tokens, and the texts' embeddings [b, d].

    Args:
        model: the task model.
        texts: b sentences.
        targets: class probabilities [b, classes]; how much a row counts in them scales all of its saliency alike.
        learning: whether the encoder learns from the embeddings; no gradient is left on any weight in either case.
    """
    features = model.features(texts)
    with torch.enable_grad():
        words = word_embeddings(model, features["input_ids"], "ssmix")
        if not learning:
            words = words.detach().requires_grad_()
        embeddings = read_embeddings(model, features, words)
        loss = -(targets * model.logits(embeddings).log_softmax(-1)).sum()
        (gradient,) = torch.autograd.grad(loss, words, retain_graph=learning)
    norms = gradient.norm(dim=-1).cpu().numpy()
    return [row[own] for row, own in zip(norms, own_tokens(model, features), strict=True)], embeddings


def own_tokens(model: TaskModel, features: dict[str, Any]) -> list[np.ndarray]:
    """Where each row has tokens of its text: not padding or marks of its ends. Unknown words are the text's own."""
    tokenizer: Any = model.encoder.tokenizer
    special = torch.tensor(sorted({*tokenizer.all_special_ids} - {tokenizer.unk_token_id}), device=model.device)
    own = features["attention_mask"].bool() & ~torch.isin(features["input_ids"], special)
    return [np.flatnonzero(row) for row in own.cpu().numpy()]


def splice(
    ids: Tensor, own: Sequence[np.ndarray], saliency: Sequence[np.ndarray], partner: Tensor
) -> tuple[Tensor, Tensor]:
    """Token numbers [b, t] of the mixes, and the share [b] of each that is its partner's.

    Args:
        ids: token numbers [b, t].
        own: where each row has tokens of its text.
        saliency: how salient these are.
        partner: row numbers [b].
    """
    mixed, share = ids.clone(), torch.zeros(len(ids))
    for row, other in enumerate(partner.tolist()):
        if not (len(own[row]) and len(own[other])):
            continue
        length = max(1, min(int(SPAN * len(own[row])), len(own[other])))
        start = int(_sums(saliency[row], length).argmin())
        taken = int(_sums(saliency[other], length).argmax())
        mixed[row, own[row][start : start + length]] = ids[other, own[other][taken : taken + length]]
        share[row] = length / len(own[row])
    return mixed, share


def _sums(values: np.ndarray, length: int) -> np.ndarray:
    """Of every window of so many values."""
    return np.convolve(values, np.ones(length), mode="valid")


def span_mixer(split: Split) -> SpanMixer:
    """With the paper's share of steps before mixing."""
    return SpanMixer(round(PLAIN_SHARE * split.config.downstream_steps))


METHODS = (Method("ssmix", "a salient span of another text put in (Yoon et al. 2021)", mixer=span_mixer),)
