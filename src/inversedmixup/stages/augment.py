"""Stage 3, augmentation: pairs → mixed embeddings → texts → scores → labels → gate (paper, stage 3).

    h̃ = λ h_i + (1−λ) h_j ,   x̃ = M_ψ(A_φ(h̃)) ,   ỹ soft or hard

Rows are numbered; everything random about a row comes from (seed, row number). They are made in shards of
:data:`SHARD_ROWS`, each recorded when it is finished, and pass the gate one by one in their order.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from inversedmixup.errors import InputError
from inversedmixup.gate import Gate, GateConfig
from inversedmixup.judges import Case, JudgeConfig, check_judges, judge_record, make_panel
from inversedmixup.judges.panel import Panel, adjusted, by_source, named
from inversedmixup.labelled import class_names, class_numbers, repeated_id
from inversedmixup.labels import LabelConfig, choose_label, is_intruded, likeliest, parse_labels
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
from inversedmixup.options import CHOICE, at_least, option
from inversedmixup.runs import RunFolder, recorded, shard_name
from inversedmixup.schema import Example, Row
from inversedmixup.stages import trust
from inversedmixup.stages.writer import DIGITS, DecodeConfig, Written, write_mixes
from inversedmixup.terminal import progress

logger = logging.getLogger(__name__)

SHARD_ROWS = 32
SHOWN = 40  # characters of a text in a refusal
ENCODED = 16  # parents at a time: of a shard's few, more at once would only mean more padding
PILOT_SHARDS = 2  # rows on which a judge is compared with the interpolated labels before its own are used


@dataclasses.dataclass(frozen=True)
class AugmentConfig(DecodeConfig, LabelConfig, JudgeConfig, GateConfig):
    """Settings of stage 3."""

    GROUP: ClassVar[str] = "new rows"

    n: int = option(200, "rows wanted", decides=CHOICE)
    tries: float = option(3.0, "pairs tried at most, as a multiple of n (rounded up to whole shards)", decides=CHOICE)
    # with labels, the policy that helped most where it was measured: docs/evidence.md
    pairs: str = option(
        "balanced", "which rows become parents; balanced: of two classes, rarer ones more often", choices=PAIR_POLICIES
    )
    lam: str = option(
        "uniform:0.5,0.8", f"mixing ratio: {LAM_HELP}; with balanced pairs the larger of λ and 1 − λ is taken"
    )
    candidates: int = option(1, "texts written per pair; the one that keeps best to the mix is taken")
    word_weight: float = option(
        0.0, "how much the pair's word head counts beside the LLM, if it has one; more of it keeps nearer to the mix"
    )
    correct: int | None = option(0, "correction steps on the best candidate; they keep nearer to the mix, too")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "n", "tries")

    @property
    def accepted(self) -> str:
        """``accept_labels``; a judge that decides is not overruled by the task model."""
        return "any" if self.accept_labels == "auto" and parse_labels(self.labels).judge else super().accepted


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
    take: Callable[[Row], None], run: RunFolder | None = None, *,
    cross_validated: Callable[[Sequence[int]], np.ndarray] | None = None, workers: Workers | None = None,
    panel: Panel | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make rows until ``n`` passed the gate or ``tries · n`` pairs were tried.

    Args:
        pair: a pair after stage 2, with a head over ``classes``.
        examples: the labelled rows to mix.
        classes: class names.
        config: settings.
        take: is given each judged row, kept or not, in order; none is held here.
        run: where finished shards are recorded and found again.
        cross_validated: see :class:`~inversedmixup.judges.Case`.
        workers: who makes the shards; default: this process.
        panel: the judges, if they are there already.

    Returns:
        The summary: counts, rates, mean scores, and what the judge is worth if there is one.

    Raises:
        InputError: for settings that the rows cannot serve, or a judge that is worse than the interpolated labels.
    """
    config.check_descriptions(classes)
    writer = RowWriter(
        pair, examples, classes, config, cross_validated=cross_validated, folder=run.folder if run else None,
        panel=panel,
    )  # fmt: skip
    gate = Gate(config, (example.text for example in examples), known_fluencies(writer, run))
    tally, started = Tally(), time.monotonic()
    last = shards_at_most(config)
    record, pilot = _tried_judge(writer, run, min(PILOT_SHARDS, last))
    shards = chain(pilot.values(), _shards(writer, range(len(pilot), last), run, workers))
    with progress("augmentation", config.n) as advance:
        for row in gated(gate, writer, shards):
            tally.add(row)
            take(row)
            advance(int(row.kept))
            if tally.kept == config.n:
                break
    if tally.kept < config.n:
        logger.warning(
            "%d of the %d rows asked for passed the gate, of %d tried; raise --tries or --candidates, or loosen "
            "the gate (%s)", tally.kept, config.n, tally.tried, tally.common_reason(),
        )  # fmt: skip
    summary = {"asked": config.n, **tally.summary(), "seconds": round(time.monotonic() - started, 1)}
    return {**summary, "judge": record} if record else summary


def gated(gate: Gate, writer: RowWriter, shards: Iterable[Sequence[Row]]) -> Iterator[Row]:
    """The rows of the first shards, in their order, each with what the gate says of it.

    Raises:
        InputError: for rows that lie between others than the writer draws.
    """
    for number, rows in enumerate(shards):
        for row, (first, second) in zip(rows, writer.parents(number), strict=True):
            if row.parents != [first.id, second.id]:
                raise InputError(
                    f"shard {number} of the run has other parents than this version of numpy draws; add --overwrite"
                )
            yield gate.judge(row, (first.text, second.text), (first.label, second.label))


def shards_at_most(config: AugmentConfig) -> int:
    """After how many shards nothing more is tried."""
    return math.ceil(config.tries * config.n / SHARD_ROWS)


def _tried_judge(
    writer: RowWriter, run: RunFolder | None, shards: int
) -> tuple[dict[str, Any] | None, dict[int, list[Row]]]:
    """What the judge is worth, found before its labels are used, and the first shards, on which that was found."""
    panel, config = writer.panel, writer.config
    if panel is None:
        return None, {}
    record = recorded(run, "judge", lambda: judge_record(panel, writer.examples, writer.classes, seed=config.seed))
    logger.info("%s", trust.describe(record))
    trust.warn_of_better_alone(record)
    pilot = {number: _shard(writer, number, run) for number in range(shards)}
    record = trust.compare(record, [row for rows in pilot.values() for row in rows], len(writer.classes))
    trust.check(record, config.labels, len(writer.classes), force=config.force_judge)
    return record, pilot


class Tally:
    """Counts and sums over judged rows, so that the rows themselves need not be held.

    Attributes:
        tried: rows seen.
        kept: rows that passed the gate.
        intruded: rows seen in whose text the judges see another class than the mix says.
        intruded_kept: those of them that passed the gate.
    """

    def __init__(self) -> None:
        self.tried = self.kept = self.intruded = self.intruded_kept = 0
        self.reasons: Counter[str] = Counter()
        self.cycle = 0.0
        # over kept rows, of λ and λ̂: sums, and sums of products
        self.sums, self.products = np.zeros(2), np.zeros((2, 2))

    def add(self, row: Row) -> None:
        """Count one row."""
        self.tried, self.kept = self.tried + 1, self.kept + row.kept
        self.intruded += row.intruded
        if row.kept:
            self.intruded_kept += row.intruded
            ratios = np.array([row.lam, row.lam_realised]) - 0.5  # near zero, so that the sums lose nothing
            self.cycle += row.cycle_similarity
            self.sums += ratios
            self.products += np.outer(ratios, ratios)
        else:
            self.reasons[str(row.reject_reason)] += 1

    def summary(self) -> dict[str, Any]:
        """Counts, rates and means; those without ``tried`` rows, or without ``kept`` ones, are ``None``.

        ``intrusion_rate`` is of the rows tried; ``intrusion_rate_kept``, ``cycle_similarity`` and ``lam_correlation``
        are of those kept.
        """
        return {
            "tried": self.tried, "kept": self.kept, "rejected": dict(self.reasons.most_common()),
            "intrusion_rate": round(self.intruded / self.tried, DIGITS) if self.tried else None,
            "intrusion_rate_kept": round(self.intruded_kept / self.kept, DIGITS) if self.kept else None,
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


def check_rows(examples: Sequence[Example], config: AugmentConfig, origin: str | None = None) -> PairSampler:
    """The sampler of these rows under these settings; ``origin`` is the file that they come from, for messages.

    Raises:
        InputError: if the rows or the settings cannot serve it.
    """
    judge = parse_labels(config.labels).judge
    if judge:
        check_judges(judge, config)
    if (twice := repeated_id(examples)) is not None:
        one, other = islice((row.text[:SHOWN] for row in examples if row.id == twice), 2)
        raise InputError(
            f"{f'{origin}: ' if origin else ''}the id column holds {twice!r} twice (rows {one!r} and {other!r}); make "
            f"the ids unique or drop the column"
        )
    return PairSampler(class_numbers(examples, class_names(examples)), config.pairs, parse_lambda(config.lam))


class Workers(Protocol):
    """Who else can make shards; see :class:`~inversedmixup.cluster.Cluster`."""

    def shards(self, writer: RowWriter, numbers: Sequence[int]) -> Iterator[list[Row]]:
        """The rows that ``writer`` would make for these shards, in this order."""
        ...


def _shards(writer: RowWriter, numbers: range, run: RunFolder | None, workers: Workers | None) -> Iterator[list[Row]]:
    """Every shard's rows, in order; only those that the run folder does not hold are made."""
    if workers is None:
        yield from (_shard(writer, number, run) for number in numbers)
        return
    missing = [number for number in numbers if run is None or run.read(shard_name(number)) is None]
    made = workers.shards(writer, missing)
    for number in numbers:
        yield _shard(writer, number, run, lambda _: next(made))


def _shard(
    writer: RowWriter, number: int, run: RunFolder | None, make: Callable[[int], list[Row]] | None = None
) -> list[Row]:
    """A shard's rows, from the run folder if they are there, else made: by the writer if by nobody else."""
    stored = run.read(shard_name(number)) if run else None
    if stored is not None:
        return [Row(**row) for row in stored]
    rows = (make or writer.shard)(number)
    if run:
        run.write(shard_name(number), [dataclasses.asdict(row) for row in rows])
    return rows


def known_fluencies(writer: RowWriter, run: RunFolder | None, name: str = "fluencies") -> list[float]:
    """Mean token log-likelihoods of (at most 256 of) the training texts, recorded under a name."""
    examples = writer.examples
    picked = np.random.default_rng([writer.config.seed, 7]).permutation(len(examples))[:256]

    def measure() -> list[float]:
        texts = [examples[at].text for at in sorted(picked.tolist())]
        return [round(float(v), DIGITS) for v in writer.pair.llm.log_likelihood(texts)]

    return list(recorded(run, name, measure))


class RowWriter:
    """Turns row numbers into rows. It keeps no memory of earlier rows: any shard can be made anywhere, in any order.

    Args:
        pair: a pair after stage 2, with a head over ``classes``.
        examples: the labelled rows to mix; asked for those that a shard mixes, and no others.
        classes: class names.
        config: settings.
        cross_validated: see :class:`~inversedmixup.judges.Case`.
        folder: see :class:`~inversedmixup.judges.Case`.
        panel: the judges, if they are there already.
        sampler: of these rows under these settings, if it is there already.
    """

    def __init__(
        self, pair: Pair, examples: Sequence[Example], classes: Sequence[str], config: AugmentConfig, *,
        cross_validated: Callable[[Sequence[int]], np.ndarray] | None = None, folder: Path | None = None,
        panel: Panel | None = None, sampler: PairSampler | None = None,
    ) -> None:  # fmt: skip
        self.pair, self.examples, self.classes, self.config = pair, examples, list(classes), config
        self.sampler = sampler or check_rows(examples, config)
        self.policy = parse_labels(config.labels)
        self.folder = folder
        self._case = Case(pair, self.examples, self.classes, config, config.seed, cross_validated, folder)
        self._panel = panel

    @cached_property
    def panel(self) -> Panel | None:
        """The judges, if the label policy needs any; made when first asked for, if none were given."""
        if self._panel is not None:
            return self._panel
        return (
            make_panel(self.policy.judge, self._case, pooled=self.policy.kind == "pool") if self.policy.judge else None
        )

    def prepare_judges(self) -> None:
        """Make now what the judges need, from their files in the folder where they lie there."""
        if self.panel is not None:
            self.panel.prepare()

    def shard(self, number: int) -> list[Row]:
        """The rows of one shard, before the gate."""
        return self.rows(number, self.written(number))

    def written(self, number: int) -> Written:
        """The texts of one shard."""
        draws, streams = self._drawn(number)
        parents = sorted({at for draw in draws for at in (draw.first, draw.second)})
        # encoded for the shard, whatever others hold: so a row's last bits are the same wherever it is made
        embeddings = self.pair.task_model.encode([self.examples[at].text for at in parents], batch_size=ENCODED)
        first, second = (
            embeddings[np.searchsorted(parents, [getattr(draw, which) for draw in draws])]
            for which in ("first", "second")
        )
        lams = torch.tensor([draw.lam for draw in draws])
        return write_mixes(self.pair, first, second, lams, streams, self.config)

    def parents(self, number: int) -> list[tuple[Example, Example]]:
        """The two rows that each row of a shard lies between."""
        return self._parents(self._drawn(number)[0])

    def _parents(self, draws: Sequence[Draw]) -> list[tuple[Example, Example]]:
        return [(self.examples[draw.first], self.examples[draw.second]) for draw in draws]

    def _drawn(self, number: int) -> tuple[list[Draw], list[np.random.Generator]]:
        """What a shard mixes, and each row's random stream from there on."""
        streams = [row_stream(self.config.seed, number * SHARD_ROWS + at) for at in range(SHARD_ROWS)]
        return [self.sampler.draw(number * SHARD_ROWS + at, stream) for at, stream in enumerate(streams)], streams

    def rows(self, number: int, written: Written) -> list[Row]:
        """The rows that a shard's texts become under the label policy."""
        draws, _ = self._drawn(number)
        parents = self._parents(draws)
        assert written.class_probs is not None
        said = {"task": adjusted(written.class_probs, self._case.shares)}
        if self.panel is not None:
            said |= self.panel.hear(written.texts, written.reread)
        return [
            self._row(
                draw, parents[at], written, at, {name: named(probs[at], self.classes) for name, probs in said.items()}
            )
            for at, draw in enumerate(draws)
        ]

    def _row(
        self, draw: Draw, parents: tuple[Example, Example], written: Written, at: int,
        said: dict[str, dict[str, float] | None],
    ) -> Row:  # fmt: skip
        """One row; ``said`` holds what each judge says of its text."""
        soft = soft_label(parents[0].label, parents[1].label, draw.lam, self.classes)
        verdict = said[self.panel.verdict] if self.panel else None
        chosen = choose_label(self.policy, soft, verdict, self.config.label_temperature)
        names = by_source({**said, "soft": soft})
        return Row(
            id=f"aug-{draw.row}",
            text=written.texts[at],
            label=chosen.label,
            label_probs={name: _round(chosen.probs[name]) for name in self.classes},
            parents=[parent.id for parent in parents],
            lam=_round(draw.lam),
            lam_realised=written.lam_realised[at],
            cycle_similarity=written.cycle_similarity[at],
            fluency=written.fluency[at],
            labels=names,
            intruded=is_intruded(likeliest(verdict) if verdict else str(names["task"]), soft),
            seed=self.config.seed,
            reject_reason=chosen.refused,
        )


def _round(value: Any) -> float:  # noqa: ANN401 (float, numpy or torch scalar)
    return round(float(value), DIGITS)
