"""EDA (Wei & Zou 2019, "EDA: easy data augmentation techniques for boosting performance on text classification tasks").

Each new row is an original after one of four operations, drawn at random: synonyms for n words, n synonyms inserted,
n pairs of words swapped, or each word left out with probability α; n = α · words, at least 1.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np

from inversedmixup.baselines import Added, Method, Split
from inversedmixup.baselines.edits import copies, edited, recommended

logger = logging.getLogger(__name__)

Synonyms = Callable[[str], Sequence[str]]
Words = list[str]


def added(split: Split) -> Added:
    """Edited copies of the originals."""
    alpha, _ = recommended(len(split.examples))
    return edited(split, 31, partial(edit, alpha=alpha, synonyms=wordnet_synonyms()))


def lexicon() -> dict[str, str]:
    """Where synonyms come from."""
    return {"synonyms": "WordNet" if wordnet_synonyms() else "none"}


def edit(words: Words, rng: np.random.Generator, *, alpha: float, synonyms: Synonyms | None) -> Words:
    """The words of one new row.

    Args:
        words: those of an original.
        rng: the row's stream.
        alpha: the share of words to change.
        synonyms: of a lower-case word; ``None``: there is no lexicon. Then nothing is replaced, and a copy of a word
            is inserted in place of its synonym.
    """
    if not words:
        return words
    count = max(1, int(alpha * len(words)))
    operations: list[Callable[[], Words]] = [
        lambda: insert(words, count, synonyms or (lambda word: [word]), rng),
        lambda: swap(words, count, rng),
        lambda: delete(words, alpha, rng),
    ]
    if synonyms:
        operations.append(lambda: replace(words, count, synonyms, rng))
    return operations[rng.integers(len(operations))]()


def replace(words: Words, count: int, synonyms: Synonyms, rng: np.random.Generator) -> Words:
    """Up to ``count`` words, but no stop words, become one of their synonyms."""
    changed = list(words)
    candidates = [at for at, word in enumerate(words) if (core := _core(word)) and synonyms(core)]
    for at in rng.permutation(np.array(candidates, dtype=int))[:count].tolist():
        lead, tail = re.split(r"\w.*\w|\w", words[at], maxsplit=1, flags=re.S)  # punctuation around the word stays
        changed[at] = lead + _one_of(synonyms(_core(words[at])), rng) + tail
    return changed


def insert(words: Words, count: int, synonyms: Synonyms, rng: np.random.Generator) -> Words:
    """``count`` times a synonym of a random word, but no stop word, at a random place."""
    changed = list(words)
    offered = [found for word in words if (core := _core(word)) and (found := synonyms(core))]
    for _ in range(count if offered else 0):
        changed.insert(int(rng.integers(len(changed) + 1)), _one_of(offered[int(rng.integers(len(offered)))], rng))
    return changed


def swap(words: Words, count: int, rng: np.random.Generator) -> Words:
    """``count`` times two random words change places."""
    changed = list(words)
    for _ in range(count if len(words) > 1 else 0):
        one, other = rng.choice(len(words), size=2, replace=False)
        changed[one], changed[other] = changed[other], changed[one]
    return changed


def delete(words: Words, share: float, rng: np.random.Generator) -> Words:
    """Each word is left out with probability ``share``; one stays in any case."""
    kept = [word for word, out in zip(words, rng.random(len(words)) < share, strict=True) if not out]
    return kept or [_one_of(words, rng)]


@cache
def wordnet_synonyms() -> Synonyms | None:
    """Synonyms from WordNet through nltk, or ``None`` where the one or the other is not installed."""
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except (ImportError, LookupError):
        logger.warning(
            "eda: WordNet is not there, so words are not replaced by synonyms, and copies of words are inserted; "
            "pip install nltk and python -m nltk.downloader wordnet"
        )
        return None

    @cache
    def synonyms(word: str) -> Sequence[str]:
        names = {name.replace("_", " ") for synset in wordnet.synsets(word) for name in synset.lemma_names()}
        return sorted(name for name in names if name.lower() != word)

    return synonyms


def _core(word: str) -> str:
    """The word in lower case without punctuation around it; nothing if it is a stop word."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    core = re.sub(r"^\W+|\W+$", "", word).lower()
    return "" if core in ENGLISH_STOP_WORDS else core


def _one_of(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


METHODS = (
    Method(
        "eda", "synonyms, insertions, swaps and deletions of words (Wei & Zou 2019)",
        added=added, texts=copies, facts=lexicon,
    ),
)  # fmt: skip
