"""Pseudo-labels (Lee 2013): real sentences that nobody has labelled, under the labels that new texts would get.

What new texts are to be measured against where such sentences are at hand: the same judges, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from inversedmixup.baselines import Added, Method, Split
from inversedmixup.data import iter_texts
from inversedmixup.errors import InputError
from inversedmixup.same_text import words_of

if TYPE_CHECKING:
    from inversedmixup.benchmark import BenchmarkConfig


def check(config: BenchmarkConfig) -> None:
    """Refuse to run without a file of texts.

    Raises:
        InputError: if there is none.
    """
    if config.unlabelled is None:
        raise InputError("method pseudo-label: needs sentences without labels; give a file of them with --unlabelled")


def of_file(split: Split) -> Added:
    """``n`` texts of ``--unlabelled``."""
    assert split.config.unlabelled is not None
    return of_texts(split, iter_texts([split.config.unlabelled], split.config.text_column))


def of_texts(split: Split, texts: Iterable[str]) -> Added:
    """``n`` of these texts, drawn at random, with the labels of the judges; none is trained or measured on already."""
    known = {words_of(row.text) for row in split.examples} | split.measured
    different = {words_of(text): text for text in texts}
    others = [text for words, text in different.items() if words not in known]
    drawn = split.stream(35).permutation(len(others))[: split.config.n]
    return split.labelled([others[at] for at in sorted(drawn.tolist())])


METHODS = (
    Method(
        "pseudo-label", "real texts of --unlabelled, labelled as inversed-pooled is; nothing is written",
        added=of_file, tunes=1, texts=lambda _, config: config.n, check=check,
    ),
)  # fmt: skip
