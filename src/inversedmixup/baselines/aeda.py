"""AEDA (Karimi et al. 2021, "AEDA: an easier data augmentation technique for text classification").

Each new row is an original with punctuation marks in between; words and their order stay. As many copies as EDA.
"""

from __future__ import annotations

import numpy as np

from inversedmixup.baselines import Added, Method, Split
from inversedmixup.baselines.edits import copies, edited

MARKS = (".", ";", "?", ":", "!", ",")  # section 3 of the paper, as is the third
LARGEST_SHARE = 1 / 3  # of marks to words


def added(split: Split) -> Added:
    """Copies of the originals with punctuation inserted."""
    return edited(split, 32, punctuate)


def punctuate(words: list[str], rng: np.random.Generator) -> list[str]:
    """The words with 1 to a third as many marks, each before another word."""
    if not words:
        return words
    count = rng.integers(1, max(1, int(LARGEST_SHARE * len(words))) + 1)
    places = set(rng.choice(len(words), size=count, replace=False).tolist())
    changed = []
    for at, word in enumerate(words):
        changed += [MARKS[rng.integers(len(MARKS))], word] if at in places else [word]
    return changed


METHODS = (Method("aeda", "punctuation inserted at random (Karimi et al. 2021)", added=added, texts=copies),)
