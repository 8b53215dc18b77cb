"""The gate: which augmented rows are good enough, and why the others are not.

No single score is enough (word salad can be confident, a fluent text can be about something else), so a row must
pass every check. Rejected rows are kept beside the output with the first reason that applied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from inversedmixup.options import CHOICE, Options, option
from inversedmixup.reconstruction import token_f1
from inversedmixup.same_text import Seen, normalised
from inversedmixup.schema import Row

REASONS = {
    "empty": "the LLM wrote nothing",
    "too_short": "fewer words than --min-words",
    "copy_of_parent": "nearly the words of a parent (--max-parent-overlap)",
    "duplicate": "the same words as a training text or an earlier row",
    "low_cycle_similarity": "re-read, it is not where it was meant to be (--min-cycle)",
    "low_fluency": "reads badly to the LLM (--fluency-margin)",
    "intruded": "the judge sees a class that holds less than half of the interpolated label (--labels drop)",
    "not_judged": "the judge abstained (--labels hard, --labels pool)",
    "label_contradicted": "the task model sees a class that --accept-labels does not allow",
}


@dataclasses.dataclass(frozen=True)
class GateConfig(Options):
    """Settings of the gate."""

    GROUP: ClassVar[str] = "gate"

    min_words: int = option(2, "fewest words of a kept text", decides=CHOICE)
    min_cycle: float = option(0.4, "smallest cycle similarity of a kept text", decides=CHOICE)
    max_parent_overlap: float = option(0.9, "largest token F1 with a parent", decides=CHOICE)
    fluency_margin: float = option(
        1.0, "nats per token that a text may read worse than the worst 5 % of yours", decides=CHOICE
    )
    accept_labels: str = option(
        "auto", "the task model must see the row's label (agree), a parent's class (parents), or anything (any); "
        "auto: any where --labels has a judge, else agree", choices=("auto", "agree", "parents", "any"), decides=CHOICE,
    )  # fmt: skip

    @property
    def accepted(self) -> str:
        """``accept_labels``, and what ``auto`` comes to where nothing is known of a judge."""
        return "agree" if self.accept_labels == "auto" else self.accept_labels


class Gate:
    """Judges rows in their order; remembers the texts that passed, for the duplicates.

    Args:
        config: thresholds.
        originals: the training texts.
        fluencies: mean token log-likelihoods of the training texts, in nats.
    """

    def __init__(self, config: GateConfig, originals: Iterable[str], fluencies: Sequence[float]) -> None:
        self.config = config
        self.fluency_floor = float(np.quantile(fluencies, 0.05)) - config.fluency_margin
        self._seen = Seen()
        for text in originals:
            self._seen.add(normalised(text))

    def judge(self, row: Row, parents: tuple[str, str], parent_labels: tuple[str, str]) -> Row:
        """The row with ``kept`` and ``reject_reason`` set; one that the label policy refused comes with its reason."""
        reason = self._reason(row, parents, parent_labels)
        if reason is None:
            self._seen.add(normalised(row.text))
        return dataclasses.replace(row, kept=reason is None, reject_reason=reason)

    def _reason(self, row: Row, parents: tuple[str, str], parent_labels: tuple[str, str]) -> str | None:
        config, words = self.config, normalised(row.text)
        allowed = {"agree": (row.label,), "parents": parent_labels}.get(config.accepted)
        overlap = max(token_f1(words, normalised(parent)) for parent in parents)
        checks = (
            ("empty", not words),
            ("too_short", len(words.split()) < config.min_words),
            ("copy_of_parent", overlap > config.max_parent_overlap),
            ("duplicate", words in self._seen),
            ("low_cycle_similarity", row.cycle_similarity < config.min_cycle),
            ("low_fluency", row.fluency < self.fluency_floor),
            (str(row.reject_reason), row.reject_reason is not None),
            ("label_contradicted", allowed is not None and row.labels["task"] not in allowed),
        )
        return next((name for name, failed in checks if failed), None)
