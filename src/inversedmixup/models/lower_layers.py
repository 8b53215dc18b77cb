"""The lower layers of an LLM whose upper layers alone learn: each text goes through them once, not once a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Row = tuple[int, ...]
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
        seen: list[Tensor] = []

        def catch(hidden: Tensor, *_: object, **__: object) -> Tensor:
            seen.append(hidden)
            return hidden

        # texts of one length together: a row's numbers depend on its neighbours' padding in their last bits
        for length in sorted({len(row) for row in new}):
            alike = [row for row in new if len(row) == length]
            ids = torch.tensor(alike, device=self.lm.get_input_embeddings().weight.device)
            upper = self.layers[self.depth :]
            with _replaced(upper, [catch, *[_passed] * (len(upper) - 1)]):
                self.lm.base_model(input_ids=ids, use_cache=False)
            found |= zip(alike, seen.pop(), strict=True)
        for row in new:
            size = found[row].nelement() * found[row].element_size()
            if self._bytes + size <= KEPT_BYTES:
                self._known[row] = found[row].clone()
                self._bytes += size
        return found


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
