"""Prompts that ask an LLM for the class of a text: how they are written, and how its answer is read off."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from inversedmixup.models.llm import SoftTokenLLM

# Inputs without content, whose answers show what the LLM says anyway (contextual calibration, Zhao et al. 2021)
CONTENT_FREE = ("N/A", "...", "[MASK]")
MAX_WORDS, MAX_TOKENS = 60, 120  # of a text in the prompt
BATCH = 16


class Prompt:
    """One prompt, and the keys and values of what stands before the text.

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
    """

    def __init__(
        self, llm: SoftTokenLLM, names: Sequence[str], *, opening: str = "", shown: Sequence[tuple[str, str]] = (),
        calibrated: bool = True,
    ) -> None:  # fmt: skip
        self.llm = llm
        self._ask = self.ids("\nLabel:")
        self._end = self.ids("\n")[:1] or [llm.eos]
        self.labels = [self.ids(f" {name}") + self._end for name in names]
        self._branches = branches(self.labels)
        self.prefix = self.ids(opening) if opening else []
        window = getattr(llm.lm.config, "max_position_embeddings", None) or 10**9
        room = window - MAX_TOKENS - len(self._ask) - max(map(len, self.labels)) - len(self.ids("\nText:"))
        for text, label in shown:  # as many as the LLM's window holds
            example = self.ids("\nText:") + self.body(text) + self.ids(f" {label}") + self._end
            if len(self.prefix) + len(example) > room:
                break
            self.prefix += example
        self.prefix += self.ids("\nText:")
        self._cache: Any = None
        self._offset: np.ndarray | None = None if calibrated else np.zeros(len(self.labels))

    def ids(self, text: str) -> list[int]:
        """Token ids; what looks like a special token in it is plain text."""
        return list(self.llm.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def body(self, text: str) -> list[int]:
        """A text as it stands in the prompt, and the question after it."""
        clipped = " ".join(text.split()[:MAX_WORDS])
        return self.ids(" " + json.dumps(clipped, ensure_ascii=False))[:MAX_TOKENS] + self._ask

    @torch.no_grad()
    def _prefill(self) -> Any:  # noqa: ANN401 (a transformers Cache)
        with self.llm.plain():
            ids = torch.tensor([self.prefix], device=self.llm.device)
            return self.llm.lm(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Class probabilities [n, names]."""
        if self._offset is None:
            self._offset = logsumexp(self.log_likelihoods(CONTENT_FREE), axis=0) - np.log(len(CONTENT_FREE))
        parts = [self.log_likelihoods(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
        scores = np.concatenate(parts) - self._offset
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
        return shares

    @torch.no_grad()
    def log_likelihoods(self, texts: Sequence[str]) -> np.ndarray:
        """Log P(class name | prompt, text) among the class names, [n, names]."""
        device, past = self.llm.device, len(self.prefix)
        bodies = [self.body(text) for text in texts]
        longest = max(map(len, bodies))
        # padding sits between prompt and text; the mask hides it and positions skip it
        ids = torch.tensor([[self.llm.eos] * (longest - len(b)) + b for b in bodies], device=device)
        real = torch.tensor([[0] * (longest - len(b)) + [1] * len(b) for b in bodies], device=device)
        mask = torch.cat([torch.ones(len(texts), past, dtype=real.dtype, device=device), real], dim=1)
        places = past + (real.cumsum(1) - 1).clamp_min(0)
        if self._cache is None:
            self._cache = self._prefill()
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(len(texts))
        with self.llm.plain():
            opening = self.llm.lm(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]  # fmt: skip
            total = torch.zeros(len(texts), len(self.labels), device=device)
            for begun, nexts in self._branches.items():
                logits = self._after(begun, cache, mask, places[:, -1]) if begun else opening
                choice = logits.float()[:, list(nexts)].log_softmax(dim=1)
                for column, labels in enumerate(nexts.values()):
                    total[:, labels] += choice[:, column, None]
        return total.cpu().numpy().astype(np.float64)

    def loss(self, texts: Sequence[str], labels: Sequence[int]) -> Tensor:
        """Mean −log P(class name | prompt, text) of the right class names, with gradients, by whole passes."""
        device = self.llm.device
        rows = [
            self.prefix + self.body(text) + self.labels[label][:-1] for text, label in zip(texts, labels, strict=True)
        ]
        longest = max(map(len, rows))
        ids = torch.tensor([[self.llm.eos] * (longest - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
        logits = self.llm.lm(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=False,
            logits_to_keep=max(map(len, self.labels)),
        ).logits.float()  # fmt: skip
        total = torch.zeros((), device=device)
        for row, number in enumerate(labels):
            label = self.labels[number]
            for at, token in enumerate(label):
                rivals = list(self._branches.get(tuple(label[:at]), ()))
                if rivals:  # the logits of a label's first token are as far from the end as the label is long
                    choice = logits[row, at - len(label), rivals].log_softmax(dim=0)
                    total = total - choice[rivals.index(token)]
        return total / len(rows)

    def _after(self, begun: tuple[int, ...], cache: Any, mask: Tensor, last: Tensor) -> Tensor:  # noqa: ANN401
        """Logits [n, vocabulary] once a label has begun like this; the cache is as before afterwards."""
        rows, fed = len(mask), len(begun)
        logits: Tensor = self.llm.lm(
            input_ids=torch.tensor(begun, device=mask.device).expand(rows, -1), past_key_values=cache, use_cache=True,
            attention_mask=torch.cat([mask, mask.new_ones(rows, fed)], dim=1),
            position_ids=last[:, None] + 1 + torch.arange(fed, device=mask.device), logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
        cache.crop(-fed)
        return logits


def branches(labels: Sequence[Sequence[int]]) -> dict[tuple[int, ...], dict[int, list[int]]]:
    """Where token sequences part: ``{what they share so far: {next token: numbers of the sequences that take it}}``."""
    found: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for number, label in enumerate(labels):
        for at, token in enumerate(label):
            found.setdefault(tuple(label[:at]), {}).setdefault(token, []).append(number)
    return {begun: nexts for begun, nexts in found.items() if len(nexts) > 1}
