"""Texts that the plain LLM writes to a prompt: no embedding, no adaptor, none of stage 1's LoRA weights.

They come from the decoder that writes mixed texts: in place of the soft tokens it reads the prompt's own token
embeddings. So both kinds of text have the same sampling, one random stream a row, and cost the same: ``candidates``
texts a row, of which one is kept or none, and at most ``tries`` · n rows.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence

import numpy as np

from inversedmixup.baselines import Added, Split
from inversedmixup.judges.prompt import MAX_TOKENS, MAX_WORDS
from inversedmixup.models.llm import SOFT
from inversedmixup.reconstruction import token_f1
from inversedmixup.runs import recorded, shard_name
from inversedmixup.same_text import normalised
from inversedmixup.stages.augment import SHARD_ROWS, shards_at_most

logger = logging.getLogger(__name__)

_QUOTES = "\"'“”‘’«»`* "
# what instruction-tuned LLMs say instead of a text, or before it
_CHATTER = re.compile(
    r"(sure|certainly|of course|okay)[!,.:]|here('s| is| are) (a|an|the|some|your)\b.*:|"
    r"(i('m| am) sorry|i apologi[sz]e|as an ai|i can(no|')t (help|assist|fulfil|provide))\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Request:
    """One row's prompt, and what an answer may not be.

    Attributes:
        opening: how the prompt begins; rows that share it share the work of reading it.
        text: what is the row's own in it; never empty.
        ending: how it ends.
        label: the class that an answer is meant to be of.
        shown: texts in the prompt; an answer that copies one of them is none.
    """

    opening: str
    text: str
    ending: str
    label: str
    shown: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Answers:
    """Usable answers, at most n, and the class that each is meant to be of."""

    texts: list[str]
    labels: list[str]


def answers(split: Split, name: str, request: Callable[[int], Request]) -> Answers:
    """The first n rows with a usable answer, of what is written once a split and recorded under a name.

    Args:
        split: the split.
        name: the writer's.
        request: the prompt of a row, by its number.
    """
    config, store = split.config, split.store.part(name)
    seen = {normalised(example.text) for example in split.examples}
    found = Answers([], [])
    for number in range(shards_at_most(config)):
        requests = [request(number * SHARD_ROWS + at) for at in range(SHARD_ROWS)]

        def write(number: int = number, requests: Sequence[Request] = requests) -> list[list[str]]:
            return _write(split, requests, number)

        for asked, texts in zip(requests, recorded(store, shard_name(number), write), strict=True):
            text = next((text for text in map(cleaned, texts) if _usable(text, asked, seen, split)), None)
            if text is not None:
                seen.add(normalised(text))
                found.texts.append(text)
                found.labels.append(asked.label)
            if len(found.texts) == config.n:
                return found
    logger.warning(
        "%s: %d of the %d rows asked for; the LLM wrote nothing else that is new and no copy", name, len(found.texts),
        config.n,
    )  # fmt: skip
    return found


def by_request(split: Split, found: Answers) -> Added:
    """Answers labelled as they were asked for."""
    columns = np.array([split.classes.index(label) for label in found.labels], dtype=int)
    return Added(found.texts, np.eye(len(split.classes))[columns])


def clipped(text: str) -> str:
    """A text as it stands in a prompt: not too long, and without the mark of the soft tokens."""
    return " ".join(text.replace(SOFT, " ").split()[:MAX_WORDS]) or "-"


def cleaned(text: str) -> str:
    """An answer without its list number and the quotation marks around it; empty if it is chatter."""
    bare = re.sub(r"^\W*\d+[.)]\s+", "", text).removeprefix("- ").strip()
    if bare[:1] in _QUOTES and bare[-1:] in _QUOTES:
        bare = bare.strip(_QUOTES)
    return "" if _CHATTER.match(bare) else bare


def _usable(text: str, asked: Request, seen: set[str], split: Split) -> bool:
    """Whether an answer passes the checks of the gate that ask for no embedding."""
    words, config = normalised(text), split.config
    return (
        len(words.split()) >= config.min_words
        and words not in seen
        and max(token_f1(words, normalised(shown)) for shown in asked.shown) <= config.max_parent_overlap
    )


def _write(split: Split, requests: Sequence[Request], number: int) -> list[list[str]]:
    """``candidates`` texts for each request of a shard; requests of one opening and length are read together."""
    config, llm = split.config, split.llm
    many = config.candidates if config.temperature > 0 else 1
    streams = [np.random.default_rng([config.seed, 31, number * SHARD_ROWS + at]) for at in range(len(requests))]
    uniforms = [stream.random((many, config.max_tokens)) for stream in streams]
    together: dict[tuple[str, str, int], list[int]] = {}
    for at, asked in enumerate(requests):
        length = len(llm.targets([asked.text], MAX_TOKENS + 1)[0]) - 1
        together.setdefault((asked.opening, asked.ending, length), []).append(at)
    out: list[list[str]] = [[] for _ in requests]
    for (opening, ending, length), rows in together.items():
        llm.set_prompt(f"{opening}{SOFT}{ending}")
        texts = llm.decode(
            llm.read([requests[at].text for at in rows], length), config.sampling(),
            np.concatenate([uniforms[at] for at in rows]), candidates=many, batch_size=config.batch_size,
        )  # fmt: skip
        for place, at in enumerate(rows):
            out[at] = texts[place * many : (place + 1) * many]
    return out
