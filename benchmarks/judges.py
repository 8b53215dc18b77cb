"""What a judge costs beside the decoding of the texts that it judges: the bundled example on the default pair."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.timing import side_by_side
from inversedmixup.judges import TUNED, Case, make_judge
from inversedmixup.mixing import PairSampler, interpolate, parse_lambda, row_stream
from inversedmixup.models.pair import Pair
from inversedmixup.options import build
from inversedmixup.schema import Example
from inversedmixup.stages.augment import AugmentConfig
from inversedmixup.stages.warmup import WarmupConfig, run_warmup

JUDGES = ("task", "probe", "llm", *TUNED)
ROWS = 64


def run(examples: list[Example], *, device: str, dtype: str, repeats: int) -> dict[str, Any]:
    """Seconds for 64 texts, one candidate each, and each judge's share of the decoding."""
    classes = sorted({example.label for example in examples})
    pair = Pair.load(device=device, dtype=dtype)
    run_warmup(pair, examples, classes, build(WarmupConfig, {"train_encoder": "head", "tolerance": 1.0}))
    config = build(AugmentConfig, {"judge_steps": 20})
    sampler = PairSampler([example.label for example in examples], "cross-class", parse_lambda(config.lam))
    draws = [sampler.draw(row, row_stream(0, row)) for row in range(ROWS)]
    points = pair.task_model.encode([example.text for example in examples])
    lams = points.new_tensor([draw.lam for draw in draws])
    mixes = interpolate(points[[draw.first for draw in draws]], points[[draw.second for draw in draws]], lams)
    uniforms = np.concatenate([row_stream(1, row).random((1, config.max_tokens)) for row in range(ROWS)])
    write = partial(pair.invert, mixes, config.sampling(), uniforms, word_weight=config.word_weight)
    texts = write()
    found = pair.task_model.encode(texts)
    with TemporaryDirectory() as folder:
        judges = {
            name: make_judge(name, Case(pair, examples, classes, config, 0, folder=Path(folder))) for name in JUDGES
        }
        for judge in judges.values():
            judge.prepare()
        ways = {name: lambda judge=judge: judge.probabilities(texts, found) for name, judge in judges.items()}
        seconds = side_by_side({"decoding": write, **ways}, repeats=repeats)
    return {
        "dtype": str(pair.llm.lm.dtype),
        "texts": ROWS, "classes": len(classes), "words_a_text": float(np.mean([len(text.split()) for text in texts])),
        "seconds": seconds, "share_of_decoding": {name: seconds[name] / seconds["decoding"] for name in JUDGES},
    }  # fmt: skip
