"""Judges: who says which class a text belongs to.

One protocol (:class:`Judge`) and one file for each real one: the warmed-up task model (:mod:`.task`), a linear
classifier of the LLM's hidden states (:mod:`.probe`), the pair's LLM, prompted (:mod:`.llm`), a copy of it tuned on the
user's rows (:mod:`.tuned`), one tuned with such rows in its prompt (:mod:`.incontext`), a chat endpoint (:mod:`.api`).
A label policy asks one or several of them, as a :mod:`.panel`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from inversedmixup.errors import InputError
from inversedmixup.folds import measured_rows
from inversedmixup.labelled import class_numbers, class_shares
from inversedmixup.labels import JUDGES
from inversedmixup.models.pair import Pair
from inversedmixup.options import NOTHING, Options, at_least, option, read_yaml
from inversedmixup.same_text import words_of
from inversedmixup.schema import Example

if TYPE_CHECKING:
    from inversedmixup.judges.panel import Panel

logger = logging.getLogger(__name__)

TUNED = ("tuned", "incontext")  # copies of the LLM, which take minutes to make
READERS = ("llm", *TUNED, "api")  # who answer with class names, and know what these say
JUDGE_FILES = TUNED  # in a run's folder, what was dear to make and every worker needs


class Judge(Protocol):
    """Says which class a text belongs to."""

    @property
    def name(self) -> str:
        """One of :data:`~inversedmixup.labels.JUDGES`."""
        ...

    @property
    def unseen(self) -> np.ndarray:
        """Numbers [m] of the user's rows that :meth:`held_out` can judge without having learnt from them."""
        ...

    @property
    def expects(self) -> np.ndarray | None:
        """How often it expects each class [classes]: the shares in the rows it learnt from; ``None`` without such."""
        ...

    def prepare(self) -> None:
        """Make now what would be made with the first answer."""
        ...

    def probabilities(self, texts: Sequence[str], embeddings: Tensor) -> np.ndarray:
        """Class probabilities [n, classes] of texts with these embeddings [n, d]; NaN where the judge abstains."""
        ...

    def held_out(self, rows: Sequence[int]) -> np.ndarray:
        """The same of some of the user's rows, by a judge that has not learnt from them and expects the same shares."""
        ...


@dataclasses.dataclass(frozen=True)
class JudgeConfig(Options):
    """Settings of the judges."""

    GROUP: ClassVar[str] = "judges"

    judge_shots: int = option(1, "examples per class in an LLM judge's prompt")
    judge_steps: int = option(
        120, "optimiser steps of judges tuned and incontext, at most; they take one for each row that they learn from"
    )
    shortlist: int = option(8, "classes that judge llm chooses from: those the task model finds likeliest")
    descriptions: str | None = option(
        None, "YAML file that says what each class name means, for every judge but task and probe"
    )
    api_model: str | None = option(None, "model that judge api asks")
    api_url: str | None = option(None, "OpenAI-compatible endpoint of judge api; default: $OPENAI_BASE_URL")
    api_concurrency: int = option(4, "requests to the endpoint at a time", decides=NOTHING)
    api_price: float | None = option(
        None, "price of a million input tokens there, for the preview of the cost", decides=NOTHING
    )
    force_judge: bool = option(
        False, "augment, label: use a judge's labels even where they are not to be trusted", decides=NOTHING
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "judge_shots", "judge_steps", "api_concurrency")
        at_least(self, 2, "shortlist")
        at_least(self, 0, "api_price")

    def check_descriptions(self, classes: Sequence[str], judges: Collection[str] = ()) -> None:
        """Refuse descriptions that cannot be read, say the same of two classes, or are of a class that is not there.

        Args:
            classes: all there are.
            judges: who is going to be asked; names without a word, such as numbers, are worth a warning to some.

        Raises:
            InputError: naming the class.
        """
        for name, meaning in self._descriptions().items():
            if not isinstance(meaning, str) or not meaning.strip():
                raise InputError(f"{self.descriptions}: {name}: expected some words, found {meaning!r}")
            if name not in classes:
                raise InputError(
                    f"{self.descriptions}: {name!r} is not a class of the training set ({', '.join(classes)})"
                )
        meanings = self.described(classes)
        same: dict[str, str] = {}
        for name, meaning in meanings.items():
            if same.setdefault(meaning, name) != name:
                raise InputError(
                    f"{self.descriptions}: {same[meaning]!r} and {name!r} both mean {meaning!r}; tell them apart"
                )
        mute = [name for name, meaning in meanings.items() if sum(map(str.isalpha, meaning)) < 2]
        if mute and (readers := [judge for judge in READERS if judge in judges]):
            logger.warning(
                "class names such as %r say nothing to judge %s, who is right much more often if --descriptions "
                "FILE.yaml says what they mean, such as `%s: late delivery`", mute[0], " and ".join(readers), mute[0],
            )  # fmt: skip

    def described(self, classes: Sequence[str]) -> dict[str, str]:
        """What each of some classes means, by its name; the name itself where the user says nothing."""
        given = self._descriptions()
        return {name: " ".join(str(given.get(name, name)).split()) for name in classes}

    def _descriptions(self) -> dict[str, Any]:
        return read_yaml(self.descriptions, "--descriptions", as_text=True) if self.descriptions else {}


@dataclasses.dataclass(frozen=True)
class Case:
    """What judges are made from.

    Attributes:
        pair: a pair after stage 2.
        examples: the user's labelled rows.
        classes: class names, the columns of every judge's answers.
        config: settings.
        seed: decides which rows are shown in prompts.
        cross_validated: class probabilities [m, classes] of some of the user's rows, by number, from task models that
            were fitted without them; asked for only when the task model judges. Without it that judge is not measured.
        folder: where judges keep what cost them time or money; ``None`` if nowhere.
    """

    pair: Pair
    examples: Sequence[Example]
    classes: Sequence[str]
    config: JudgeConfig
    seed: int
    cross_validated: Callable[[Sequence[int]], np.ndarray] | None = None
    folder: Path | None = None

    def shown(self) -> dict[str, list[int]]:
        """Numbers of the rows of each class that stand in an LLM judge's prompt."""
        order = np.random.default_rng([self.seed, 5]).permutation(len(self.examples))
        numbers = class_numbers(self.examples, self.classes)[order]
        return {
            name: order[np.flatnonzero(numbers == number)[: self.config.judge_shots]].tolist()
            for number, name in enumerate(self.classes)
        }

    @cached_property
    def shares(self) -> np.ndarray:
        """Shares [classes] of the classes among the rows."""
        return class_shares(self.examples, self.classes)

    def not_shown(self) -> np.ndarray:
        """Numbers [m] of the rows with other texts."""
        shown = {words_of(self.examples[at].text) for rows in self.shown().values() for at in rows}
        others = (at for at, example in enumerate(self.examples) if words_of(example.text) not in shown)
        return np.fromiter(others, dtype=np.int64)


def check_judges(name: str, config: JudgeConfig) -> tuple[str, ...]:
    """The judges in a name such as ``task+llm``.

    Raises:
        InputError: for an unknown one, one named twice, or ``api`` without what it needs.
    """
    parts = tuple(name.split("+"))
    for part in parts:
        if part not in JUDGES:
            raise InputError(f"judge {part!r} is not one of {', '.join(JUDGES)}; several are joined by +")
    if len(set(parts)) < len(parts):
        raise InputError(f"judge {name!r} names one of them twice")
    if "api" in parts:
        from inversedmixup.judges.api import check_api

        check_api(config)
    return parts


def check_pair(pair: Pair, classes: Sequence[str], judges: Collection[str], config: JudgeConfig) -> None:
    """Refuse a pair whose LLM is asked for classes that it cannot tell apart, before minutes are spent on it.

    Raises:
        InputError: naming two of them.
    """
    from inversedmixup.judges.prompt import check_names

    if {"llm", *TUNED} & set(judges):
        check_names(pair.llm, list(config.described(classes).values()))


def make_panel(name: str, case: Case, *, pooled: bool = False, evened: bool = True) -> Panel:
    """The judges of this name: one, or several joined by ``+``; see :class:`~inversedmixup.judges.panel.Panel`.

    Raises:
        InputError: if one cannot be had; see :func:`check_judges`.
    """
    from inversedmixup.judges.panel import Panel

    judges = [make_judge(part, case) for part in check_judges(name, case.config)]
    return Panel(judges, case.shares, pooled=pooled, evened=evened)


def make_judge(name: str, case: Case) -> Judge:
    """The judge called ``name``, one of :data:`~inversedmixup.labels.JUDGES`.

    Raises:
        InputError: if it cannot be had.
    """
    from inversedmixup.judges.api import ApiJudge
    from inversedmixup.judges.incontext import InContextJudge
    from inversedmixup.judges.llm import LLMJudge
    from inversedmixup.judges.probe import ProbeJudge
    from inversedmixup.judges.task import TaskJudge
    from inversedmixup.judges.tuned import TunedJudge

    makers: Mapping[str, Callable[[], Judge]] = {
        "task": partial(TaskJudge, case), "probe": partial(ProbeJudge, case), "llm": partial(LLMJudge, case),
        "tuned": partial(TunedJudge, case), "incontext": partial(InContextJudge, case), "api": partial(ApiJudge, case),
    }  # fmt: skip
    return makers[name]()


def judge_record(panel: Panel, examples: Sequence[Example], classes: Sequence[str], *, seed: int) -> dict[str, Any]:
    """How often each judge is right on rows of the user that it has not learnt from; asked once, then remembered.

    Returns:
        ``name`` of the panel, which of the answers is its ``verdict``, ``n`` rows asked about, and of the verdict and
        of each answer: ``coverage`` (the share on which it did not abstain) and ``accuracy`` there (``None`` if it
        abstained on all of them).
    """
    if panel.record is not None:
        return dict(panel.record)
    chosen = measured_rows(panel.unseen, seed=seed)
    record: dict[str, Any] = {
        "name": panel.name, "verdict": panel.verdict, "n": len(chosen), "accuracy": None, "coverage": None
    }  # fmt: skip
    if not chosen:
        return record
    true = np.array([list(classes).index(examples[at].label) for at in chosen])
    scores = {name: score(said, true) for name, said in panel.held_out(chosen).items()}
    panel.record = {**record, **scores[panel.verdict], "judges": scores}
    return dict(panel.record)


def score(said: np.ndarray, true: np.ndarray) -> dict[str, float | None]:
    """Coverage, and accuracy where there is an answer, of class probabilities [n, classes] against classes [n]."""
    answered = ~np.isnan(said).any(axis=1)
    right = said[answered].argmax(axis=1) == true[answered]
    return {
        "coverage": round(float(answered.mean()), 4), "accuracy": round(float(right.mean()), 4) if len(right) else None
    }  # fmt: skip
