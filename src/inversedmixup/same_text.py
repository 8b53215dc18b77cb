"""When two texts are the same: case and punctuation make no other text."""

from __future__ import annotations

import hashlib
import re

import numpy as np


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


def fingerprint(words: str) -> int:
    """64 bits that stand for a text."""
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big")
