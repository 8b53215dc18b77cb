"""The gate: which augmented rows are good enough, and why the others are not.

No single score is enough (word salad can be confident, a fluent text can be about something else), so a row must
pass every check. Rejected rows are kept beside the output with the first reason that applied.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

from inversedmixup.data import Row
from inversedmixup.labelled import fingerprint
from inversedmixup.options import option
from inversedmixup.reconstruction import token_f1

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
class GateConfig:
    """Settings of the gate."""

    min_words: int = option(2, "fewest words of a kept text")
    min_cycle: float = option(0.4, "smallest cycle similarity of a kept text")
    max_parent_overlap: float = option(0.9, "largest token F1 with a parent")
    fluency_margin: float = option(1.0, "nats per token that a text may read worse than the worst 5 % of yours")
    accept_labels: str = option(
        "auto", "the task model must see the row's label (agree), a parent's class (parents), or anything (any); "
        "auto: any where --labels has a judge, else agree", choices=("auto", "agree", "parents", "any"),
    )  # fmt: skip


def normalised(text: str) -> str:
    """The words of a text, lower-cased, without punctuation: two texts with the same words are duplicates."""
    return " ".join(re.findall(r"\w+", text.lower()))


def words_of(text: str) -> str:
    """By what a text is known again: its words, or all of it if it has none."""
    return normalised(text) or text


class Seen:
    """Remembers texts by fingerprints of 8 bytes each: of a million, a new one is taken for an old one once in 10¹³."""

    BATCH = 65536

    def __init__(self) -> None:
        self._sorted, self._new = np.empty(0, dtype=np.uint64), set[int]()

    def add(self, words: str) -> None:
        """Remember a text."""
        self._new.add(fingerprint(words))
        if len(self._new) >= max(self.BATCH, len(self._sorted) // 8):  # a set takes ten times the memory
            self._sorted = np.union1d(self._sorted, np.fromiter(self._new, dtype=np.uint64, count=len(self._new)))
            self._new.clear()

    def __contains__(self, words: str) -> bool:
        number = fingerprint(words)
        at = int(np.searchsorted(self._sorted, np.uint64(number)))
        return number in self._new or (at < len(self._sorted) and int(self._sorted[at]) == number)


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
        allowed = {"auto": (row.label,), "agree": (row.label,), "parents": parent_labels}.get(config.accept_labels)
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
