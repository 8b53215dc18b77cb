"""Stage 3, augmentation: pairs → mixed embeddings → texts → scores → labels → gate (paper, stage 3).

    h̃ = λ h_i + (1−λ) h_j ,   x̃ = M_ψ(A_φ(h̃)) ,   ỹ soft or hard

Rows are numbered; everything random about a row comes from (seed, row number). They are made in shards of
:data:`SHARD_ROWS`, each recorded when it is finished, and pass the gate one by one in their order.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.data import Example, Row
from inversedmixup.errors import InputError
from inversedmixup.gate import Gate, GateConfig
from inversedmixup.labels import LABEL_POLICIES, LLMJudge, is_intruded, judge_accuracy
from inversedmixup.mixing import (
    INTERPOLATIONS,
    LAM_HELP,
    PAIR_POLICIES,
    Draw,
    PairSampler,
    interpolate,
    parse_lambda,
    realised_ratio,
    row_stream,
    soft_label,
)
from inversedmixup.models.pair import Pair
from inversedmixup.models.sampling import Sampling
from inversedmixup.options import at_least, option
from inversedmixup.runs import RunFolder, shard_name
from inversedmixup.terminal import progress

logger = logging.getLogger(__name__)

SHARD_ROWS = 32
DIGITS = 4  # scores are rounded: beyond that they are floating-point noise


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How texts are written."""

    interpolation: str = option("linear", "how embeddings are mixed", choices=INTERPOLATIONS)
    candidates: int = option(4, "texts written per pair; the one with the best cycle similarity is taken")
    temperature: float = option(0.7, "sampling temperature; 0 is greedy")
    top_p: float = option(0.95, "share of probability that sampling keeps")
    max_tokens: int = option(40, "longest text, in tokens")
    batch_size: int | None = option(
        None, "texts decoded at a time; changes memory and speed, not the texts; default: what the device bears"
    )
    seed: int = option(0, "seed of everything random but the choice of examples")

    def __post_init__(self) -> None:
        at_least(self, 1, "candidates", "max_tokens", "batch_size")
        at_least(self, 0, "temperature", "seed")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p}: lies above 0 and at most at 1")

    def sampling(self) -> Sampling:
        """The LLM's share of these settings."""
        return Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens)


@dataclasses.dataclass(frozen=True)
class AugmentConfig(DecodeConfig, GateConfig):
    """Settings of stage 3."""

    n: int = option(200, "rows wanted")
    tries: float = option(3.0, "pairs tried at most, as a multiple of n (rounded up to whole shards)")
    pairs: str = option("same-class", "which rows become parents", choices=PAIR_POLICIES)
    lam: str = option("beta:0.4", f"mixing ratio: {LAM_HELP}")
    labels: str = option("soft", "label policy: interpolated, the task model's, or the LLM's", choices=LABEL_POLICIES)
    judge_shots: int = option(1, "examples per class in the LLM judge's prompt")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "n", "tries", "judge_shots")


@dataclasses.dataclass(frozen=True)
class AugmentResult:
    """What stage 3 made.

    Attributes:
        kept: rows that passed the gate, ``n`` of them if all went well.
        rejected: rows that did not, with their reasons.
        summary: counts, rates and mean scores.
    """

    kept: list[Row]
    rejected: list[Row]
    summary: dict[str, Any]


def run_augment(
    pair: Pair, examples: Sequence[Example], classes: Sequence[str], config: AugmentConfig, run: RunFolder | None = None
) -> AugmentResult:
    """Make rows until ``n`` passed the gate or ``tries · n`` pairs were tried.

    Args:
        pair: a pair after stage 2, with a head over ``classes``.
        examples: the labelled rows to mix.
        classes: class names.
        config: settings.
        run: where finished shards are recorded and found again.

    Raises:
        InputError: for settings that the rows cannot serve.
    """
    writer = RowWriter(pair, examples, classes, config)
    gate = Gate(config, (example.text for example in examples), _fluencies(writer, run))
    judged: list[Row] = []
    kept = number = 0
    started = time.monotonic()
    with progress("augmentation", config.n) as advance:
        while kept < config.n and number * SHARD_ROWS < config.tries * config.n:
            before = kept
            for row in _shard(writer, number, run):
                first, second = (writer.by_id[identity] for identity in row.parents)
                judged.append(gate.judge(row, (first.text, second.text), (first.label, second.label)))
                kept += judged[-1].kept
                if kept == config.n:
                    break
            number += 1
            advance(kept - before)
    result = _result(judged, config, time.monotonic() - started)
    if config.labels == "llm":
        result.summary["judge"] = _judge_record(writer, examples, run)
    return result


def check_rows(examples: Sequence[Example], config: AugmentConfig) -> PairSampler:
    """The sampler of these rows under these settings.

    Raises:
        InputError: if the rows or the settings cannot serve it.
    """
    if len({example.id for example in examples}) < len(examples):
        raise InputError("the id column holds the same id twice; make the ids unique or drop the column")
    return PairSampler([example.label for example in examples], config.pairs, parse_lambda(config.lam))


def _shard(writer: RowWriter, number: int, run: RunFolder | None) -> list[Row]:
    """A shard's rows, from the run folder if they are there."""
    stored = run.read(shard_name(number)) if run else None
    if stored is not None:
        return [Row(**row) for row in stored]
    rows = writer.shard(number)
    if run:
        run.write(shard_name(number), [dataclasses.asdict(row) for row in rows])
    return rows


def _fluencies(writer: RowWriter, run: RunFolder | None) -> list[float]:
    """Mean token log-likelihoods of (at most 256 of) the training texts."""
    stored = run.read("fluencies") if run else None
    if stored is None:
        texts = [example.text for example in writer.examples]
        picked = np.random.default_rng([writer.config.seed, 7]).permutation(len(texts))[:256]
        stored = [round(float(v), DIGITS) for v in writer.pair.llm.log_likelihood([texts[i] for i in sorted(picked)])]
        if run:
            run.write("fluencies", stored)
    return list(stored)


def _judge_record(writer: RowWriter, examples: Sequence[Example], run: RunFolder | None) -> dict[str, float]:
    """The LLM judge's accuracy on rows that it has not seen."""
    stored = run.read("judge") if run else None
    if stored is None:
        assert writer.judge is not None
        stored = judge_accuracy(writer.judge, examples, rows=48, seed=writer.config.seed)
        if run:
            run.write("judge", stored)
    return dict(stored)


class RowWriter:
    """Turns row numbers into rows. It keeps no memory of earlier rows: any shard can be made anywhere, in any order."""

    def __init__(self, pair: Pair, examples: Sequence[Example], classes: Sequence[str], config: AugmentConfig) -> None:
        self.pair, self.examples, self.classes, self.config = pair, list(examples), list(classes), config
        self.by_id = {example.id: example for example in examples}
        self.sampler = check_rows(examples, config)
        self.embeddings = pair.task_model.encode([example.text for example in examples])
        self._judge: LLMJudge | None = None

    @property
    def judge(self) -> LLMJudge | None:
        """The LLM judge, if the label policy needs one; made when first asked for."""
        if self._judge is None and self.config.labels == "llm":
            self._judge = LLMJudge(
                self.pair.llm, self.examples, self.classes, shots=self.config.judge_shots, seed=self.config.seed
            )
        return self._judge

    def shard(self, number: int) -> list[Row]:
        """The rows of one shard, before the gate."""
        streams = [row_stream(self.config.seed, number * SHARD_ROWS + at) for at in range(SHARD_ROWS)]
        draws = [self.sampler.draw(number * SHARD_ROWS + at, stream) for at, stream in enumerate(streams)]
        first = self.embeddings[[draw.first for draw in draws]]
        second = self.embeddings[[draw.second for draw in draws]]
        mixed = interpolate(first, second, torch.tensor([d.lam for d in draws]), self.config.interpolation)
        texts, reread = write_texts(self.pair, mixed, streams, self.config)
        return self._rows(draws, texts, reread, first, second, mixed)

    def _rows(
        self, draws: list[Draw], texts: list[str], reread: Tensor, first: Tensor, second: Tensor, mixed: Tensor
    ) -> list[Row]:
        cycle = nn.functional.cosine_similarity(reread, mixed, dim=1)
        realised = realised_ratio(reread, first, second)
        fluency = self.pair.llm.log_likelihood(texts)
        task = self.pair.task_model.predict_proba(reread)
        llm = None if self.judge is None else self.judge.probabilities(texts)
        rows = []
        for at, draw in enumerate(draws):
            parents = self.examples[draw.first], self.examples[draw.second]
            sources = {
                "soft": soft_label(parents[0].label, parents[1].label, draw.lam, self.classes),
                "task": dict(zip(self.classes, map(float, task[at]), strict=True)),
                "llm": None if llm is None else dict(zip(self.classes, map(float, llm[at]), strict=True)),
            }
            # at λ = ½ the two parents tie: the first one leads
            order = [parents[0].label, *self.classes]
            names = {source: probs and max(order, key=probs.__getitem__) for source, probs in sources.items()}
            chosen = sources[self.config.labels]
            assert chosen is not None
            rows.append(
                Row(
                    id=f"aug-{draw.row}",
                    text=texts[at],
                    label=str(names[self.config.labels]),
                    label_probs={name: _round(p) for name, p in chosen.items()},
                    parents=[parent.id for parent in parents],
                    lam=_round(draw.lam),
                    lam_realised=_round(realised[at]),
                    cycle_similarity=_round(cycle[at]),
                    fluency=_round(fluency[at]),
                    labels=names,  # type: ignore[arg-type]
                    intruded=is_intruded(str(names["llm"] or names["task"]), sources["soft"] or {}),
                    seed=self.config.seed,
                )
            )
        return rows


def _round(value: Any) -> float:  # noqa: ANN401 (float, numpy or torch scalar)
    return round(float(value), DIGITS)


def write_texts(
    pair: Pair, mixed: Tensor, streams: Sequence[np.random.Generator], config: DecodeConfig
) -> tuple[list[str], Tensor]:
    """The best text at each mixed embedding [n, d], and its re-read embedding [n, d].

    ``candidates`` texts are drawn per embedding from its own random stream, re-read by the task model, and the one
    nearest to the embedding by cosine is taken (cycle similarity).
    """
    n, many = len(mixed), config.candidates if config.temperature > 0 else 1
    uniforms = np.concatenate([stream.random((many, config.max_tokens)) for stream in streams])
    with torch.no_grad():
        soft = pair.adaptor(mixed.to(pair.llm.device))
    texts = pair.decoder.decode(soft, config.sampling(), uniforms, candidates=many, batch_size=config.batch_size)
    reread = pair.task_model.encode(texts)
    similarity = nn.functional.cosine_similarity(reread, mixed.repeat_interleave(many, dim=0), dim=1)
    similarity[[at for at, text in enumerate(texts) if not text]] = -1.0
    best = similarity.view(n, many).argmax(1) + torch.arange(n) * many
    return [texts[at] for at in best.tolist()], reread[best]


def _result(judged: list[Row], config: AugmentConfig, seconds: float) -> AugmentResult:
    kept, rejected = [r for r in judged if r.kept], [r for r in judged if not r.kept]
    if len(kept) < config.n:
        logger.warning(
            "%d of the %d rows asked for passed the gate, of %d tried; raise --tries or --candidates, or loosen "
            "the gate (%s)", len(kept), config.n, len(judged), _common_reason(rejected),
        )  # fmt: skip
    summary = {
        "tried": len(judged), "kept": len(kept),
        "rejected": dict(Counter(str(row.reject_reason) for row in rejected).most_common()),
        "intrusion_rate": _mean([row.intruded for row in judged]),
        "cycle_similarity": _mean([row.cycle_similarity for row in kept]),
        "lam_correlation": _correlation(kept),
        "seconds": round(seconds, 1),
    }  # fmt: skip
    return AugmentResult(kept, rejected, summary)


def _common_reason(rejected: list[Row]) -> str:
    reasons = Counter(row.reject_reason for row in rejected).most_common(1)
    return f"most common reason: {reasons[0][0]}" if reasons else "nothing was rejected"


def _mean(values: Sequence[float]) -> float | None:
    return _round(np.mean(values)) if values else None


def _correlation(rows: list[Row]) -> float | None:
    """Pearson correlation of λ and λ̂: whether the text keeps to the ratio asked for (trap 3 of the design)."""
    asked, found = [row.lam for row in rows], [row.lam_realised for row in rows]
    if len(rows) < 3 or np.std(asked) == 0 or np.std(found) == 0:
        return None
    return _round(np.corrcoef(asked, found)[0, 1])
