"""Stage 3 of the bundled example on the default pair: what the time goes into."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from inversedmixup.judges.llm import LLMJudge
from inversedmixup.models.pair import Pair
from inversedmixup.options import build
from inversedmixup.schema import Example
from inversedmixup.stages.augment import AugmentConfig, run_augment
from inversedmixup.stages.warmup import WarmupConfig, run_warmup


def run(examples: list[Example], *, rows: int, kept: int, device: str, dtype: str) -> dict[str, Any]:
    """``rows`` labelled rows into ``kept`` new ones, four candidates each, judge llm looking on; without warm-up."""
    examples = examples[:rows]
    classes = sorted({example.label for example in examples})
    pair = Pair.load(device=device, dtype=dtype)
    run_warmup(pair, examples, classes, build(WarmupConfig, {"tolerance": 1.0}))
    spent: defaultdict[str, float] = defaultdict(float)
    pair.decoder.decode = _timed(pair.decoder.decode, "decoding", spent)  # type: ignore[method-assign]
    pair.task_model.encode = _timed(pair.task_model.encode, "encoder", spent)  # type: ignore[method-assign]
    pair.llm.log_likelihood = _timed(pair.llm.log_likelihood, "fluency", spent)  # type: ignore[method-assign]
    started = time.perf_counter()
    LLMJudge.probabilities = _timed(LLMJudge.probabilities, "judge llm", spent)  # type: ignore[method-assign]
    config = build(
        AugmentConfig, {"n": kept, "candidates": 4, "labels": "drop:llm", "pairs": "same-class", "lam": "beta:0.4"}
    )
    summary = run_augment(pair, examples, classes, config, lambda row: None)
    total = time.perf_counter() - started
    spent["rest"] = total - sum(spent.values())
    return {
        "dtype": str(pair.llm.lm.dtype),
        "rows": len(examples), "kept": summary["kept"], "tried": summary["tried"], "seconds": total,
        "share": {name: value / total for name, value in spent.items()},
    }  # fmt: skip


def _timed(work: Callable[..., Any], name: str, spent: defaultdict[str, float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        started = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - started

    return timed
