"""What augmentation is compared with, and augmentation itself: one method a file, one protocol.

A :class:`Method` is given a :class:`Split` and answers in one of three ways: with rows to train on beside the
originals (:class:`Added`), with a :class:`~inversedmixup.models.task_model.Mixer` that changes how the task model is
trained, or with class probabilities of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from inversedmixup.errors import InputError
from inversedmixup.judges import TUNED, Case, Judge, check_judges, make_judge
from inversedmixup.judges.panel import Panel
from inversedmixup.labels import RECOMMENDED, parse_labels
from inversedmixup.models.task_model import Mixer, TaskModel
from inversedmixup.schema import Example
from inversedmixup.stages.warmup import CrossValidation, run_warmup

if TYPE_CHECKING:
    from inversedmixup.benchmark import BenchmarkConfig
    from inversedmixup.models.llm import SoftTokenLLM
    from inversedmixup.models.pair import Pair
    from inversedmixup.runs import RunFolder


@dataclasses.dataclass(frozen=True)
class Added:
    """What a method trains on beside the originals.

    Attributes:
        texts: m texts.
        targets: their class probabilities [m, classes].
        weight: how much one of them counts in the loss, or each of them, [m]; ``None``: as the protocol has it.
        original_weights: how much each original counts, [n]; ``None``: as ``--class-weights`` has it.
    """

    texts: Sequence[str]
    targets: np.ndarray
    weight: float | np.ndarray | None = None
    original_weights: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The labelled rows that a method may use, and what is dear and the same for every method: made when first needed.

    Attributes:
        examples: the training rows.
        classes: class names, the columns of every target.
        config: how many rows are wanted (``n``), the split's own ``seed``, and every setting of ``augment``.
        fresh: makes an untrained task model, the same each time.
        run: where what is dear is recorded and found again.
        name: the split's, for these records.
        measured: the words of the texts that are measured on, see :func:`~inversedmixup.same_text.words_of`: no
            method may learn from these texts, not even without their labels.
    """

    examples: Sequence[Example]
    classes: Sequence[str]
    config: BenchmarkConfig
    fresh: Callable[[], TaskModel]
    run: RunFolder
    name: str
    measured: frozenset[str] = frozenset()
    _dear: dict[str, Judge] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def stream(self, use: int) -> np.random.Generator:
        """A random stream of the split, another one for each use."""
        return np.random.default_rng([self.config.seed, use])

    @cached_property
    def pair(self) -> Pair:
        """The pair after stage 2 on these rows."""
        pair = self.config.load_pair()
        run_warmup(pair, self.examples, self.classes, self.config, self.cross_validated, self.measured)
        return pair

    def dear(self, name: str) -> Judge:
        """A judge of :data:`~inversedmixup.judges.TUNED`: one for all methods, asked the same no second time."""
        if name not in self._dear:
            folder = self.run.folder / "judges" / self.name
            case = Case(self.pair, self.examples, self.classes, self.config, self.config.seed, folder=folder)
            self._dear[name] = Remembering(make_judge(name, case))
        return self._dear[name]

    @cached_property
    def store(self) -> RunFolder:
        """Where what is written for this split is recorded."""
        return self.run.part(f"written/{self.name}")

    @cached_property
    def llm(self) -> SoftTokenLLM:
        """The pair's LLM as it came, for prompts: a text ends with its line."""
        llm = self.config.load_llm()
        llm.end_at_newline()
        return llm

    def panel(self, labels: str) -> Panel | None:
        """The judges that a label policy asks, those of :data:`~inversedmixup.judges.TUNED` being the split's."""
        policy = parse_labels(labels)
        if policy.judge is None:
            return None
        case = Case(
            self.pair, self.examples, self.classes, self.config, self.config.seed, self.cross_validated, self.run.folder
        )
        names = check_judges(policy.judge, self.config)
        judges = [self.dear(name) if name in TUNED else make_judge(name, case) for name in names]
        return Panel(judges, case.shares, pooled=policy.kind == "pool")

    def labelled(self, texts: Sequence[str]) -> Added:
        """Texts, whoever wrote them, with what :data:`~inversedmixup.labels.RECOMMENDED` says of them."""
        panel = self.panel(RECOMMENDED)
        if panel is None or not texts:
            return Added([], np.empty((0, len(self.classes))))
        return Added(texts, panel.hear(texts, self.pair.task_model.encode(texts))[panel.verdict])

    @cached_property
    def cross_validated(self) -> CrossValidation:
        """See :class:`~inversedmixup.judges.Case`."""
        return CrossValidation(self.fresh, self.examples, self.classes, self.config)


class Remembering:
    """A judge that is asked about the same texts once; see :class:`~inversedmixup.judges.Judge`.

    Texts of which some are known are asked about whole: the last bits of an answer depend on the texts beside it, and
    must not depend on what other methods have asked about.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge, self.name = judge, judge.name
        self._said: dict[tuple[str, ...], np.ndarray] = {}

    @property
    def expects(self) -> np.ndarray | None:
        """As the judge says it, who need not look before he is asked."""
        return self.judge.expects

    @property
    def unseen(self) -> np.ndarray:
        """As the judge says it, who need not look before he is asked."""
        return self.judge.unseen

    def prepare(self) -> None:
        """As the judge does it."""
        self.judge.prepare()

    def probabilities(self, texts: Sequence[str], embeddings: Tensor) -> np.ndarray:
        """Class probabilities [n, classes]."""
        asked = tuple(texts)
        if asked not in self._said:
            self._said[asked] = self.judge.probabilities(texts, embeddings)
        return self._said[asked].copy()

    def held_out(self, rows: Sequence[int]) -> np.ndarray:
        """As the judge says it."""
        return self.judge.held_out(rows)


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to train on few labelled rows. At most one of ``added``, ``mixer`` and ``classify`` is there.

    Attributes:
        name: as on the command line.
        about: what it does, with its source, in one line.
        added: makes rows.
        mixer: changes the training batches.
        classify: class probabilities [n, classes] of texts, by something other than the task model.
        temperature: what the trained task model's logits are divided by.
        short: trained for as many epochs as with augmentation, not for as many steps.
        writes: whether the LLM writes its rows: it takes minutes, not seconds.
        tunes: how many copies of the LLM its judges tune, which takes minutes; ``None``: as the settings' labels ask.
        within: whether it mixes within a class whatever the settings say, so that some class needs two rows.
        texts: about how many texts it adds that no other method has, of so many training rows; ``None``: ``n`` of the
            settings if it writes, else none.
        check: refuses settings that it cannot serve, before anything runs.
        facts: what a run's record says of the means that are there; a run with others is done again.
    """

    name: str
    about: str
    added: Callable[[Split], Added] | None = None
    mixer: Callable[[Split], Mixer] | None = None
    classify: Callable[[Split, Sequence[str]], np.ndarray] | None = None
    temperature: Callable[[Split], float] | None = None
    short: bool = False
    writes: bool = False
    tunes: int | None = 0
    within: bool = False
    texts: Callable[[int, BenchmarkConfig], int] | None = None
    check: Callable[[BenchmarkConfig], None] | None = None
    facts: Callable[[], Mapping[str, Any]] | None = None

    def asked(self, labels: str) -> Sequence[str]:
        """The judges that label its rows; ``labels`` is the policy of the settings."""
        return parse_labels(labels).judges if self.tunes is None else TUNED[: self.tunes]


THREE = "pool:task+tuned+incontext"
BASELINE = "equal-steps"  # what every method is compared with
_FILES = (
    "plain",
    "eda",
    "aeda",
    "word_mixup",
    "sentence_mixup",
    "tmix",
    "ssmix",
    "paraphrase",
    "generate",
    "pseudo_label",
    "inversed",
    "tuned",
)


def methods() -> dict[str, Method]:
    """Every method by its name."""
    found: dict[str, Method] = {}
    for file in _FILES:
        for method in import_module(f"inversedmixup.baselines.{file}").METHODS:
            found[method.name] = method
    return found


def chosen(names: str) -> list[Method]:
    """The methods of a comma-separated list, after the baseline.

    Raises:
        InputError: for an unknown one.
    """
    known = methods()
    wanted = dict.fromkeys([BASELINE, *(name.strip() for name in names.split(",") if name.strip())])
    for name in wanted:
        if name not in known:
            raise InputError(f"method {name!r} is not one of {', '.join(known)}")
    return [known[name] for name in wanted]
