"""The lower layers of an LLM: what they make of a text is kept where only the upper ones learn, or is all one wants."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from inversedmixup.models.llm import SoftTokenLLM

Row = tuple[int, ...]
READ_ROWS = 16  # texts in one pass: padding costs more than small batches do
READ_TOKENS = 128  # of a text whose states, or likelihood, are asked for
KEPT_BYTES = 2**28  # of hidden states; what does not fit is computed anew


class LowerLayers:
    """What comes out of the first layers of a decoder-only LLM, kept by text.

    Use :meth:`of`, which makes sure that the LLM can be taken apart like this.

    Args:
        lm: the LLM.
        depth: how many of its layers do not learn.
    """

    def __init__(self, lm: Any, depth: int) -> None:  # noqa: ANN401 (a PreTrainedModel)
        self.lm, self.depth = lm, depth
        (self.layers,) = deepest_stacks(lm)
        self._known: dict[Row, Tensor] = {}
        self._bytes = 0

    @classmethod
    def of(cls, lm: Any, depth: int) -> LowerLayers | None:  # noqa: ANN401
        """Those of an LLM; ``None`` if it cannot be taken apart there."""
        stacks = deepest_stacks(lm)
        if len(stacks) != 1 or not 0 < depth < len(stacks[0]):
            return None
        lower, device = cls(lm, depth), lm.get_input_embeddings().weight.device
        ids, mask = (torch.tensor([row], device=device) for row in ([0, 1, 2], [0, 1, 1]))
        call = {"input_ids": ids, "attention_mask": mask, "position_ids": mask.cumsum(1) - mask, "use_cache": False}
        try:
            with torch.no_grad(), lower.remembered([(1, 2)], mask):
                apart = lm(**call).logits[:, 1:]
        except Exception:  # of any kind that a family of LLMs can think of; this saves time and does nothing else
            return None
        with torch.no_grad():
            whole = lm(**call).logits[:, 1:]
        lower.forget()
        return lower if torch.allclose(whole, apart, rtol=1e-2, atol=1e-2) else None

    @contextlib.contextmanager
    def remembered(self, rows: Sequence[Row], mask: Tensor) -> Iterator[None]:
        """Within it, a call of the LLM with these token ids computes its upper layers only.

        Args:
            rows: token ids of each text.
            mask: the call's attention mask [n, longest]; padding comes first.
        """
        known = self._read(list(dict.fromkeys(rows)))
        width = mask.shape[1]
        hidden = torch.stack([nn.functional.pad(known[row], (0, 0, width - len(row), 0)) for row in rows])
        instead: list[Callable[..., Any]] = [lambda *_, **__: hidden, *[_passed] * (self.depth - 1)]
        with _replaced(self.layers[: self.depth], instead):
            yield

    def forget(self) -> None:
        """Let go of what is kept."""
        self._known, self._bytes = {}, 0

    @torch.no_grad()
    def _read(self, rows: Sequence[Row]) -> dict[Row, Tensor]:
        """What the lower layers make of each text, [tokens, D]."""
        new = [row for row in rows if row not in self._known]
        found = {row: self._known[row] for row in rows if row in self._known}
        if not new:
            return found
        # texts of one length together: a row's numbers depend on its neighbours' padding in their last bits
        for length in sorted({len(row) for row in new}):
            alike = [row for row in new if len(row) == length]
            ids = torch.tensor(alike, device=self.lm.get_input_embeddings().weight.device)
            found |= zip(alike, _before(self.layers[self.depth], self.lm, {"input_ids": ids}), strict=True)
        for row in new:
            size = found[row].nelement() * found[row].element_size()
            if self._bytes + size <= KEPT_BYTES:
                self._known[row] = found[row].clone()
                self._bytes += size
        return found


@torch.no_grad()
def mean_states(llm: SoftTokenLLM, texts: Sequence[str], share: float) -> Tensor:
    """Hidden states after this share of the LLM's layers, without LoRA, as a mean over each text's tokens, [n, D].

    The layers above are not computed. Of an encoder-decoder it is the encoder's last states. The first token is left
    out: of many LLMs its states are large and the same for any text (Xiao et al. 2023, "attention sinks").
    """
    rows = [llm.ids(text)[:READ_TOKENS] or [llm.eos] for text in texts]
    found: dict[int, Tensor] = {}
    order = np.argsort([len(ids) for ids in rows], kind="stable").tolist()
    with llm.plain():
        for at in range(0, len(order), READ_ROWS):
            batch = order[at : at + READ_ROWS]
            ids, mask = llm.pad([rows[row] for row in batch])
            hidden = _states(llm, share, {"input_ids": ids, "attention_mask": mask.long()})
            mask[:, 0] &= mask.sum(1) == 1
            weight = mask.to(hidden.dtype)[:, :, None]
            found |= zip(batch, ((hidden * weight).sum(1) / weight.sum(1)).float().cpu(), strict=True)
    return torch.stack([found[row] for row in range(len(rows))]) if rows else torch.empty(0, llm.dim)


def _states(llm: SoftTokenLLM, share: float, call: dict[str, Tensor]) -> Tensor:
    """Hidden states [n, t, D] of one padded batch."""
    if llm.encoder_decoder:
        last: Tensor = llm.lm.get_encoder()(**call).last_hidden_state
        return last
    stacks = deepest_stacks(llm.lm)
    if len(stacks) == 1:
        depth = max(1, min(len(stacks[0]) - 1, round(share * len(stacks[0]))))
        return _before(stacks[0][depth], llm.lm, call)
    every = llm.lm.base_model(**call, use_cache=False, output_hidden_states=True).hidden_states
    middle: Tensor = every[max(1, round(share * (len(every) - 1)))]
    return middle


class _EnoughError(Exception):
    """What a layer was to read is seen."""


def _before(layer: nn.Module, lm: Any, call: dict[str, Tensor]) -> Tensor:  # noqa: ANN401
    """What a layer of an LLM would read in a call; nothing from there on is computed."""
    seen: list[Tensor] = []

    def stop(*given: Tensor, **named: Any) -> None:
        seen.append(given[0] if given else named["hidden_states"])
        raise _EnoughError

    with _replaced([layer], [stop]), contextlib.suppress(_EnoughError):
        lm.base_model(**call, use_cache=False)
    return seen.pop()


def deepest_stacks(lm: nn.Module) -> list[list[nn.Module]]:
    """The repeated layers of an LLM: one list, or two where an encoder is as deep as the decoder."""
    stacks = [list(module) for module in lm.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    return [stack for stack in stacks if len(stack) == max(map(len, stacks))]


def _passed(hidden: Tensor, *_: object, **__: object) -> Tensor:
    return hidden


@contextlib.contextmanager
def _replaced(layers: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Layers with other ``forward`` methods meanwhile; whatever else is asked of them stays."""
    own = [vars(layer).get("forward") for layer in layers]  # other libraries hang theirs there, too
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = forward
    try:
        yield
    finally:
        for layer, before in zip(layers, own, strict=True):
            if before is None:
                del layer.forward
            else:
                layer.forward = before
