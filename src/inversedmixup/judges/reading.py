"""What an LLM that has read a prompt and a text would say next: the two ways in which LLMs read."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from inversedmixup.models.llm import SoftTokenLLM
from inversedmixup.models.lower_layers import LowerLayers

After = Callable[[Sequence[int], Sequence[int]], Tensor]
SHARED = 48  # tokens of a beginning from which on it pays to learn from it once for all rows, not once a row


class Reader(Protocol):
    """An LLM with a fixed beginning of its prompt."""

    def read(self, bodies: Sequence[Sequence[int]]) -> After:
        """Read n token-id lists that come after the beginning, one a row.

        Returns:
            What gives the logits [rows, vocabulary] of the next token of some rows, given by their numbers, once an
            answer has begun with some tokens.
        """
        ...

    def answers(self, bodies: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits [tokens, vocabulary] of each row at the tokens of its answer, with gradients."""
        ...


def make_reader(llm: SoftTokenLLM, beginning: Sequence[int], lower: LowerLayers | None = None) -> Reader:
    """How this LLM reads a prompt with this beginning; ``lower`` are layers of it that do not learn."""
    if llm.encoder_decoder:
        return EncoderDecoderReader(llm, beginning)
    return (CausalReader if llm.keeps_all else WholeReader)(llm, beginning, lower)


class CausalReader:
    """A decoder-only LLM: the beginning is read once, and its keys and values are kept."""

    def __init__(self, llm: SoftTokenLLM, beginning: Sequence[int], lower: LowerLayers | None = None) -> None:
        self.llm, self.beginning, self.lower = llm, list(beginning), lower
        self._kept: Any = None

    def _prefill(self) -> Any:  # noqa: ANN401 (a transformers Cache)
        if self._kept is None:
            self._kept = self._begun()
        return copy.deepcopy(self._kept)

    def _begun(self) -> Any:  # noqa: ANN401
        ids = torch.tensor([self.beginning], device=self.llm.device)
        return self.llm.lm(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def _behind(self, rows: Sequence[Sequence[int]], cache: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        """What comes after the beginning, whose cache becomes one of all rows.

        Some families count padding between beginning and text (the windows of GPT-Neo, the distances of MPT), so it
        stands before the beginning, and shorter rows read anew as much of the beginning's end.

        Returns:
            Ids [n, longest], the mask of the beginning and them, and the places of the ids.
        """
        past = len(self.beginning)
        ids, mask = _padded_before([(*self.beginning, *row) for row in rows], self.llm)
        places = (mask.cumsum(1) - 1).clamp_min(0)
        for layer in cache.layers:
            layer.keys, layer.values = (
                states[0][:, places[:, :past]].transpose(0, 1) for states in (layer.keys, layer.values)
            )
        return ids[:, past:], mask, places[:, past:]

    def read(self, bodies: Sequence[Sequence[int]]) -> After:
        """See :class:`Reader`."""
        cache = self._prefill()
        ids, mask, places = self._behind(bodies, cache)

        def forward(ids: Tensor, mask: Tensor, places: Tensor, cache: Any) -> Tensor:  # noqa: ANN401
            logits: Tensor = self.llm.lm(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]  # fmt: skip
            return logits

        opening = forward(ids, mask, places, cache)

        def after(begun: Sequence[int], rows: Sequence[int]) -> Tensor:
            chosen = torch.tensor(rows, device=ids.device)
            if not begun:
                return opening[chosen]
            whole = len(rows) == len(ids)
            fed = torch.tensor(begun, device=ids.device).expand(len(rows), -1)
            further = places[chosen, -1:] + 1 + torch.arange(len(begun), device=ids.device)
            logits = forward(
                fed, torch.cat([mask[chosen], torch.ones_like(fed)], dim=1), further,
                cache if whole else _rows_of(cache, chosen),
            )  # fmt: skip
            if whole:
                cache.crop(-len(begun))  # as before, for the next question
            return logits

        return after

    def answers(self, bodies: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Tensor]:
        """See :class:`Reader`."""
        logits = self._whole(bodies, answers) if len(self.beginning) < SHARED else self._shared(bodies, answers)
        # the logits of an answer's first token are as far from the end as the answer is long
        return [logits[row, logits.shape[1] - len(answer) :] for row, answer in enumerate(answers)]

    def _whole(self, bodies: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Tensor:
        """Logits [n, longest answer, vocabulary]; each row reads the beginning."""
        rows = [(*self.beginning, *body, *answer[:-1]) for body, answer in zip(bodies, answers, strict=True)]
        ids, mask = _padded_before(rows, self.llm)
        with self.lower.remembered(rows, mask) if self.lower else contextlib.nullcontext():
            logits: Tensor = self.llm.lm(
                input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=False,
                logits_to_keep=max(map(len, answers)),
            ).logits  # fmt: skip
        return logits

    def _shared(self, bodies: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Tensor:
        """The same; the beginning is read once for all rows, and gradients go back through it."""
        cache = self._begun()
        rows = [(*body, *said[:-1]) for body, said in zip(bodies, answers, strict=True)]
        ids, mask, places = self._behind(rows, cache)
        logits: Tensor = self.llm.lm(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True,
            logits_to_keep=max(map(len, answers)),
        ).logits  # fmt: skip
        return logits


class WholeReader(CausalReader):
    """One with layers that keep a sliding window, or states, and not the whole beginning: all is read anew."""

    _shared = CausalReader._whole

    def read(self, bodies: Sequence[Sequence[int]]) -> After:
        """See :class:`Reader`."""

        def after(begun: Sequence[int], rows: Sequence[int]) -> Tensor:
            # an answer's last token is asked for, not read: any will do
            return self._whole([bodies[row] for row in rows], [(*begun, self.llm.eos)] * len(rows))[:, -1]

        return after


class EncoderDecoderReader:
    """An encoder-decoder: the encoder reads everything anew for every text, the decoder answers."""

    def __init__(self, llm: SoftTokenLLM, beginning: Sequence[int]) -> None:
        self.llm, self.beginning = llm, list(beginning)

    def _encoder_input(self, bodies: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids [n, longest] and mask, each text between the special tokens that the encoder knows texts by."""
        before, after = self.llm.empty[:-1], self.llm.empty[-1:]
        return self.llm.pad([[*before, *self.beginning, *body, *after] for body in bodies])

    def read(self, bodies: Sequence[Sequence[int]]) -> After:
        """See :class:`Reader`."""
        from transformers.modeling_outputs import BaseModelOutput

        ids, mask = self._encoder_input(bodies)
        memory = self.llm.lm.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state

        def after(begun: Sequence[int], rows: Sequence[int]) -> Tensor:
            chosen = torch.tensor(rows, device=ids.device)
            said = torch.tensor([[self.llm.start, *begun]], device=ids.device).expand(len(rows), -1)
            logits: Tensor = self.llm.lm(
                encoder_outputs=BaseModelOutput(last_hidden_state=memory[chosen]), attention_mask=mask[chosen],
                decoder_input_ids=said, use_cache=False,
            ).logits[:, -1]  # fmt: skip
            return logits

        return after

    def answers(self, bodies: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Tensor]:
        """See :class:`Reader`."""
        ids, mask = self._encoder_input(bodies)
        said, _ = self.llm.pad([[self.llm.start, *answer[:-1]] for answer in answers])
        logits = self.llm.lm(input_ids=ids, attention_mask=mask, decoder_input_ids=said, use_cache=False).logits
        return [logits[row, : len(answer)] for row, answer in enumerate(answers)]


def _rows_of(cache: Any, rows: Tensor) -> Any:  # noqa: ANN401 (a transformers Cache)
    """Some rows of a cache; the cache stays as it is."""
    some = copy.copy(cache)
    some.layers = [copy.copy(layer) for layer in cache.layers]
    some.batch_select_indices(rows)
    return some


def _padded_before(rows: Sequence[Sequence[int]], llm: SoftTokenLLM) -> tuple[Tensor, Tensor]:
    """Ids [n, longest], padded at the beginning, and the mask of what is real."""
    longest = max(map(len, rows))
    ids = [[llm.eos] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=llm.device), torch.tensor(mask, device=llm.device)
