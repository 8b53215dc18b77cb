"""Prompts that ask an LLM for the class of a text: how they are written, and how its answer is read off."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from inversedmixup.errors import InputError
from inversedmixup.judges.reading import make_reader
from inversedmixup.models.llm import SoftTokenLLM
from inversedmixup.models.lower_layers import LowerLayers

# Inputs without content, whose answers show what the LLM says anyway (contextual calibration, Zhao et al. 2021)
CONTENT_FREE = ("N/A", "...", "[MASK]")
MAX_WORDS, MAX_TOKENS = 60, 120  # of a text in the prompt
BATCH = 16
UNLIKELY = 1e-3  # what names with a beginning of this probability share is not asked for; the pool cuts there as well


class Prompt:
    """One prompt, and the LLM that reads it with one text after the other.

    P(c | prompt, x) is the likelihood of the class name among the class names: it is followed token by token, and only
    where two names part is there a choice. So names of several tokens cost nothing unless they begin alike, and short
    names are not preferred to long ones.

    Texts stand in it as JSON strings without special tokens, so that none can end its line, open another one or a turn
    of its own.

    Args:
        llm: who is asked; LoRA weights are switched off meanwhile.
        names: class names.
        opening: what the prompt begins with.
        shown: texts with their class names, shown as examples.
        calibrated: judge by how much likelier a class is for a text than for inputs without content.
        lower: layers of the LLM that :meth:`loss` need not compute for every text anew, as they do not learn.

    Raises:
        InputError: if the LLM's tokenizer cannot tell two names apart, or its window holds no prompt with a text.
    """

    def __init__(
        self, llm: SoftTokenLLM, names: Sequence[str], *, opening: str = "", shown: Sequence[tuple[str, str]] = (),
        calibrated: bool = True, lower: LowerLayers | None = None,
    ) -> None:  # fmt: skip
        check_names(llm, names)
        self.llm = llm
        self._ask = self.ids("\nLabel:")
        line_end = self.ids("\n")[-1:] or [llm.eos]  # some tokenizers put a space before it
        answer_end = [llm.eos] if llm.encoder_decoder else line_end
        self.labels = [self.ids(f" {name}") + answer_end for name in names]
        self._branches = branches(self.labels)
        self.prefix = self._start() + (self.ids(opening) if opening else [])
        room = llm.window - len(llm.empty) - MAX_TOKENS - len(self._ask) - max(map(len, self.labels))
        room -= len(self.ids("\nText:"))
        if len(self.prefix) > room:
            raise InputError(
                f"LLM {llm.name!r} reads {llm.window} tokens at a time, and a prompt with {len(names)} classes and a "
                f"text takes up to {llm.window + len(self.prefix) - room}; choose judges that read no prompt, such as "
                f"probe, or another LLM"
            )
        for text, label in shown:  # as many as the LLM's window holds
            example = self.ids("\nText:") + self.body(text) + self.ids(f" {label}") + line_end
            if len(self.prefix) + len(example) > room:
                break
            self.prefix += example
        self.prefix += self.ids("\nText:")
        self._reader = make_reader(llm, self.prefix, lower)
        self._offset: np.ndarray | None = None if calibrated else np.zeros(len(self.labels))
        # calibration can raise what was unlikely
        self._floor = -np.inf if calibrated else float(np.log(UNLIKELY))

    def _start(self) -> list[int]:
        """The token that the LLM's tokenizer begins every text with, if there is one."""
        began = list(self.llm.tokenizer("")["input_ids"])
        return began[:1] if not self.llm.encoder_decoder and began[:1] == [self.llm.tokenizer.bos_token_id] else []

    def ids(self, text: str) -> list[int]:
        """Token ids; what looks like a special token in it is plain text."""
        return token_ids(self.llm, text)

    def body(self, text: str) -> list[int]:
        """A text as it stands in the prompt, and the question after it."""
        clipped = " ".join(text.split()[:MAX_WORDS])
        return self.ids(" " + json.dumps(clipped, ensure_ascii=False))[:MAX_TOKENS] + self._ask

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Class probabilities [n, names]."""
        if self._offset is None:
            self._offset = logsumexp(self.log_likelihoods(CONTENT_FREE), axis=0) - np.log(len(CONTENT_FREE))
        scores = np.empty((len(texts), len(self.labels)))
        order = np.argsort([len(self.body(text)) for text in texts], kind="stable")  # alike in length: little padding
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            scores[rows] = self.log_likelihoods([texts[row] for row in rows.tolist()])
        scores -= self._offset
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
        return shares

    @torch.no_grad()
    def log_likelihoods(self, texts: Sequence[str]) -> np.ndarray:
        """Log P(class name | prompt, text) among the class names, [n, names].

        Without calibration, names that begin in a way less likely than :data:`UNLIKELY` share that probability evenly:
        so the cost grows with the names that a text may have, not with all there are.
        """
        total = np.zeros((len(texts), len(self.labels)))
        with self.llm.plain():
            after = self._reader.read([self.body(text) for text in texts])
            for begun, nexts in self._branches.items():  # what a name begins with comes before what goes on from there
                under = next(iter(nexts.values()))[0]  # any name with this beginning
                likely = np.flatnonzero(total[:, under] > self._floor)
                choice = np.full((len(texts), len(nexts)), -np.log(len(nexts)))
                if len(likely):
                    logits = after(begun, likely.tolist()).float()[:, list(nexts)]
                    choice[likely] = logits.log_softmax(dim=1).cpu().numpy()
                for column, labels in enumerate(nexts.values()):
                    total[:, labels] += choice[:, column, None]
        return total

    def loss(self, texts: Sequence[str], labels: Sequence[int]) -> Tensor:
        """Mean −log P(class name | prompt, text) of the right class names, with gradients."""
        right = [self.labels[number] for number in labels]
        logits = self._reader.answers([self.body(text) for text in texts], right)
        total = torch.zeros((), device=self.llm.device)
        for label, row in zip(right, logits, strict=True):
            for at, token in enumerate(label):
                rivals = list(self._branches.get(tuple(label[:at]), ()))
                if rivals:
                    total = total - row[at, rivals].float().log_softmax(dim=0)[rivals.index(token)]
        return total / len(right)


def token_ids(llm: SoftTokenLLM, text: str) -> list[int]:
    """Token ids of a text; what looks like a special token in it is plain text."""
    return list(llm.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def check_names(llm: SoftTokenLLM, names: Sequence[str]) -> None:
    """Refuse class names that the LLM's tokenizer cannot tell apart.

    Raises:
        InputError: naming two of them.
    """
    first: dict[tuple[int, ...], str] = {}
    for name in names:
        other = first.setdefault(tuple(token_ids(llm, f" {name}")), name)
        if other != name:
            raise InputError(
                f"classes {other!r} and {name!r} are the same to LLM {llm.name!r}, which knows no such characters; "
                f"say in other words what they mean, with --descriptions (and --overwrite or another output)"
            )


def branches(labels: Sequence[Sequence[int]]) -> dict[tuple[int, ...], dict[int, list[int]]]:
    """Where token sequences part: ``{what they share so far: {next token: numbers of the sequences that take it}}``."""
    found: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for number, label in enumerate(labels):
        for at, token in enumerate(label):
            found.setdefault(tuple(label[:at]), {}).setdefault(token, []).append(number)
    return {begun: nexts for begun, nexts in found.items() if len(nexts) > 1}
