"""What the rows of a run show, counted in one pass: a million rows cost no more memory than a thousand."""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

from inversedmixup.labelled import Texts, class_counts, class_names, finder
from inversedmixup.same_text import normalised
from inversedmixup.schema import Example, Row

BINS = 10  # of the λ histograms
POINTS = 400  # of λ against λ̂
SHOWN = 6  # best rows, worst rows
PER_REASON = 2  # rejected rows shown of each reason
NEAR_COPY = 0.8  # share of common words from which a text counts as a near-copy
SEARCHED = 5000  # kept rows that are compared with every training text
UNKNOWN = "(unknown)"  # the class of a parent that is not there
COMPARED = 512  # training texts at a time


@dataclasses.dataclass
class PairIntrusion:
    """Manifold intrusion of the rows between two classes.

    No interval: mixes share rows, so that these say less than as many independent ones
    (:func:`~inversedmixup.rates.effective_size`), and which they share is not held here.
    """

    tried: int = 0
    intruded: int = 0

    @property
    def rate(self) -> float:
        """Share of intruded rows."""
        return self.intruded / self.tried


@dataclasses.dataclass(frozen=True)
class NearCopy:
    """A kept row with almost the words of a training text; ``shared`` is their Dice coefficient."""

    row: Row
    original: str
    shared: float


class Evidence:
    """Counts and samples over judged rows.

    Args:
        examples: the labelled rows that were mixed.

    Attributes:
        classes: class names.
        labels: rows per class: ``original``, ``kept``, ``rejected``.
        intruded: intruded rows: ``kept``, ``rejected``.
        lams: rows per tenth of λ: ``kept``, ``rejected``.
        points: (λ, λ̂) of the first :data:`POINTS` kept rows.
        pairs: intrusion by the classes of the parents, in alphabetical order; kept and rejected rows both.
        by_reason: a few rejected rows of each reason.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples, self._find = examples, finder(examples)
        self.classes = class_names(examples)
        self.labels = {"original": Counter(class_counts(examples)), "kept": Counter(), "rejected": Counter()}
        self.intruded = {"kept": 0, "rejected": 0}
        self.lams = {"kept": [0] * BINS, "rejected": [0] * BINS}
        self.points: list[tuple[float, float]] = []
        self.pairs: dict[tuple[str, str], PairIntrusion] = {}
        self.by_reason: dict[str, list[Row]] = {}
        self._best: list[tuple[float, int, Row]] = []
        self._worst: list[tuple[float, int, Row]] = []
        self._searched: list[Row] = []
        self._seen = 0

    def add(self, row: Row) -> None:
        """Count one row."""
        self._seen += 1
        state = "kept" if row.kept else "rejected"
        self.labels[state][row.label] += 1
        self.intruded[state] += row.intruded
        self.lams[state][min(int(row.lam * BINS), BINS - 1)] += 1
        pair = self.pairs.setdefault(self.classes_of(row), PairIntrusion())
        pair.tried, pair.intruded = pair.tried + 1, pair.intruded + row.intruded
        if row.kept:
            self._sample(row)
        else:
            of_reason = self.by_reason.setdefault(str(row.reject_reason), [])
            if len(of_reason) < PER_REASON:
                of_reason.append(row)

    def _sample(self, row: Row) -> None:
        """Remember a kept row where it is among the first, the best or the worst."""
        if len(self.points) < POINTS:
            self.points.append((row.lam, row.lam_realised))
        if len(self._searched) < SEARCHED:
            self._searched.append(row)
        # the running number breaks ties, so that rows themselves are never compared
        for heap, sign in ((self._best, 1), (self._worst, -1)):
            heapq.heappush(heap, (sign * row.cycle_similarity, -self._seen, row))
            if len(heap) > SHOWN:
                heapq.heappop(heap)

    def intrusion(self, *states: str) -> float | None:
        """Share of intruded rows among those that are ``kept``, ``rejected`` or either; ``None`` if there is none."""
        rows = sum(self.labels[state].total() for state in states)
        return sum(self.intruded[state] for state in states) / rows if rows else None

    def classes_of(self, row: Row) -> tuple[str, str]:
        """The classes of a row's parents, in alphabetical order."""
        first, second = sorted(parent.label for parent in self.parents_of(row))
        return first, second

    def parents_of(self, row: Row) -> list[Example]:
        """A row's parents."""
        return [self._find(parent) or Example(parent, "(not in the training file)", UNKNOWN) for parent in row.parents]

    def best(self) -> list[Row]:
        """Kept rows of the highest cycle similarity, the best first."""
        return [row for *_, row in sorted(self._best, key=lambda item: item[:2], reverse=True)]

    def worst(self) -> list[Row]:
        """Kept rows of the lowest cycle similarity, the worst first."""
        return [row for *_, row in sorted(self._worst, key=lambda item: item[:2], reverse=True)]

    @cached_property
    def near_copies(self) -> list[NearCopy]:
        """Kept rows (of the first :data:`SEARCHED`) that share nearly all words with a training text, worst first."""
        return near_copies(self._searched, Texts(self.examples))

    @property
    def searched(self) -> int:
        """How many kept rows :attr:`near_copies` looks at."""
        return len(self._searched)


def gather(examples: Sequence[Example], rows: Iterable[Row]) -> Evidence:
    """The evidence of a stream of rows."""
    evidence = Evidence(examples)
    for row in rows:
        evidence.add(row)
    return evidence


def near_copies(rows: Sequence[Row], originals: Sequence[str]) -> list[NearCopy]:
    """Rows whose set of words has a Dice coefficient of at least :data:`NEAR_COPY` with that of a training text."""
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [normalised(row.text) for row in rows]
    if not any(texts) or not originals:
        return []
    counter = CountVectorizer(binary=True, tokenizer=str.split, token_pattern=None, lowercase=False)
    ours = counter.fit_transform(texts)
    our_sizes = np.asarray(ours.sum(axis=1)).ravel()
    best, nearest = np.zeros(len(rows)), np.zeros(len(rows), dtype=int)
    for start in range(0, len(originals), COMPARED):  # rows × originals would be gigabytes for a million of these
        block = [normalised(text) for text in originals[start : start + COMPARED]]
        their_sizes = np.array([len(set(text.split())) for text in block])  # of all words, known here or not
        common = (ours @ counter.transform(block).T).toarray()
        shared = 2 * common / np.maximum(our_sizes[:, None] + their_sizes[None, :], 1)
        nearer = shared.max(axis=1) > best
        nearest[nearer], best[nearer] = start + shared[nearer].argmax(axis=1), shared[nearer].max(axis=1)
    found = [
        NearCopy(row, originals[original], float(dice))
        for row, original, dice in zip(rows, nearest.tolist(), best, strict=True)
        if dice >= NEAR_COPY
    ]
    return sorted(found, key=lambda copy: -copy.shared)
