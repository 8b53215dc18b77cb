"""When two texts are the same: case, punctuation and spelling of accents make no other text."""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np

# written without spaces: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han; each letter counts as a word
UNSPACED = re.compile("([\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")

ZERO_WIDTH_SPACE = "\u200b"


def normalised(text: str) -> str:
    """The words of a text, lower-cased, without punctuation: two texts with the same words are duplicates."""
    text = unicodedata.normalize("NFC", text.lower())
    return " ".join(re.findall(r"\w+", text) if text.isascii() else _words(text))


def _words(text: str) -> list[str]:
    """The same for any script; vowel signs and accents belong to their letters, which regular expressions leave out.

    What is not to be seen (soft hyphens, joiners, marks of direction: category Cf) is left out; a zero-width space does
    part words, as in Thai and Khmer.
    """
    letters, inside, apart = list[str](), False, False
    for letter in text:
        category = unicodedata.category(letter)
        if category == "Cf" and letter != ZERO_WIDTH_SPACE:
            continue
        kind = category[0]
        if inside and kind == "M":
            letters.append(letter)
            continue
        before, apart = apart, UNSPACED.match(letter) is not None
        inside = letter == "_" or kind in "LN"
        letters.append((" " if apart or before else "") + letter if inside else " ")
    return "".join(letters).split()


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
