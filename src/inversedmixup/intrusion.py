"""Manifold intrusion, measured: how often a mix belongs to another class than interpolation says.

A mix of rows of the classes a and b at λ is *contradicted* if its class holds less than half of the interpolated label
λ a + (1−λ) b, and *foreign* if its class is neither a nor b, the collision that Guo et al. (2019, "Mixup as locally
linear out-of-manifold regularization") call manifold intrusion. What its class is, nobody knows; so several observers
say so, each with an error of its own that was measured on real rows (:mod:`.rates`):

- ``reference``: a classifier trained on a large labelled set,
- ``neighbour``: the class of the nearest real row, parents left out,
- each judge that is asked, on texts; the task model also on mixed embeddings.

Mixes are looked at in embedding space, where thousands cost nothing, and after decoding, where a text is re-read.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.data import read_examples
from inversedmixup.errors import InputError, clear_write_errors, local_path
from inversedmixup.figures import DRAWN
from inversedmixup.identity import work_settings
from inversedmixup.judges import Case, JudgeConfig, check_judges, judge_record, make_panel
from inversedmixup.labelled import check_classes, check_known_labels, class_counts, sample_rows, take_shots
from inversedmixup.labels import JUDGES_HELP
from inversedmixup.mixing import INTERPOLATIONS, Draw, LambdaPolicy, PairSampler, interpolate, row_stream
from inversedmixup.models.pair import Pair
from inversedmixup.options import NOTHING, at_least, option
from inversedmixup.outputs import check_ours
from inversedmixup.rates import KINDS, Observer, Parents, seen
from inversedmixup.reference import ReferenceLabeller
from inversedmixup.remote import check_local
from inversedmixup.runs import RunFolder
from inversedmixup.same_text import words_of
from inversedmixup.schema import Example
from inversedmixup.sealed import write_json
from inversedmixup.stages.warmup import CrossValidation, WarmedConfig, warmed_up
from inversedmixup.stages.writer import DecodeConfig, write_mixes
from inversedmixup.terminal import progress

logger = logging.getLogger(__name__)

POLICIES = ("cross-class", "same-class")
# pairs have no order, so λ and 1−λ are the same mix; λ = 1 is a row itself, and its text a mere reconstruction
LAMS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
REFERENCE_ROWS = 5000
REFERENCE_EACH = 20  # of them, of each class at least, or all that it has
SPACES = ("embedding", "text")


@dataclasses.dataclass(frozen=True)
class IntrusionConfig(WarmedConfig, DecodeConfig, JudgeConfig):
    """Settings of ``intrusion``."""

    reference: str | None = option(None, "large labelled file for the reference; default: the training file, all of it")
    interpolation: str = option(
        "linear", "which one the class pairs and the pictures are of; all are measured",
        choices=INTERPOLATIONS,
    )  # fmt: skip
    judges: str = option("task", f"who else looks at the texts: {JUDGES_HELP}")
    mixes: int = option(500, "mixed embeddings for each λ, pair policy and interpolation")
    texts: int = option(16, "texts for each λ, pair policy and interpolation")
    correct: int | None = option(0, "correction steps on the best candidate")
    label_column: str = option("label", "column of the label")
    shots: int | None = option(None, "use only this many rows of each class, drawn by --data-seed")
    data_seed: int = option(0, "seed of the choice of rows by --shots")
    overwrite: bool = option(False, "replace a study with other settings in the folder", decides=NOTHING)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "mixes")
        at_least(self, 0, "texts", "data_seed")


@dataclasses.dataclass(frozen=True)
class Mixes:
    """Mixes of one pair policy, interpolation and λ, and what each observer says of them.

    Attributes:
        space: one of :data:`SPACES`.
        pairs: the pair policy.
        interpolation: how they were mixed.
        lam: λ, the weight of the first parent, at least ½.
        parents: the rows that they lie between.
        said: class numbers [n] by observer; −1 where it abstained.
    """

    space: str
    pairs: str
    interpolation: str
    lam: float
    parents: Parents
    said: Mapping[str, np.ndarray]

    def where(self, which: np.ndarray) -> Mixes:
        """Those of the mixes for which this is true, [n]."""
        parents = Parents(self.parents.rows[which], self.parents.classes[which])
        return dataclasses.replace(self, parents=parents, said={name: said[which] for name, said in self.said.items()})

    def outside(self, observer: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Whether each mix is ``contradicted`` or ``foreign`` to an observer, [n], and how many classes were not."""
        both = kind == "foreign" or self.lam == 0.5
        classes = self.parents.classes
        inside = classes if both else classes[:, :1]
        hits = (self.said[observer][:, None] != inside).all(axis=1)
        different = classes[:, 0] != classes[:, 1]
        return hits, np.where(different & both, 2, 1)


def run_intrusion(train: str, output: str, config: IntrusionConfig) -> dict[str, Any]:
    """Measure intrusion on a labelled file; finished work in the folder ``output`` is taken up again.

    Returns:
        What ``output/intrusion.json`` holds: ``observers`` with their accuracies, ``rates`` by space, pair policy,
        interpolation, λ and observer, and ``class_pairs``, the rates by the classes of the parents.

    Raises:
        InputError: for input that cannot be used, or when the disk is full.
    """
    check_local("intrusion", train, output, config.reference, config.unlabelled, config.descriptions)
    columns = {"text_column": config.text_column, "label_column": config.label_column}
    everything = read_examples(train, **columns)
    shots = config.shots
    examples = everything if shots is None else take_shots(everything, shots, seed=config.data_seed)
    classes = check_classes(examples, train)
    known = read_examples(config.reference, **columns) if config.reference else everything
    check_known_labels(known, classes, config.reference or train)
    if lacking := set(classes) - {row.label for row in known}:
        raise InputError(f"{config.reference}: no row of class {min(lacking)!r}; the reference must know every class")
    config.check_corrects(config.correct)
    if max(class_counts(examples).values()) < 2:
        raise InputError(
            f"{train}: no class has two rows; mixes within a class are measured too: give more rows or shots"
        )
    samplers = {
        policy: PairSampler([e.label for e in examples], policy, LambdaPolicy("fixed", (1.0,))) for policy in POLICIES
    }
    config.check_descriptions(classes, check_judges(config.judges, config))
    config.warn_if_fitted()
    folder = local_path(output)
    written = [folder / name for name in ("intrusion.json", *DRAWN)]
    check_ours(folder / "run" / "config.json", *written, overwrite=config.overwrite)
    with clear_write_errors(folder):
        settings = work_settings(config, examples, known)
        run = RunFolder(folder / "run", settings, overwrite=config.overwrite, results=written)
        fit = CrossValidation(config.load_task_model, examples, classes, config)
        pair = warmed_up(config, examples, classes, run, fit)
        looked_at = sample_rows(known, REFERENCE_ROWS, each=REFERENCE_EACH, seed=[config.seed, 10])
        study = _Study(pair, examples, classes, looked_at, config, run, fit)
        result = study.report(study.observers(), [*study.embeddings(samplers), *study.texts(samplers)])
        write_json(folder / "intrusion.json", result)
        return result


class _Study:
    """The rows, the reference and the judges of one study."""

    def __init__(
        self, pair: Pair, examples: Sequence[Example], classes: Sequence[str], known: Sequence[Example],
        config: IntrusionConfig, run: RunFolder, cross_validated: CrossValidation,
    ) -> None:  # fmt: skip
        self.pair, self.examples, self.classes, self.config, self.run = pair, list(examples), list(classes), config, run
        self.number = {name: at for at, name in enumerate(self.classes)}
        self.rows = pair.task_model.encode([example.text for example in examples])
        self.row_classes = np.array([self.number[example.label] for example in examples])
        self.known = pair.task_model.encode([row.text for row in known])
        self.known_classes = np.array([self.number[row.label] for row in known])
        learnt = self._not_parents(known)
        self.reference = ReferenceLabeller(self.known[learnt], [known[at].label for at in learnt])
        # texts by number, so that no row is the neighbour of its own text, however often that is there
        number = {text: at for at, text in enumerate(dict.fromkeys(words_of(row.text) for row in known))}
        self.known_texts = np.array([number[words_of(row.text)] for row in known])
        self.own = np.array([number.get(words_of(example.text), -1) for example in examples])
        case = Case(pair, self.examples, self.classes, config, config.seed, cross_validated, run.folder)
        # rates are corrected by the errors on rows as they come, so judges are heard as they are
        self.panel = make_panel(config.judges, case, evened=False)

    def _not_parents(self, known: Sequence[Example]) -> list[int]:
        """Rows that the reference learns from: none of the parents, if the others have every class at least twice."""
        parents = {words_of(example.text) for example in self.examples}
        others = [at for at, row in enumerate(known) if words_of(row.text) not in parents]
        counts = Counter(known[at].label for at in others)
        self.independent = all(counts[name] > 1 for name in self.classes)
        return others if self.independent else list(range(len(known)))

    # ---- observers -----------------------------------------------------------------------------------------------

    def observers(self) -> dict[str, Observer]:
        """Everyone who looks, with their accuracies on real rows."""
        record = self.run.read("judge")
        if record is None:
            record = judge_record(self.panel, self.examples, self.classes, seed=self.config.seed)
            self.run.write("judge", record)
        found = {
            "reference": Observer("reference", self.reference.accuracy, self.reference.n),
            "neighbour": Observer("neighbour", self._neighbour_accuracy(), len(self.known)),
        }
        measured = record.get("judges", {})
        names = ["task", *self.panel.answers]
        for name in dict.fromkeys(names):
            scores = measured.get(name, {"accuracy": None, "coverage": 0.0})
            found[name] = Observer(name, scores["accuracy"], round(record["n"] * scores["coverage"]))
        return found

    def _neighbour_accuracy(self) -> float:
        """How often the nearest other real row has a row's class."""
        said = self._neighbours(self.known, self.known_texts[:, None])
        return round(float((said == self.known_classes).mean()), 4)

    def _neighbours(self, points: Tensor, left_out: np.ndarray) -> np.ndarray:
        """Classes [n] of the real rows nearest to points [n, d] by cosine; texts left out [n, any], −1 for none."""
        known, out = nn.functional.normalize(self.known, dim=1), []
        for at in range(0, len(points), 1024):
            near = (nn.functional.normalize(points[at : at + 1024], dim=1) @ known.T).numpy()
            near[(left_out[at : at + 1024, :, None] == self.known_texts).any(axis=1)] = -np.inf
            out.append(self.known_classes[near.argmax(axis=1)])
        return np.concatenate(out)

    def _look(self, points: Tensor, draws: Sequence[Draw]) -> dict[str, np.ndarray]:
        """What the reference and the neighbours say of embeddings [n, d] mixed from these parents."""
        parents = np.array([[draw.first, draw.second] for draw in draws])
        named = self.reference.label(points)
        return {
            "reference": np.array([self.number[name] for name in named]),
            "neighbour": self._neighbours(points, self.own[parents]),
        }

    # ---- mixes ---------------------------------------------------------------------------------------------------

    def _cells(self, samplers: Mapping[str, PairSampler], n: int) -> Iterator[tuple[str, str, float, list[Draw]]]:
        """Pair policy, interpolation, λ and n draws: fresh pairs for each λ, so that λs can be counted together."""
        for policy, sampler in samplers.items():
            for part, lam in enumerate(LAMS):
                rows = range(part * n, (part + 1) * n)
                draws = [sampler.draw(row, row_stream(self.config.seed, row)) for row in rows]
                for how in INTERPOLATIONS:
                    yield policy, how, lam, draws

    def embeddings(self, samplers: Mapping[str, PairSampler]) -> Iterator[Mixes]:
        """Mixed embeddings, with what the task model sees in them beside the others."""
        for policy, how, lam, draws in self._cells(samplers, self.config.mixes):
            first, second = self._points(draws)
            mixed = interpolate(first, second, torch.full((len(draws),), lam), how)
            said = self._look(mixed, draws)
            said["task"] = self.pair.task_model.predict_proba(mixed).argmax(axis=1)
            yield Mixes("embedding", policy, how, lam, self._parents_of(draws), said)

    def texts(self, samplers: Mapping[str, PairSampler]) -> Iterator[Mixes]:
        """Decoded texts, re-read."""
        cells = list(self._cells(samplers, self.config.texts)) if self.config.texts else []
        with progress("texts", len(cells)) as advance:
            for policy, how, lam, draws in cells:
                texts = self._written(policy, how, lam, draws)
                reread = self.pair.task_model.encode(texts)
                heard = {name: _named(probs) for name, probs in self.panel.hear(texts, reread).items()}
                said = {**self._look(reread, draws), **heard}
                yield Mixes("text", policy, how, lam, self._parents_of(draws), said)
                advance(1)

    def _written(self, policy: str, how: str, lam: float, draws: Sequence[Draw]) -> list[str]:
        name = f"texts/{policy}-{how}-{lam}"
        texts = self.run.read(name)
        if texts is None:
            first, second = self._points(draws)
            # the same stream for every interpolation of a pair: they differ by the point, not by luck
            streams = [row_stream(self.config.seed, draw.row) for draw in draws]
            config = dataclasses.replace(self.config, interpolation=how)
            texts = write_mixes(self.pair, first, second, torch.full((len(draws),), lam), streams, config).texts
            self.run.write(name, texts)
        return list(texts)

    def _points(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        return self.rows[[draw.first for draw in draws]], self.rows[[draw.second for draw in draws]]

    def _parents_of(self, draws: Sequence[Draw]) -> Parents:
        rows = np.array([[draw.first, draw.second] for draw in draws])
        return Parents(rows, self.row_classes[rows])

    # ---- the report ------------------------------------------------------------------------------------------------

    def report(self, observers: Mapping[str, Observer], mixes: Sequence[Mixes]) -> dict[str, Any]:
        """Rates of each cell, over all λ < 1 of it, and by the classes of the parents."""
        return {
            "observers": [dataclasses.asdict(observer) for observer in observers.values()],
            "reference_knows_the_parents": not self.independent, "classes": self.classes, "rows": len(self.examples),
            "interpolation": self.config.interpolation,
            "rates": [rate for part in _cells(mixes) for rate in self._rates(part, observers)],
            "class_pairs": [rate for part in self._class_pairs(mixes) for rate in self._rates(part, observers)],
        }  # fmt: skip

    def _rates(
        self, part: tuple[dict[str, Any], list[Mixes]], observers: Mapping[str, Observer]
    ) -> Iterator[dict[str, Any]]:
        """One record for each observer of some mixes."""
        about, mixes = part
        for name in mixes[0].said:
            answered = [mix.where(mix.said[name] >= 0) for mix in mixes]
            parents = Parents(
                *(np.concatenate([getattr(mix.parents, part) for mix in answered]) for part in ("rows", "classes"))
            )
            record = {**about, "observer": name}
            for kind in KINDS:
                hits, inside = (
                    np.concatenate(part) for part in zip(*(mix.outside(name, kind) for mix in answered), strict=True)
                )
                record[kind] = seen(hits, inside, len(self.classes), observers[name], parents)
            yield record

    def _class_pairs(self, mixes: Sequence[Mixes]) -> Iterator[tuple[dict[str, Any], list[Mixes]]]:
        """Mixes of two classes by the chosen interpolation, λ < 1, apart by class pair."""
        for space in SPACES:
            chosen = [
                mix for mix in mixes
                if (mix.space, mix.pairs, mix.interpolation) == (space, "cross-class", self.config.interpolation)
                and mix.lam < 1
            ]  # fmt: skip
            if not chosen:
                continue
            there = {tuple(sorted(pair)) for mix in chosen for pair in mix.parents.classes.tolist()}
            for pair in sorted(there):
                between = [mix.where((np.sort(mix.parents.classes, axis=1) == pair).all(axis=1)) for mix in chosen]
                yield {"space": space, "classes": [self.classes[at] for at in pair]}, between


def _cells(mixes: Sequence[Mixes]) -> Iterator[tuple[dict[str, Any], list[Mixes]]]:
    """Each cell, and those of a space, pair policy and interpolation together (``lam: null``; without λ = 1)."""
    for mix in mixes:
        yield {"space": mix.space, "pairs": mix.pairs, "interpolation": mix.interpolation, "lam": mix.lam}, [mix]
    for space, pairs, how in dict.fromkeys((mix.space, mix.pairs, mix.interpolation) for mix in mixes):
        parts = [
            mix for mix in mixes if (mix.space, mix.pairs, mix.interpolation) == (space, pairs, how) and mix.lam < 1
        ]
        yield {"space": space, "pairs": pairs, "interpolation": how, "lam": None}, parts


def _named(probs: np.ndarray) -> np.ndarray:
    """Class numbers [n] of probabilities [n, classes]; −1 where the judge abstained."""
    said: np.ndarray = np.nan_to_num(probs).argmax(axis=1)
    said[np.isnan(probs).any(axis=1)] = -1
    return said
