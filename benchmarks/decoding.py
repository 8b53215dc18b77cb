"""Decoding from soft tokens against ``model.generate``, against llama.cpp where it is installed, and the bound."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.timing import linears, products, side_by_side
from inversedmixup.models import decoding
from inversedmixup.models.llm import SoftTokenLLM, choose_dtype
from inversedmixup.models.pair import Pair
from inversedmixup.models.sampling import GREEDY, Sampling, pick

TOKENS = 32


def run(
    texts: list[str], *, batches: tuple[int, ...], device: str, repeats: int, gguf: str | None = None
) -> dict[str, Any]:
    """32 greedy tokens per row at each batch size; the end-of-text token is barred on both sides."""
    pair = Pair.load(device=device)
    embeddings = pair.task_model.encode((texts * (max(batches) // len(texts) + 1))[: max(batches)]).to(device)
    with torch.no_grad():
        soft = pair.adaptor(embeddings)
    best = choose_dtype("auto", device)
    llms = {"float32": SoftTokenLLM.from_pretrained(pair.config.llm, device=device)}
    if best == torch.bfloat16:
        llms["bfloat16"] = SoftTokenLLM.from_pretrained(pair.config.llm, device=device, dtype=best)
    out: dict[str, Any] = {"decode_vs_generate": {}, "decode_vs_bound": {}, "tokens_per_second": {}, "bars_end": True}
    for batch in batches:
        measured = side_by_side(_ways(llms, soft[:batch]), repeats)
        ours = min(value for name, value in measured.items() if name.startswith("ours"))
        theirs = min(value for name, value in measured.items() if name.startswith("generate"))
        out["decode_vs_generate"][batch] = theirs / ours
        out["decode_vs_bound"][batch] = measured["bound"] / ours
        out["tokens_per_second"][batch] = {name: batch * TOKENS / value for name, value in measured.items()}
    out["llama_cpp"] = llama_cpp(batches, gguf)
    return out


def _ways(llms: dict[str, SoftTokenLLM], soft: torch.Tensor) -> dict[str, Callable[[], Any]]:
    ways: dict[str, Callable[[], Any]] = {}
    for name, llm in llms.items():
        ways[f"ours, {name}"] = partial(_ours, llm, soft)
        for cache in ("dynamic", "static"):
            ways[f"generate, {cache} cache, {name}"] = partial(_generate, llm, soft, cache)
    fastest = llms.get("bfloat16", llms["float32"])
    ways["bound"] = _bound(fastest, len(soft), soft.shape[1])
    return ways


def _ours(llm: SoftTokenLLM, soft: torch.Tensor) -> None:
    def endless(logits: torch.Tensor, sampling: Sampling, uniforms: Any) -> torch.Tensor:  # noqa: ANN401
        logits[:, llm.eos] = -torch.inf
        return pick(logits, sampling, uniforms)

    decoding.pick = endless  # type: ignore[attr-defined]
    try:
        llm.decode(soft, Sampling(temperature=GREEDY.temperature, max_tokens=TOKENS), batch_size=len(soft))
    finally:
        decoding.pick = pick  # type: ignore[attr-defined]


def _generate(llm: SoftTokenLLM, soft: torch.Tensor, cache: str) -> None:
    mask = torch.ones(soft.shape[:2], dtype=torch.long, device=soft.device)
    llm.lm.generate(
        inputs_embeds=soft.to(llm.lm.dtype), attention_mask=mask, do_sample=False, pad_token_id=llm.eos,
        max_new_tokens=TOKENS, min_new_tokens=TOKENS, cache_implementation=cache if cache == "static" else None,
    )  # fmt: skip


def _bound(llm: SoftTokenLLM, rows: int, k: int) -> Callable[[], None]:
    """The products alone: the prefill of k soft tokens a row, then one row each per token."""
    head = llm.lm.get_output_embeddings()
    layers = linears(llm.lm, head)
    prefill, step = products(layers, rows * k, backward=False), products([*layers, head], rows, backward=False)

    def work() -> None:
        prefill()
        for _ in range(TOKENS):
            step()

    return work


def llama_cpp(batches: tuple[int, ...], gguf: str | None) -> dict[str, float] | str:
    """Tokens a second of ``llama-batched-bench`` on a GGUF file of the same LLM, by batch size."""
    program = shutil.which("llama-batched-bench")
    if program is None or gguf is None:
        return "not measured: " + ("llama-batched-bench is not installed" if program is None else "no --gguf given")
    command = [
        program, "-m", gguf, "-npp", "6", "-ntg", str(TOKENS), "-npl", ",".join(map(str, batches)),
        "-c", str(max(batches) * 64), "--output-format", "jsonl",
    ]  # fmt: skip
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    return {str(record["pl"]): record["speed_tg"] for record in records}
