"""The row schema: a labelled sentence, an augmented one, one that judges have labelled."""

from __future__ import annotations

import dataclasses

from inversedmixup.labels import JUDGES


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled sentence; ``id`` is its id column or else its row number, counted from 0."""

    id: str
    text: str
    label: str


PERSON = "person"  # who relabels rows in the explorer
SOURCES = ("soft", *JUDGES, "agreement", "pool", PERSON)  # of labels


@dataclasses.dataclass
class Row:
    """One augmented sentence and everything known about it.

    Attributes:
        id: ``aug-`` and the row's number in the stream of pairs.
        text: the sentence.
        label: the chosen label (by the label policy).
        label_probs: probability of each class under the label policy.
        parents: ids of the two source rows.
        lam: mixing ratio λ, the weight of the first parent.
        lam_realised: λ̂, where the re-read text projects on the segment between the parents, in [0, 1].
        cycle_similarity: cosine between the re-read text and the mixed embedding.
        fluency: mean token log-likelihood under the LLM without soft tokens, in nats.
        labels: what each of :data:`SOURCES` says: the interpolated label, the judges, their agreement and pool, a
            person (``None`` for one that was not asked or abstained).
        intruded: whether the judge of the label policy contradicts interpolation (see ``labels.is_intruded``); the task
            model speaks where there is no judge or it abstained, and a person's label goes before both.
        seed: the run's seed.
        kept: whether the gate let it through.
        reject_reason: why not; ``None`` if kept.
    """

    id: str
    text: str
    label: str
    label_probs: dict[str, float]
    parents: list[str]
    lam: float
    lam_realised: float
    cycle_similarity: float
    fluency: float
    labels: dict[str, str | None]
    intruded: bool
    seed: int
    kept: bool = True
    reject_reason: str | None = None


@dataclasses.dataclass
class LabelledText:
    """A sentence of the user's that judges have labelled.

    Attributes:
        id: its id column or else its row number, counted from 0.
        text: the sentence.
        label: the likeliest class under the label policy; empty if no judge answered.
        confidence: its probability as the judges say it, before ``--label-temperature``; 0 if none answered.
        label_probs: probability of each class under the label policy.
        labels: what each judge names, and their ``agreement`` and ``pool`` (``None`` where one abstained).
        reject_reason: why it is not to be trained on; ``None`` if it is.
    """

    id: str
    text: str
    label: str
    confidence: float
    label_probs: dict[str, float]
    labels: dict[str, str | None]
    reject_reason: str | None = None
