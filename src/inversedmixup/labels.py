"""What label an augmented text gets: the interpolated soft label, the task model's, or the LLM's (paper, stage 3)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from inversedmixup.data import Example
from inversedmixup.errors import InputError
from inversedmixup.models.llm import SoftTokenLLM

LABEL_POLICIES = ("soft", "task", "llm")
# Inputs without content, whose answers show what the LLM says anyway (contextual calibration, Zhao et al. 2021)
CONTENT_FREE = ("N/A", "...", "[MASK]")


def is_intruded(judged: str, soft: Mapping[str, float]) -> bool:
    """Manifold intrusion of one row: the judged class holds less than half of the interpolated label."""
    return soft.get(judged, 0.0) < 0.5 - 1e-9


class LLMJudge:
    """Hard labels by label likelihood under the plain LLM, with a few-shot prompt built from the user's rows.

    score(c | x) = log P(c | prompt, x) − log mean over content-free inputs of P(c | prompt, ·)

    The prompt's keys and values are computed once; a text costs one short pass, a class another of a few tokens.

    Args:
        llm: the pair's LLM; LoRA weights are switched off while it judges.
        examples: labelled rows; ``shots`` of each class are shown in the prompt.
        classes: class names, as the prompt spells them.
        shots: examples per class in the prompt.
        seed: which examples are shown, and in which order.

    Raises:
        InputError: for an encoder-decoder LLM.
    """

    def __init__(
        self, llm: SoftTokenLLM, examples: Sequence[Example], classes: Sequence[str], *, shots: int = 1, seed: int = 0
    ) -> None:
        if llm.encoder_decoder:
            raise InputError(f"labels llm: LLM {llm.name!r} is an encoder-decoder and cannot judge; use --labels task")
        self.llm, self.classes = llm, list(classes)
        rng = np.random.default_rng([seed, 5])
        order = rng.permutation(len(examples))
        shown = [[i for i in order if examples[i].label == name][:shots] for name in self.classes]
        self.shown = [int(i) for i in rng.permutation(np.concatenate(shown).astype(int))]
        listed = ", ".join(self.classes)
        lines = [f"Label each text with one of these: {listed}.\n"]
        lines += [f"\nText: {_clip(examples[i].text)}\nLabel: {examples[i].label}\n" for i in self.shown]
        self._prefix = self._ids("".join(lines) + "\nText:")
        self._labels = [self._ids(f" {name}") for name in self.classes]
        self._cache = self._prefill()
        neutral = self._log_likelihoods(CONTENT_FREE)
        self._offset = np.log(np.exp(neutral - neutral.max()).mean(axis=0)) + neutral.max()

    def _ids(self, text: str) -> list[int]:
        return list(self.llm.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def _prefill(self) -> Any:  # noqa: ANN401 (a transformers Cache)
        with self.llm.plain():
            ids = torch.tensor([self._prefix], device=self.llm.device)
            return self.llm.lm(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def probabilities(self, texts: Sequence[str], *, batch_size: int = 16) -> np.ndarray:
        """Calibrated class probabilities [n, classes]."""
        raw = [self._log_likelihoods(texts[at : at + batch_size]) for at in range(0, len(texts), batch_size)]
        scores = np.concatenate(raw) - self._offset if raw else np.empty((0, len(self.classes)))
        shifted = np.exp(scores - scores.max(axis=1, keepdims=True)) if len(scores) else scores
        return shifted / shifted.sum(axis=1, keepdims=True) if len(scores) else shifted

    @torch.no_grad()
    def _log_likelihoods(self, texts: Sequence[str]) -> np.ndarray:
        """Log P(label | prompt, text), [n, classes]."""
        device, past = self.llm.device, len(self._prefix)
        bodies = [self._ids(f" {_clip(text)}\nLabel:") for text in texts]
        longest = max(map(len, bodies))
        # padding sits between prompt and text; the mask hides it and positions skip it
        ids = torch.tensor([[self.llm.eos] * (longest - len(b)) + b for b in bodies], device=device)
        real = torch.tensor([[0] * (longest - len(b)) + [1] * len(b) for b in bodies], device=device)
        mask = torch.cat([torch.ones(len(texts), past, dtype=real.dtype, device=device), real], dim=1)
        places = past + (real.cumsum(1) - 1).clamp_min(0)
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(len(texts))
        out = np.empty((len(texts), len(self.classes)))
        with self.llm.plain():
            first = self.llm.lm(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            opening = first.logits[:, -1].float().log_softmax(-1)
            for column, label in enumerate(self._labels):
                total = opening[:, label[0]]
                if len(label) > 1:
                    total = total + self._continue(label, cache, mask, places[:, -1])
                out[:, column] = total.cpu().numpy()
        return out

    def _continue(self, label: list[int], cache: Any, mask: torch.Tensor, last: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Log P of a label's tokens after its first, [n]; the cache is as before afterwards."""
        rows, fed = len(mask), len(label) - 1
        ids = torch.tensor(label, device=mask.device).expand(rows, -1)
        logits = self.llm.lm(
            input_ids=ids[:, :-1], past_key_values=cache, use_cache=True,
            attention_mask=torch.cat([mask, mask.new_ones(rows, fed)], dim=1),
            position_ids=last[:, None] + 1 + torch.arange(fed, device=mask.device),
        ).logits  # fmt: skip
        cache.crop(-fed)
        total: torch.Tensor = logits.float().log_softmax(-1).gather(2, ids[:, 1:, None]).sum((1, 2))
        return total


def _clip(text: str, words: int = 60) -> str:
    """A text short enough for the prompt."""
    return " ".join(text.split()[:words])


def judge_accuracy(judge: LLMJudge, examples: Sequence[Example], *, rows: int, seed: int) -> dict[str, float]:
    """Accuracy of a judge on labelled rows that its prompt does not show; ``n`` is how many there were."""
    hidden = [i for i in range(len(examples)) if i not in set(judge.shown)]
    chosen = np.random.default_rng([seed, 6]).permutation(hidden)[:rows]
    if not len(chosen):
        return {"n": 0}
    predicted = judge.probabilities([examples[i].text for i in chosen]).argmax(1)
    right = [judge.classes[p] == examples[i].label for p, i in zip(predicted, chosen, strict=True)]
    return {"accuracy": float(np.mean(right)), "n": len(right)}
