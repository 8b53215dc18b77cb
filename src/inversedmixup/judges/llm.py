"""Judge ``llm``: label likelihood under the pair's LLM, with a few-shot prompt built from the user's rows."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from inversedmixup.errors import InputError
from inversedmixup.models.llm import SoftTokenLLM

if TYPE_CHECKING:
    from inversedmixup.judges import Case

# Inputs without content, whose answers show what the LLM says anyway (contextual calibration, Zhao et al. 2021)
CONTENT_FREE = ("N/A", "...", "[MASK]")
MAX_WORDS, MAX_TOKENS = 60, 120  # of a text in the prompt
BATCH = 16


class LLMJudge:
    """Calibrated label likelihood: log P(c | prompt, x) − log mean over content-free inputs of P(c | prompt, ·).

    P(c | prompt, x) is the likelihood of the class name among the class names: it is followed token by token, and only
    where two names part is there a choice. So names of several tokens cost nothing unless they begin alike, and short
    names are not preferred to long ones. With more classes than ``shortlist``, each text is asked about those that
    the task model finds likeliest.

    Texts of the user stand in the prompt as JSON strings without special tokens, so that none can end its line, open
    another one or a turn of its own.

    Raises:
        InputError: for an encoder-decoder LLM.
    """

    name = "llm"

    def __init__(self, case: Case) -> None:
        llm = case.pair.llm
        if llm.encoder_decoder:
            raise InputError(f"judge llm: LLM {llm.name!r} is an encoder-decoder and cannot judge; use judge task")
        self.llm, self.case, self.classes = llm, case, list(case.classes)
        self.meanings = case.config.described(case.classes)
        self.shown = case.shown()
        # the task model has learnt from every row, so that its shortlist for one is too good
        measurable = len(self.classes) <= case.config.shortlist or case.cross_validated is not None
        self.unseen = case.not_shown() if measurable else []
        self._prompts: dict[tuple[int, ...], _Prompt] = {}

    def probabilities(self, texts: Sequence[str], embeddings: Tensor) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        model = self.case.pair.task_model
        return self._choose(texts, self._shortlists(len(texts), lambda: model.predict_proba(embeddings)))

    def held_out(self, rows: Sequence[int]) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`; shortlists come from task models that have not seen the rows."""
        texts = [self.case.examples[at].text for at in rows]

        def likely() -> np.ndarray:
            assert self.case.cross_validated is not None
            return self.case.cross_validated()[list(rows)]

        return self._choose(texts, self._shortlists(len(rows), likely))

    def _shortlists(self, n: int, likely: Callable[[], np.ndarray]) -> list[tuple[int, ...]]:
        """The classes that each of n texts is asked about: all, or those that the task model finds likeliest."""
        if len(self.classes) <= self.case.config.shortlist:
            return [tuple(range(len(self.classes)))] * n
        best = np.argsort(-likely(), axis=1, kind="stable")[:, : self.case.config.shortlist]
        return [tuple(sorted(row)) for row in best.tolist()]

    def _choose(self, texts: Sequence[str], shortlists: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Probabilities [n, classes]: those of each text's shortlist, and 0 elsewhere."""
        out = np.zeros((len(texts), len(self.classes)))
        for columns in dict.fromkeys(shortlists):
            rows = [at for at, shortlist in enumerate(shortlists) if shortlist == columns]
            out[np.ix_(rows, columns)] = self._prompt(columns).probabilities([texts[at] for at in rows])
        return out

    def _prompt(self, columns: tuple[int, ...]) -> _Prompt:
        """The prompt for a choice between some classes; the last few are kept, each with its keys and values."""
        if columns not in self._prompts:
            if len(self._prompts) == BATCH:
                self._prompts.pop(next(iter(self._prompts)))
            names = [self.classes[column] for column in columns]
            rows = [at for name in names for at in self.shown[name]]
            mixed = np.random.default_rng([self.case.seed, 5, len(rows)]).permutation(rows).tolist()
            shown = [(self.case.examples[at].text, self.case.examples[at].label) for at in mixed]
            self._prompts[columns] = _Prompt(self.llm, {name: self.meanings[name] for name in names}, shown)
        return self._prompts[columns]


class _Prompt:
    """One prompt: the classes and their meanings, the shown rows, and the keys and values of all that."""

    def __init__(self, llm: SoftTokenLLM, meanings: dict[str, str], shown: Sequence[tuple[str, str]]) -> None:
        self.llm = llm
        self._ask = self.ids("\nLabel:")
        self._end = self.ids("\n")[:1] or [llm.eos]
        self.labels = [self.ids(f" {name}") + self._end for name in meanings]
        listed = [name if name == meaning else f"{name} ({meaning})" for name, meaning in meanings.items()]
        self.prefix = self.ids(f"Label each text with one of these: {', '.join(listed)}.\n")
        for text, label in shown:
            self.prefix += self.ids("\nText:") + self.body(text) + self.ids(f" {label}") + self._end
        self.prefix += self.ids("\nText:")
        self._cache = self._prefill()
        self.offset = logsumexp(self.log_likelihoods(CONTENT_FREE), axis=0) - np.log(len(CONTENT_FREE))

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
        """Calibrated probabilities [n, classes of this prompt]."""
        parts = [self.log_likelihoods(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
        scores = np.concatenate(parts) - self.offset
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
        return shares

    @torch.no_grad()
    def log_likelihoods(self, texts: Sequence[str]) -> np.ndarray:
        """Log P(class name | prompt, text) among the class names, [n, classes of this prompt]."""
        device, past = self.llm.device, len(self.prefix)
        bodies = [self.body(text) for text in texts]
        longest = max(map(len, bodies))
        # padding sits between prompt and text; the mask hides it and positions skip it
        ids = torch.tensor([[self.llm.eos] * (longest - len(b)) + b for b in bodies], device=device)
        real = torch.tensor([[0] * (longest - len(b)) + [1] * len(b) for b in bodies], device=device)
        mask = torch.cat([torch.ones(len(texts), past, dtype=real.dtype, device=device), real], dim=1)
        places = past + (real.cumsum(1) - 1).clamp_min(0)
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(len(texts))
        with self.llm.plain():
            opening = self.llm.lm(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]  # fmt: skip
            total = torch.zeros(len(texts), len(self.labels), device=device)
            for begun, nexts in branches(self.labels).items():
                logits = self._after(begun, cache, mask, places[:, -1]) if begun else opening
                choice = logits.float()[:, list(nexts)].log_softmax(dim=1)
                for column, labels in enumerate(nexts.values()):
                    total[:, labels] += choice[:, column, None]
        return total.cpu().numpy().astype(np.float64)

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
