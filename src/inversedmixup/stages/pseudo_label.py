"""Pseudo-labels (Lee 2013): sentences that the user has, but nobody has labelled, under the labels of the judges.

Of the same number of rows they are worth more than texts that an LLM writes, and take a fraction of the time
(docs/results.md, "Sentences that you have").
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from inversedmixup.errors import InputError
from inversedmixup.judges import Case, JudgeConfig, check_judges, judge_record, make_panel
from inversedmixup.judges.panel import Panel, by_source, named
from inversedmixup.labelled import class_counts
from inversedmixup.labels import JUDGES_HELP, RECOMMENDED, LabelConfig, LabelPolicy, choose_label, parse_labels
from inversedmixup.models.pair import Pair
from inversedmixup.options import CHOICE, at_least, option
from inversedmixup.runs import RunFolder, recorded, shard_name
from inversedmixup.same_text import Seen, words_of
from inversedmixup.schema import Example, LabelledText
from inversedmixup.stages import trust
from inversedmixup.stages.writer import DIGITS
from inversedmixup.terminal import progress

logger = logging.getLogger(__name__)

SHARD_TEXTS = 128
REASONS = {
    "known": "a labelled row has the same words",
    "duplicate": "an earlier text has the same words",
    "not_judged": "the judge abstained",
    "unsure": "the judges give its likeliest class less than --min-confidence",
}


@dataclasses.dataclass(frozen=True)
class PseudoLabelConfig(LabelConfig, JudgeConfig):
    """Settings of pseudo-labels."""

    GROUP: ClassVar[str] = "labels"

    labels: str = option(
        RECOMMENDED, f"pool or hard and a judge: {JUDGES_HELP}; "
        "pool keeps their probabilities, hard their class; a judge alone means hard"
    )  # fmt: skip
    min_confidence: float = option(
        0.0,
        "smallest probability of a label that is kept; leaving out what is unsure did not help where it was tried",
        decides=CHOICE,
    )
    seed: int = option(0, "seed of everything random but the choice of examples")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "min_confidence", "seed")
        if self.min_confidence > 1:
            raise InputError(f"min_confidence {self.min_confidence}: is a probability; must be at most 1")


def check_policy(labels: str, config: JudgeConfig) -> LabelPolicy:
    """A label policy for sentences without parents.

    Raises:
        InputError: for one that asks no judge, or needs what lies between two rows.
    """
    policy = parse_labels(labels)
    if policy.judge is None or policy.kind not in ("pool", "hard"):
        raise InputError(
            f"labels {labels!r}: a sentence of yours lies between no two rows, so only a judge can label it; use pool "
            f"or hard and a judge, as in {RECOMMENDED}"
        )
    check_judges(policy.judge, config)
    return policy


def run_pseudo_label(
    pair: Pair, examples: Sequence[Example], classes: Sequence[str], texts: Sequence[Example],
    config: PseudoLabelConfig, take: Callable[[LabelledText], None], run: RunFolder | None = None, *,
    known: Sequence[Example] = (), cross_validated: Callable[[Sequence[int]], np.ndarray] | None = None,
    panel: Panel | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Label texts; each shard of :data:`SHARD_TEXTS` is recorded when finished, and serves runs with more texts.

    Args:
        pair: a pair whose task model is fitted to ``examples``.
        examples: the labelled rows.
        classes: class names.
        texts: what is to be labelled; their own labels are not looked at.
        config: settings.
        take: is given each text with its label, in order, with a reason where it is not to be trained on; none is held
            here.
        run: where finished shards are recorded and found again.
        known: labelled rows beside ``examples`` whose texts are not to be trained on either, such as test rows.
        cross_validated: see :class:`~inversedmixup.judges.Case`.
        panel: the judges, if they are there already.

    Returns:
        Counts (``asked``, ``labelled``, ``rejected`` by reason, ``classes`` of the labelled ones) and the record of
        the ``judge``: how often he is right on rows of the user.

    Raises:
        InputError: for settings that the rows cannot serve, or a judge that is not to be trusted.
    """
    policy = check_policy(config.labels, config)
    config.check_descriptions(classes)
    case = Case(pair, examples, classes, config, config.seed, cross_validated, run.folder if run else None)
    panel = panel or make_panel(str(policy.judge), case, pooled=policy.kind == "pool")
    record = recorded(run, "judge", lambda: judge_record(panel, examples, classes, seed=config.seed))
    logger.info("%s; %d texts to label", trust.describe(record), len(texts))
    trust.warn_of_better_alone(record)
    trust.check_alone(record, config.labels, class_counts(examples), force=config.force_judge)
    labelled, seen, reasons, found = Seen(), Seen(), Counter[str](), Counter[str]()
    for rows in (examples, known):
        for example in rows:
            labelled.add(words_of(example.text))
    with progress("labels", len(texts)) as advance:
        for number, start in enumerate(range(0, len(texts), SHARD_TEXTS)):
            part = texts[start : start + SHARD_TEXTS]
            make = partial(_labelled, part, pair, panel, policy, config)
            for stored in recorded(run, shard_name(number), make, fits=partial(_is_of, part)):
                row, words = LabelledText(**stored), words_of(stored["text"])
                if words in labelled or words in seen:
                    row.reject_reason = "known" if words in labelled else "duplicate"
                elif row.reject_reason is None and row.confidence < config.min_confidence:
                    row.reject_reason = "unsure"
                seen.add(words)
                (reasons if row.reject_reason else found)[row.reject_reason or row.label] += 1
                take(row)
            advance(len(part))
    if not found:
        logger.warning("none of the %d texts got a label; see the reasons", len(texts))
    return {
        "asked": len(texts), "labelled": found.total(), "rejected": dict(reasons.most_common()),
        "classes": dict(found.most_common()), "judge": record,
    }  # fmt: skip


def _is_of(part: Sequence[Example], records: Sequence[dict[str, Any]]) -> bool:
    """Whether records are of these texts: the file may have grown since."""
    return [(row.id, row.text) for row in part] == [(record["id"], record["text"]) for record in records]


def _labelled(
    part: Sequence[Example], pair: Pair, panel: Panel, policy: LabelPolicy, config: PseudoLabelConfig
) -> list[dict[str, Any]]:
    """Records of some texts, each with what every judge says."""
    texts, classes = [row.text for row in part], pair.task_model.classes
    said = panel.hear(texts, pair.task_model.encode(texts))
    nobody = dict.fromkeys(classes, 0.0)  # no parent says anything
    out = []
    for at, row in enumerate(part):
        answers = {name: named(probs[at], classes) for name, probs in said.items()}
        judged = answers[panel.verdict]
        chosen = choose_label(policy, nobody, judged, config.label_temperature)
        out.append(
            LabelledText(
                id=row.id,
                text=row.text,
                label=chosen.label,
                confidence=round(judged[chosen.label], DIGITS) if judged else 0.0,
                label_probs={name: round(value, DIGITS) for name, value in chosen.probs.items()},
                labels=by_source(answers),
                reject_reason=chosen.refused,
            )
        )
    return [dataclasses.asdict(row) for row in out]
