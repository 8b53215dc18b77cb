"""inversedMixup itself, and what it is made of: pairs, λ and labels varied one at a time.

Texts are written once for each pair policy and λ policy of a split; variants that differ in their labels share them,
so that they differ in nothing else. A pair that is tried costs ``candidates`` LLM texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from inversedmixup.baselines import THREE, Added, Method, Split
from inversedmixup.gate import Gate
from inversedmixup.labels import RECOMMENDED
from inversedmixup.runs import recorded
from inversedmixup.schema import Row
from inversedmixup.sealed import digest
from inversedmixup.stages.augment import AugmentConfig, RowWriter, gated, known_fluencies, shards_at_most
from inversedmixup.stages.downstream import original_weights, row_targets
from inversedmixup.stages.writer import Written

ENDS = "grid:1,0"  # no mixing: each text is written at one parent or the other


def augmented(split: Split) -> Added:
    """What ``augment`` makes of these rows under the same settings; its judge is not measured before it is used."""
    return _added(kept_rows(split, split.config), split)


def variant(pairs: str, labels: str, lam: str | None = None, *, accept: str = "auto") -> Callable[[Split], Added]:
    """A method with this pair policy and label policy.

    Args:
        pairs: the pair policy.
        labels: the label policy.
        lam: the λ policy; ``None``: the split's.
        accept: the gate's rule on labels, see ``--accept-labels``.
    """

    def added(split: Split) -> Added:
        config = dataclasses.replace(
            split.config, pairs=pairs, labels=labels, lam=lam or split.config.lam, accept_labels=accept
        )
        return _added(kept_rows(split, config), split)

    return added


def _added(rows: list[Row], split: Split) -> Added:
    return Added([row.text for row in rows], row_targets(rows, split.classes))


def kept_rows(split: Split, config: AugmentConfig) -> list[Row]:
    """The first ``n`` rows that pass the gate, of at most ``tries · n`` (rounded up to whole shards)."""
    return list(islice((row for row in tried_rows(split, config) if row.kept), config.n))


def tried_rows(split: Split, config: AugmentConfig) -> Iterator[Row]:
    """Every row that is tried, with what the gate says of it: ``tries · n``, rounded up to whole shards."""
    writer = RowWriter(split.pair, split.examples, split.classes, config, panel=split.panel(config.labels))
    originals = [example.text for example in split.examples]
    gate = Gate(config, originals, known_fluencies(writer, split.run, f"fluencies/{split.name}"))
    return gated(gate, writer, _shards(split, writer))


def _shards(split: Split, writer: RowWriter) -> Iterator[list[Row]]:
    """Rows under the writer's label policy, shard by shard; texts are recorded, and written by nobody twice."""
    config = writer.config
    lam = config.lam.replace(":", "-")
    lam = lam if len(lam) <= 64 else digest(lam)[:16]  # a long grid is no file name
    for number in range(shards_at_most(config)):
        name = f"{config.pairs}-{lam}-{number:03d}"
        stored = recorded(split.store, name, partial(_as_record, writer, number))
        # read again whether or not it was just written, so that a resumed run has the same numbers
        reread = split.pair.task_model.encode(stored["texts"])
        probs = split.pair.task_model.predict_proba(reread)
        yield writer.rows(number, Written(**stored, reread=reread, class_probs=probs))


def _as_record(writer: RowWriter, number: int) -> dict[str, Any]:
    written = writer.written(number)
    return {name: getattr(written, name) for name in ("texts", "lam_realised", "cycle_similarity", "fluency")}


def weighted(split: Split) -> Added:
    """Mixes towards rarer classes, beside originals that count the more the rarer their class is."""
    added = variant("balanced", RECOMMENDED)(split)
    weights = original_weights(split.examples, split.classes, even=True)
    return dataclasses.replace(added, original_weights=weights)


METHODS = (
    Method("inversed", "what `augment` does with the same settings", added=augmented, writes=True, tunes=None),
    Method(
        "inversed-reconstruction", "λ of 0 and 1 only: originals, written again from their embeddings",
        added=variant("same-class", "soft", ENDS), writes=True, within=True,
    ),
    Method(
        "inversed-reconstruction-pooled", "the same, labelled by what task model and tuned LLM say together",
        added=variant("same-class", RECOMMENDED, ENDS), writes=True, tunes=1, within=True,
    ),
    Method(
        "inversed-same-class", "mixes within a class, kept where the task model agrees",
        added=variant("same-class", "soft"), writes=True, within=True,
    ),
    Method(
        "inversed-pooled", "mixes within a class, labelled by what task model and tuned LLM say together",
        added=variant("same-class", RECOMMENDED), writes=True, tunes=1, within=True,
    ),
    Method(
        "inversed-soft", "mixes across classes, the interpolated label: the paper's soft variant",
        added=variant("cross-class", "soft", accept="any"), writes=True,
    ),
    Method(
        "inversed-judged", "mixes across classes, the class that the tuned LLM sees: the paper's hard variant",
        added=variant("cross-class", "hard:tuned"), writes=True, tunes=1,
    ),
    Method(
        "inversed-mitigated", "mixes across classes, the interpolated label unless the tuned LLM contradicts it",
        added=variant("cross-class", "mitigated:tuned"), writes=True, tunes=1,
    ),
    Method(
        "inversed-cross-pooled", "mixes across classes, labelled by what task model and tuned LLM say together",
        added=variant("cross-class", RECOMMENDED), writes=True, tunes=1,
    ),
    Method(
        "inversed-cross-incontext", "the same mixes, labelled by task model, tuned LLM and in-context tuned LLM",
        added=variant("cross-class", THREE), writes=True, tunes=2,
    ),
    Method(
        "inversed-balanced", "mixes towards rarer classes, labelled by what task model and tuned LLM say together",
        added=variant("balanced", RECOMMENDED), writes=True, tunes=1,
    ),
    Method(
        "inversed-weighted", "the same, beside originals of rarer classes weighted up, as in class-weights",
        added=weighted, writes=True, tunes=1,
    ),
)  # fmt: skip
