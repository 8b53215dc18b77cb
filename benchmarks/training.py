"""The step of stage 1 against plain transformers and against the bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import linears, products, side_by_side
from inversedmixup.models.llm import SoftTokenLLM, choose_dtype
from inversedmixup.models.pair import Pair

BATCH = 16
Batch = tuple[torch.Tensor, list[list[int]]]


def run(texts: list[str], *, rows: int, device: str, repeats: int) -> dict[str, Any]:
    """``rows`` texts in batches of similar lengths: adaptor and LLM forward, loss, gradient of the adaptor."""
    pair = Pair.load(device=device, dtype="auto")
    # plain transformers knows no LoRA of ours: both sides train the adaptor through the LLM as it came
    pair.llm = SoftTokenLLM.from_pretrained(pair.config.llm, device=device, dtype=choose_dtype("auto", device))
    batch = sorted((texts * (rows // len(texts) + 1))[:rows], key=len)
    embeddings, targets = pair.task_model.encode(batch).to(device), pair.llm.targets(batch, 64)
    batches = [(embeddings[at : at + BATCH], targets[at : at + BATCH]) for at in range(0, rows, BATCH)]
    ways: dict[str, Callable[[], Any]] = {"ours, not compiled": _ours(pair, pair.llm, batches)}
    compiled = SoftTokenLLM.from_pretrained(pair.config.llm, device=device, dtype=choose_dtype("auto", device))
    compiled.compile_layers()
    ways["ours, compiled"] = _ours(pair, compiled, batches)
    dtypes = {"float32": torch.float32}
    if choose_dtype("auto", device) == torch.bfloat16:  # elsewhere it is emulated, and many times slower
        dtypes["bfloat16"] = torch.bfloat16
    for name, dtype in dtypes.items():
        for attention in ("sdpa", "eager"):
            llm = SoftTokenLLM.from_pretrained(pair.config.llm, device=device, dtype=dtype)
            llm.lm.set_attn_implementation(attention)
            ways[f"transformers, {attention}, {name}"] = _plain(pair, llm, batches)
    parts = [part for _, targets in batches for part in _bound(pair, targets)]
    ways["bound"] = lambda: [part() for part in parts]
    measured = side_by_side(ways, repeats)
    tokens = sum(map(len, targets))
    ours = min(value for name, value in measured.items() if name.startswith("ours"))
    theirs = min(value for name, value in measured.items() if name.startswith("transformers"))
    return {
        "train_vs_transformers": theirs / ours, "train_vs_bound": measured["bound"] / ours,
        "rows": rows, "target_tokens": tokens, "seconds": measured,
        "tokens_per_second": {name: tokens / value for name, value in measured.items()},
    }  # fmt: skip


def _ours(pair: Pair, llm: SoftTokenLLM, batches: list[Batch]) -> Callable[[], None]:
    def step() -> None:
        for embeddings, targets in batches:
            pair.adaptor.zero_grad(set_to_none=True)
            llm.loss(pair.adaptor(embeddings), targets).backward()  # type: ignore[no-untyped-call]

    return step


def _plain(pair: Pair, llm: SoftTokenLLM, batches: list[Batch]) -> Callable[[], None]:
    """What one writes with transformers alone: padded inputs, an attention mask, labels, the model's own loss."""
    k = pair.config.adaptor.soft_tokens

    def step() -> None:
        for embeddings, targets in batches:
            pair.adaptor.zero_grad(set_to_none=True)
            ids, mask = llm.pad(targets)
            labels = torch.cat([ids.new_full((len(ids), k), -100), ids.masked_fill(~mask, -100)], dim=1)
            attended = torch.cat([mask.new_ones(len(ids), k), mask], dim=1).long()
            soft = pair.adaptor(embeddings).to(llm.lm.dtype)
            inputs = torch.cat([soft, llm.lm.get_input_embeddings()(ids)], dim=1)
            llm.lm(inputs_embeds=inputs, attention_mask=attended, labels=labels, use_cache=False).loss.backward()

    return step


def _bound(pair: Pair, targets: list[list[int]]) -> list[Callable[[], None]]:
    """The products of the LLM on every real position, of the projection on every target, and of their gradients."""
    head = pair.llm.lm.get_output_embeddings()
    tokens, k = sum(map(len, targets)), pair.config.adaptor.soft_tokens
    return [
        products(linears(pair.llm.lm, head), tokens + len(targets) * (k - 1), backward=True),
        products([head], tokens, backward=True),
    ]
