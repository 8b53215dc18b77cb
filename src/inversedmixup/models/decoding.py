"""Decoding from soft tokens with a transformers model: the loop and its key/value cache.

Rows that have finished leave the batch, the candidates of a row share one prefill, and what a row becomes depends on
its own random numbers alone, never on the rows beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from inversedmixup.errors import out_of_memory
from inversedmixup.models.sampling import Sampling, pick

if TYPE_CHECKING:
    from inversedmixup.models.llm import SoftTokenLLM

# A row's hidden states must not depend on how many rows share its batch, else a near-tie could turn into another
# token. BLAS kernels are row-invariant for row counts that fill their register tiles (measured for MKL/AVX2:
# multiples of 4 are, 1, 2, 3, 5 and 7 are not, and 8 rows are faster than 4), so decoding always runs on a multiple
# of this many rows.
ROW_TILE = 8 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 16
CPU_ROWS = 256  # texts decoded at a time on a CPU, unless told: more gains nothing there
CUDA_ROWS = 4096


def decode(
    llm: SoftTokenLLM, soft: Tensor, sampling: Sampling, uniforms: np.ndarray | None, candidates: int,
    batch_size: int | None, lift: Tensor | None,
) -> list[str]:  # fmt: skip
    """:meth:`Decoder.decode` with a transformers model. Halves the batch when memory runs out, and goes on."""
    if sampling.temperature > 0 and uniforms is None:
        raise ValueError("sampling needs one row of uniforms per text")
    texts: list[str] = []
    size = max(1, (batch_size or _default_rows(soft.device)) // candidates)
    at = 0
    while at < len(soft):
        drawn = None if uniforms is None else uniforms[at * candidates : (at + size) * candidates]
        try:
            ids = _decode_batch(
                llm, soft[at : at + size], sampling, drawn, candidates, None if lift is None else lift[at : at + size]
            )
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not out_of_memory(error):
                raise
            size = max(1, min(size, len(soft) - at) // 2)
            continue
        texts += [llm.text(row) for row in ids.tolist()]
        at += size
    return texts


def _default_rows(device: torch.device) -> int:
    return CUDA_ROWS if device.type == "cuda" else CPU_ROWS


@torch.no_grad()
def _decode_batch(
    llm: SoftTokenLLM, soft: Tensor, sampling: Sampling, uniforms: np.ndarray | None, candidates: int,
    lift: Tensor | None,
) -> np.ndarray:  # fmt: skip
    """Token ids [n · candidates, max_tokens], filled up with end-of-text."""
    rows = torch.arange(len(soft)).repeat_interleave(candidates)
    written = np.full((len(rows), sampling.max_tokens), llm.eos)
    model = (_EncoderDecoder if llm.encoder_decoder else _Causal)(llm, _fill_tile(soft), sampling.max_tokens)
    if candidates > 1:
        model.select(_fill_tile(rows))
        lift = None if lift is None else lift[rows]
    # which text each leading row of the cache is writing; numpy's, as a tensor of one index would drop a dimension
    live = np.arange(len(rows))
    going, ends = torch.ones(len(rows), dtype=torch.bool), torch.tensor(sorted(llm.ends))
    for step in range(sampling.max_tokens):
        scores = model.logits[: len(live)].float()
        if lift is not None:
            scores = _raise(scores, lift, written[live, :step])
        drawn = pick(scores, sampling, None if uniforms is None else uniforms[live, step])
        written[live[going.numpy()], step] = drawn[going]
        going &= ~torch.isin(drawn, ends)
        if not going.any() or step + 1 == sampling.max_tokens:
            break
        tile = _fill_tile(going.nonzero()[:, 0])
        if len(tile) < len(model.logits):  # finished rows leave in whole tiles, so no step is spent on them
            model.select(tile)
            lift = None if lift is None else lift[going]
            live, drawn, going = live[going.numpy()], drawn[going], going[going]
        tokens = torch.full((len(model.logits), 1), llm.eos)
        tokens[: len(drawn), 0] = drawn
        model.step(tokens.to(soft.device))
    return written


def _raise(scores: Tensor, lift: Tensor, sofar: np.ndarray) -> Tensor:
    """Scores [n, V] plus what a word head adds, but for the tokens [n, step] that are written already.

    A token is in the sentence or not, so what speaks for it is used up once it is there.
    """
    done = torch.from_numpy(sofar).to(scores.device)
    return (scores + lift).scatter(1, done, scores.gather(1, done))


class _Causal:
    """A decoder-only model in the middle of a batch: ``logits`` [rows, V] of the next token."""

    def __init__(self, llm: SoftTokenLLM, soft: Tensor, room: int) -> None:
        self.model = llm.lm
        opening, prefix = llm.prefix(soft)
        length = llm.prompt_length + soft.shape[1]
        self.cache = growing_cache(self.model.config, length + room)
        for layer, (keys, values) in enumerate(opening):
            self.cache.update(keys.expand(len(soft), -1, -1, -1), values.expand(len(soft), -1, -1, -1), layer)
        self.head = llm.projection()
        self._run(inputs_embeds=prefix)

    def _run(self, **inputs: Any) -> None:
        inputs |= {"past_key_values": self.cache, "use_cache": True}
        if self.head is None:
            self.logits = self.model(**inputs, logits_to_keep=1).logits[:, -1]
        else:
            self.logits = self.head(self.model.base_model(**inputs).last_hidden_state[:, -1])

    def step(self, tokens: Tensor) -> None:
        """Feed one token [rows, 1] each."""
        self._run(input_ids=tokens)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be kept several times."""
        rows = rows.to(self.logits.device)
        self.cache.reorder_cache(rows)  # not batch_select_indices: layers with a state of their own have none
        self.logits = self.logits[rows]


class _EncoderDecoder:
    """An encoder-decoder in the middle of a batch: the encoder reads the soft tokens, the decoder writes."""

    def __init__(self, llm: SoftTokenLLM, soft: Tensor, room: int) -> None:
        self.model = llm.lm
        _, prefix = llm.prefix(soft)
        self.memory = self.model.get_encoder()(inputs_embeds=prefix).last_hidden_state
        self.cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.step(torch.full((len(soft), 1), llm.start, device=soft.device))

    def step(self, tokens: Tensor) -> None:
        """Feed one token [rows, 1] each."""
        out = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.memory), decoder_input_ids=tokens,
            past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        self.cache, self.logits = out.past_key_values, out.logits[:, -1]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be kept several times."""
        rows = rows.to(self.logits.device)
        self.cache.batch_select_indices(rows)
        self.memory, self.logits = self.memory[rows], self.logits[rows]


# ---- the key/value cache -------------------------------------------------------------------------------------------


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # (transformers is untyped)
    """A layer's keys and values in memory laid out once: a step writes one slot where the parent copies them all.

    Attention sees the filled slots only, so nothing is computed on empty ones and no mask is needed, as it would be
    with transformers' ``StaticLayer``.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.filled = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [rows, heads, new, size]; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._store = [self._empty(states) for states in (key_states, value_states)]
        end = self.filled + key_states.shape[2]
        for store, states in zip(self._store, (key_states, value_states), strict=True):
            store[:, :, self.filled : end] = states
        self.filled = end
        self._look()
        return self.keys, self.values

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_empty(like.shape[0], like.shape[1], self.room, like.shape[3])

    def _look(self) -> None:
        self.keys, self.values = (store[:, :, : self.filled] for store in self._store)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order; a row may be kept several times."""
        for number, seen in enumerate((self.keys, self.values)):
            kept = seen.new_empty(len(beam_idx), seen.shape[1], self.room, seen.shape[3])
            kept[:, :, : self.filled] = seen[beam_idx]
            self._store[number] = kept
        self._look()


def growing_cache(config: Any, room: int) -> DynamicCache:  # noqa: ANN401
    """An empty cache with ``room`` slots a row; layers of other kinds (sliding windows, say) stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _fill_tile(rows: Tensor) -> Tensor:
    """Rows repeated at the end up to the next multiple of :data:`ROW_TILE`."""
    missing = -len(rows) % ROW_TILE
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows
