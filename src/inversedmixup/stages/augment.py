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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from inversedmixup.data import Example, Row
from inversedmixup.errors import InputError
from inversedmixup.gate import Gate, GateConfig
from inversedmixup.labels import LABEL_POLICIES, LLMJudge, is_intruded, judge_accuracy
from inversedmixup.mixing import (
    LAM_HELP,
    PAIR_POLICIES,
    Draw,
    PairSampler,
    parse_lambda,
    row_stream,
    soft_label,
)
from inversedmixup.models.pair import Pair
from inversedmixup.options import at_least, option
from inversedmixup.runs import RunFolder, shard_name
from inversedmixup.stages.writer import DIGITS, DecodeConfig, Written, write_mixes
from inversedmixup.terminal import progress

logger = logging.getLogger(__name__)

SHARD_ROWS = 32


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
    pair: Pair, examples: Sequence[Example], classes: Sequence[str], config: AugmentConfig,
    take: Callable[[Row], None], run: RunFolder | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make rows until ``n`` passed the gate or ``tries · n`` pairs were tried.

    Args:
        pair: a pair after stage 2, with a head over ``classes``.
        examples: the labelled rows to mix.
        classes: class names.
        config: settings.
        take: is given each judged row, kept or not, in order; none is held here.
        run: where finished shards are recorded and found again.

    Returns:
        The summary: counts, rates and mean scores.

    Raises:
        InputError: for settings that the rows cannot serve.
    """
    writer = RowWriter(pair, examples, classes, config)
    gate = Gate(config, (example.text for example in examples), _fluencies(writer, run))
    tally, number, started = Tally(), 0, time.monotonic()
    with progress("augmentation", config.n) as advance:
        while tally.kept < config.n and number * SHARD_ROWS < config.tries * config.n:
            before = tally.kept
            for row in _shard(writer, number, run):
                first, second = (writer.by_id[identity] for identity in row.parents)
                judged = gate.judge(row, (first.text, second.text), (first.label, second.label))
                tally.add(judged)
                take(judged)
                if tally.kept == config.n:
                    break
            number += 1
            advance(tally.kept - before)
    if tally.kept < config.n:
        logger.warning(
            "%d of the %d rows asked for passed the gate, of %d tried; raise --tries or --candidates, or loosen "
            "the gate (%s)", tally.kept, config.n, tally.tried, tally.common_reason(),
        )  # fmt: skip
    summary = {**tally.summary(), "seconds": round(time.monotonic() - started, 1)}
    if config.labels == "llm":
        summary["judge"] = _judge_record(writer, examples, run)
    return summary


class Tally:
    """Counts and sums over judged rows, so that the rows themselves need not be held.

    Attributes:
        tried: rows seen.
        kept: rows that passed the gate.
    """

    def __init__(self) -> None:
        self.tried = self.kept = self.intruded = 0
        self.reasons: Counter[str] = Counter()
        self.cycle = 0.0
        # over kept rows, of λ and λ̂: sums, and sums of products
        self.sums, self.products = np.zeros(2), np.zeros((2, 2))

    def add(self, row: Row) -> None:
        """Count one row."""
        self.tried, self.kept = self.tried + 1, self.kept + row.kept
        self.intruded += row.intruded
        if row.kept:
            ratios = np.array([row.lam, row.lam_realised]) - 0.5  # near zero, so that the sums lose nothing
            self.cycle += row.cycle_similarity
            self.sums += ratios
            self.products += np.outer(ratios, ratios)
        else:
            self.reasons[str(row.reject_reason)] += 1

    def summary(self) -> dict[str, Any]:
        """Counts, rates and means."""
        return {
            "tried": self.tried, "kept": self.kept, "rejected": dict(self.reasons.most_common()),
            "intrusion_rate": round(self.intruded / self.tried, DIGITS) if self.tried else None,
            "cycle_similarity": round(self.cycle / self.kept, DIGITS) if self.kept else None,
            "lam_correlation": self.lam_correlation(),
        }  # fmt: skip

    def lam_correlation(self) -> float | None:
        """Pearson correlation of λ and λ̂: whether the text keeps to the ratio asked for (trap 3 of the design)."""
        if self.kept < 3:
            return None
        covariance = self.products / self.kept - np.outer(self.sums, self.sums) / self.kept**2
        variance = covariance.diagonal()
        if variance.min() < 1e-9:
            return None
        return round(float(covariance[0, 1] / np.sqrt(variance.prod())), DIGITS)

    def common_reason(self) -> str:
        """What most rejected rows were rejected for."""
        reasons = self.reasons.most_common(1)
        return f"most common reason: {reasons[0][0]}" if reasons else "nothing was rejected"


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
        written = write_mixes(
            self.pair, self.embeddings[[d.first for d in draws]], self.embeddings[[d.second for d in draws]],
            torch.tensor([d.lam for d in draws]), streams, self.config,
        )  # fmt: skip
        return self._rows(draws, written)

    def _rows(self, draws: list[Draw], written: Written) -> list[Row]:
        task = written.class_probs
        assert task is not None
        llm = None if self.judge is None else self.judge.probabilities(written.texts)
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
                    text=written.texts[at],
                    label=str(names[self.config.labels]),
                    label_probs={name: _round(p) for name, p in chosen.items()},
                    parents=[parent.id for parent in parents],
                    lam=_round(draw.lam),
                    lam_realised=written.lam_realised[at],
                    cycle_similarity=written.cycle_similarity[at],
                    fluency=written.fluency[at],
                    labels=names,  # type: ignore[arg-type]
                    intruded=is_intruded(str(names["llm"] or names["task"]), sources["soft"] or {}),
                    seed=self.config.seed,
                )
            )
        return rows


def _round(value: Any) -> float:  # noqa: ANN401 (float, numpy or torch scalar)
    return round(float(value), DIGITS)
