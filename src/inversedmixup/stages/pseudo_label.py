"""Pseudo-labels (Lee 2013): sentences that the user has, but nobody has labelled, under the labels of the judges.

Of the same number of rows they are worth more than texts that an LLM writes, and cost a thirtieth
(docs/evidence.md): no text is lost, and none is between two classes that is not there in life.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from inversedmixup.data import SOURCES, Example, LabelledText
from inversedmixup.errors import InputError
from inversedmixup.gate import Seen, normalised
from inversedmixup.judges import Case, JudgeConfig, check_judges, judge_record, make_panel
from inversedmixup.judges.panel import Panel, named
from inversedmixup.labelled import class_counts
from inversedmixup.labels import LabelConfig, LabelPolicy, choose_label, likeliest, parse_labels
from inversedmixup.models.pair import Pair
from inversedmixup.options import at_least, option
from inversedmixup.runs import RunFolder, recorded, shard_name
from inversedmixup.stages import trust
from inversedmixup.stages.writer import DIGITS
from inversedmixup.terminal import progress

logger = logging.getLogger(__name__)

SHARD_TEXTS = 128
REASONS = {
    "not_judged": "the judge abstained",
    "unsure": "its likeliest class is less probable than --min-confidence",
    "known": "a labelled row has the same words",
}


@dataclasses.dataclass(frozen=True)
class PseudoLabelConfig(LabelConfig, JudgeConfig):
    """Settings of pseudo-labels."""

    min_confidence: float = option(
        0.0, "smallest probability of a label that is kept; leaving out what is unsure did not help where it was tried"
    )

    def __post_init__(self) -> None:
        for part in (LabelConfig, JudgeConfig):
            part.__post_init__(self)
        at_least(self, 0, "min_confidence")


def check_policy(labels: str, config: JudgeConfig) -> LabelPolicy:
    """A label policy for sentences without parents.

    Raises:
        InputError: for one that asks no judge, or needs what lies between two rows.
    """
    policy = parse_labels(labels)
    if policy.judge is None or policy.kind not in ("pool", "hard"):
        raise InputError(
            f"labels {labels!r}: a sentence of yours lies between no two rows, so only a judge can label it; use pool "
            f"or hard and a judge, as in pool:task+tuned"
        )
    check_judges(policy.judge, config)
    return policy


def run_pseudo_label(
    pair: Pair, examples: Sequence[Example], classes: Sequence[str], texts: Sequence[Example],
    config: PseudoLabelConfig, take: Callable[[LabelledText], None], *, seed: int, run: RunFolder | None = None,
    cross_validated: Callable[[Sequence[int]], np.ndarray] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Label every text; each shard of :data:`SHARD_TEXTS` is recorded when it is finished.

    Args:
        pair: a pair whose task model is fitted to ``examples``.
        examples: the labelled rows.
        classes: class names.
        texts: what is to be labelled; their own labels are not looked at.
        config: settings.
        take: is given each text with its label, in order; none is held here.
        seed: decides which rows are shown in prompts, and all that is random about a judge's training.
        run: where finished shards are recorded and found again.
        cross_validated: see :class:`~inversedmixup.judges.Case`.

    Returns:
        Counts (``asked``, ``labelled``, ``rejected`` by reason, ``classes`` of the labelled ones) and the record of
        the ``judge``: how often he is right on rows of the user.

    Raises:
        InputError: for settings that the rows cannot serve, or a judge that is not to be trusted.
    """
    policy = check_policy(config.labels, config)
    case = Case(pair, examples, classes, config, seed, cross_validated, run.folder if run else None)
    panel = make_panel(str(policy.judge), case, pooled=policy.kind == "pool")
    record = recorded(run, "judge", lambda: judge_record(panel, examples, classes, seed=seed))
    logger.info("%s", trust.describe(record))
    trust.check_alone(record, config.labels, class_counts(examples), force=config.force_judge)
    known, reasons, found = Seen(), Counter[str](), Counter[str]()
    for example in examples:
        known.add(normalised(example.text))
    with progress("labels", len(texts)) as advance:
        for number, start in enumerate(range(0, len(texts), SHARD_TEXTS)):
            part = texts[start : start + SHARD_TEXTS]
            for row in recorded(run, shard_name(number), partial(_labelled, part, pair, panel, config)):
                row = LabelledText(**row)
                row.reject_reason = _reason(row, known, config)
                (reasons if row.reject_reason else found)[row.reject_reason or row.label] += 1
                take(row)
            advance(len(part))
    return {
        "asked": len(texts), "labelled": found.total(), "rejected": dict(reasons.most_common()),
        "classes": dict(found.most_common()), "judge": record,
    }  # fmt: skip


def _labelled(part: Sequence[Example], pair: Pair, panel: Panel, config: PseudoLabelConfig) -> list[dict[str, Any]]:
    """Records of some texts, each with what every judge says."""
    texts, policy = [row.text for row in part], parse_labels(config.labels)
    said = panel.hear(texts, pair.task_model.encode(texts))
    nobody = dict.fromkeys(pair.task_model.classes, 0.0)  # no parent says anything
    out = []
    for at, row in enumerate(part):
        answers = {name: named(probs[at], pair.task_model.classes) for name, probs in said.items()}
        chosen = choose_label(policy, nobody, answers[panel.verdict], config.label_temperature)
        labels = {name: likeliest(probs) for name, probs in answers.items() if probs}
        out.append(
            LabelledText(
                row.id, row.text, chosen.label, {name: round(p, DIGITS) for name, p in chosen.probs.items()},
                {source: labels.get(source) for source in SOURCES}, chosen.refused,
            )
        )  # fmt: skip
    return [dataclasses.asdict(row) for row in out]


def _reason(row: LabelledText, known: Seen, config: PseudoLabelConfig) -> str | None:
    """Why a text is not to be trained on, of :data:`REASONS`."""
    if normalised(row.text) in known:
        return "known"
    if row.reject_reason is None and row.label_probs[row.label] < config.min_confidence:
        return "unsure"
    return row.reject_reason
