"""The stream of unlabelled text that stage 1 trains on: chunks of a corpus that is never held whole in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from inversedmixup.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Texts read at a time, as they are trained on, and the order in which this pass goes through them."""

    texts: list[str]
    order: np.ndarray
    targets: list[list[int]]


def chunks(
    texts: Callable[[], Iterator[str]], *, start: int, size: int, lower: float, seed: int,
    targets: Callable[[list[str]], list[list[int]]],
) -> Iterator[Chunk]:  # fmt: skip
    """Chunks number ``start``, ``start + 1``, … of ``size`` texts each, over and over through the corpus.

    The number shuffles a chunk. Which of its texts are lower-cased depends on its place in the corpus, so that every
    pass sees the same texts and their embeddings can be kept.

    Raises:
        InputError: if the corpus is empty.
    """
    number = 0
    while True:
        first = number
        for read in in_lists(texts(), size):
            if number >= start:
                seen = varied(read, lower, [seed, number - first])
                order = np.random.default_rng([seed, number, 2]).permutation(len(read))
                yield Chunk(seen, order, targets(seen))
            number += 1
        if number == first:
            raise InputError("the corpus has no usable text to train on")


def in_lists(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    """The texts in lists of ``size``."""
    while read := list(islice(texts, size)):
        yield read


def varied(texts: list[str], share: float, seed: list[int]) -> list[str]:
    """A random share lower-cased, its final full stops stripped: many labelled sets are lower-case and unpunctuated."""
    lowered = np.random.default_rng(seed).random(len(texts)) < share
    return [text.lower().rstrip(" .") if low else text for text, low in zip(texts, lowered, strict=True)]


def ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks, the next one read and tokenised in a thread while the last one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="chunks") as thread:
        coming = thread.submit(next, chunks)
        while True:
            chunk = coming.result()  # the stream has no end
            coming = thread.submit(next, chunks)
            yield chunk
