"""Judge ``tuned``: a copy of the pair's LLM, tuned by LoRA on the user's rows to answer with their class names.

Where the user says what a name means, it answers with that: it has read words before, and no numbers of classes
(docs/log.md, "Judges").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.folds import by_fold, folds_of, held_out_rows
from inversedmixup.judges.prompt import Prompt
from inversedmixup.labelled import class_numbers, sample_numbers, shares_of
from inversedmixup.models.llm import SoftTokenLLM
from inversedmixup.models.lower_layers import LowerLayers, deepest_stacks
from inversedmixup.models.task_model import shuffled_batches
from inversedmixup.sealed import digest, is_whole, seal_folder
from inversedmixup.terminal import Advance, progress

if TYPE_CHECKING:
    from inversedmixup.judges import Case, JudgeConfig

# settings tried: docs/log.md, "Judges"
RANK, LEARNING_RATE = 16, 2e-3
BATCH = PASSES = 16  # so a step for each row
FROZEN = 1 / 2  # of the LLM's layers, from below

Answers = Callable[[Sequence[str]], np.ndarray]  # class probabilities [n, classes] of n texts


def tuning_steps(rows: int, config: JudgeConfig) -> int:
    """Optimiser steps that learning from so many rows takes."""
    return min(config.judge_steps, math.ceil(PASSES * rows / BATCH))


class TunedJudge:
    """Label likelihood under the tuned copy. It takes a minute or two to make, and one to two times that to measure."""

    name = "tuned"
    settings: tuple[float, ...] = ()  # what else decides the copy's weights

    def __init__(self, case: Case) -> None:
        self.case = case
        self.meanings = case.config.described(case.classes)

    @cached_property
    def unseen(self) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        return held_out_rows(self.case.examples, seed=self.case.seed)

    def prepare(self) -> None:
        """Tune the copy, or read it from the run's folder."""
        self._answers  # noqa: B018 (makes it)

    def probabilities(self, texts: Sequence[str], embeddings: Tensor) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        return self._answers(texts)

    def held_out(self, rows: Sequence[int]) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        fold_of = folds_of(self.case.examples, seed=self.case.seed)
        steps = sum(self._steps(int((fold_of != fold).sum())) for fold in {int(fold_of[row]) for row in rows})
        with progress(f"measuring judge {self.name}", steps) as advance:

            def ask(others: np.ndarray, asked: np.ndarray) -> np.ndarray:
                texts = [self.case.examples[at].text for at in asked.tolist()]
                # of many rows only such as the whole copy learns from, so that it expects the classes as often
                others = np.intersect1d(others, self._taken(np.arange(len(self.case.examples))))
                # no name for the copy: it is gone before the next one is made
                return self._made(self._tuned(others, advance), others)(texts)

            return by_fold(rows, fold_of, ask)

    @cached_property
    def _answers(self) -> Answers:
        """Those of the copy tuned on every row, from the run's folder if it was finished there."""
        stored = None if self.case.folder is None else self.case.folder / self.name
        if stored is not None and is_whole(stored, belongs_to=self._origin):
            return self._read(stored)
        rows = np.arange(len(self.case.examples))
        with progress(f"tuning judge {self.name}", self._steps(len(rows))) as advance:
            llm = self._tuned(rows, advance)
        if stored is None:
            return self._made(llm, rows)
        llm.save_lora(stored)
        seal_folder(stored, belongs_to=self._origin)
        return self._read(stored)  # as a resumed run reads it

    @property
    def _origin(self) -> str:
        """What decides the copy's weights."""
        case, n = self.case, len(self.case.examples)
        learnt = np.unique(np.concatenate([part for step in self._lessons(np.arange(n)) for part in step])).tolist()
        rows = [[case.examples[at].text, case.examples[at].label] for at in learnt]
        llm = "llm" if case.pair.config.own_llm else case.pair.llm.name  # its own lies elsewhere on each machine
        dtype = str(case.pair.llm.lm.dtype)
        settings = [RANK, LEARNING_RATE, BATCH, FROZEN, self._steps(n), case.seed, llm, dtype, *self.settings]
        return digest([n, learnt, rows, list(self.meanings.values()), settings])

    def _read(self, stored: Path) -> Answers:
        llm = self._copy()
        llm.load_lora(stored)
        return self._made(llm, np.arange(len(self.case.examples)))

    @property
    def _names(self) -> list[str]:
        """What it answers with."""
        return list(self.meanings.values())

    def _steps(self, rows: int) -> int:
        return tuning_steps(rows, self.case.config)

    def _copy(self) -> SoftTokenLLM:
        own = self.case.pair.llm
        return SoftTokenLLM.from_pretrained(own.name, device=own.device, dtype=own.lm.dtype)

    def _made(self, llm: SoftTokenLLM, rows: np.ndarray) -> Answers:
        """The answers of a copy tuned on some rows; its LoRA weights become part of it."""
        llm.merge_lora()
        return Prompt(llm, self._names, calibrated=False).probabilities

    @cached_property
    def expects(self) -> np.ndarray:
        """See :class:`~inversedmixup.judges.Judge`."""
        taken = self._taken(np.arange(len(self.case.examples)))
        return shares_of(self._numbers[taken], len(self.case.classes))

    @cached_property
    def _numbers(self) -> np.ndarray:
        return class_numbers(self.case.examples, self.case.classes)

    def _taken(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows that there are steps for; the rarest class is among them."""
        room = BATCH * self.case.config.judge_steps
        if len(rows) <= room:
            return rows
        taken: np.ndarray = rows[sample_numbers(self._numbers[rows], room, seed=[self.case.seed, 18])]
        return taken

    def _lessons(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of some rows, what is shown in the prompt and what is learnt from at each step."""
        rows = self._taken(rows)
        batches = shuffled_batches(len(rows), BATCH, np.random.default_rng([self.case.seed, 11]))
        for taken in islice(batches, self._steps(len(rows))):
            yield rows[:0], rows[taken]

    def _tuned(self, rows: np.ndarray, advance: Advance) -> SoftTokenLLM:
        """A copy tuned on some rows: cross-entropy of the class name among the class names."""
        number, steps = {name: at for at, name in enumerate(self.case.classes)}, self._steps(len(rows))
        llm = self._copy()
        deep = len(deepest_stacks(llm.lm)[0])
        lower = LowerLayers.of(llm.lm, int(deep * FROZEN))
        llm.add_lora(RANK, seed=self.case.seed, layers=list(range(lower.depth, deep)) if lower else None)
        bare = Prompt(llm, self._names, calibrated=False, lower=lower)
        weights = [weight for weight in llm.model.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(weights, weight_decay=0.0)
        for step, (shown, taken) in enumerate(self._lessons(rows)):
            batch = [self.case.examples[at] for at in taken.tolist()]
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 5) * (1 - step / steps)
            prompt = self._showing(llm, shown) if len(shown) else bare
            loss = prompt.loss([row.text for row in batch], [number[row.label] for row in batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            advance(1)
        return llm

    def _showing(self, llm: SoftTokenLLM, rows: np.ndarray) -> Prompt:
        """The prompt with some rows and their class names before the question."""
        there = [self.case.examples[at] for at in rows.tolist()]
        shown = [(row.text, self.meanings[row.label]) for row in there]
        return Prompt(llm, self._names, shown=shown, calibrated=False)
