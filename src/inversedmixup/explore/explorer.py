"""What the explorer page computes, without the page: strips, candidates, the map, the rows of a run.

One :class:`Explorer` serves all visitors. It holds models and data that nobody changes; what a visitor does is kept by
the page, per visitor.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inversedmixup.data import check_sentence, read_examples
from inversedmixup.gate import Gate, GateConfig
from inversedmixup.judges.panel import adjusted
from inversedmixup.labelled import check_classes, check_known_labels, class_shares
from inversedmixup.labels import is_intruded
from inversedmixup.mixing import interpolate, row_stream, soft_label
from inversedmixup.models.pair import Pair, PairOptions
from inversedmixup.models.sampling import WORD_WEIGHT
from inversedmixup.options import build
from inversedmixup.report.evidence import Evidence, gather
from inversedmixup.report.results import is_run, read_run
from inversedmixup.schema import SOURCES, Example, Row
from inversedmixup.stages.augment import AugmentConfig
from inversedmixup.stages.warmup import WarmupConfig, fit_task_model
from inversedmixup.stages.writer import DecodeConfig, write_mixes

LAMS = tuple(round(at / 20, 2) for at in range(20, -1, -1))  # λ = 1 … 0
CHUNK = (
    7  # λs decoded at a time: one call of the LLM costs about the same for 1 to 8 texts, and between two it can stop
)
CACHED = 64  # strips remembered
GREEDY = DecodeConfig(candidates=1, temperature=0.0, correct=0)
SAMPLED = DecodeConfig(candidates=1, correct=0)
FLUENCY_TEXTS = 64  # training texts whose fluency sets the gate's floor, where the run did not record it
HEAD = WarmupConfig(train_encoder="head", task_steps=200)
MAPS = ("PCA", "UMAP")
UMAP_ROWS = 5  # umap-learn fails on fewer
UMAP_NEIGHBOURS = 5  # training rows that place another point


@dataclasses.dataclass(frozen=True)
class Point:
    """The text written at one λ, with its scores (see :class:`~inversedmixup.schema.Row`)."""

    lam: float
    text: str
    lam_realised: float
    cycle_similarity: float
    fluency: float
    label_probs: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Strip:
    """What lies between two sentences.

    Attributes:
        first: the sentence at λ = 1.
        second: the sentence at λ = 0.
        points: one per λ written so far, from λ = 1 down.
        mixed: mixed embeddings of all λs, [21, d].
        reread: embeddings of the texts, [points, d].
    """

    first: str
    second: str
    points: tuple[Point, ...]
    mixed: Tensor
    reread: Tensor

    @property
    def finished(self) -> bool:
        """Whether every λ is written."""
        return len(self.points) == len(LAMS)


class Explorer:
    """Models and data of the page.

    Args:
        pair: a pair; without a head it gets one, fitted on its frozen embeddings.
        examples: labelled rows, for the map, the parents and the gate.
        gate: thresholds.
        rows: augmented rows of a run, kept and rejected.
        originals: what stands above them in the run's output; it is exported with them.
        fluencies: mean token log-likelihoods of training texts; computed when first needed if not given.
        word_weight: how much the pair's word head counts beside the LLM.
    """

    def __init__(
        self, pair: Pair, examples: Sequence[Example], *, gate: GateConfig | None = None, rows: Sequence[Row] = (),
        originals: Sequence[Row] = (), fluencies: Sequence[float] | None = None, word_weight: float = WORD_WEIGHT,
    ) -> None:  # fmt: skip
        self.pair, self.examples, self.gate = pair, list(examples), gate or GateConfig()
        self.rows, self.originals = list(rows), list(originals)
        self.evidence: Evidence = gather(self.examples, self.rows)
        self.embeddings = pair.task_model.encode([example.text for example in self.examples])
        if pair.task_model.head is None:
            classes = check_classes(self.examples, "the training file")
            fit_task_model(pair.task_model, self.examples, classes, HEAD, lambda _: None, known=self.embeddings)
        self.classes = list(pair.task_model.classes)
        self.shares = class_shares(self.examples, self.classes)
        umap = importlib.util.find_spec("umap")
        able = umap is not None and umap.origin is not None  # a folder that happens to be called umap has none
        self.maps = list(MAPS) if able and len(self.examples) >= UMAP_ROWS else ["PCA"]
        self._fluencies = fluencies
        self._greedy, self._sampled = (dataclasses.replace(way, word_weight=word_weight) for way in (GREEDY, SAMPLED))
        self._label_of = {example.text: example.label for example in self.examples}
        self._planes: dict[str, Any] = {}
        self._strips: OrderedDict[tuple[str, str], Strip] = OrderedDict()
        self._places: OrderedDict[tuple[str, str, int, str], tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._drawing = threading.Lock()  # a map is fitted once, however many visitors ask for it
        self._models = threading.Lock()  # LoRA is switched on and off in place: one visitor decodes at a time

    # ---- between two sentences -----------------------------------------------------------------------------------

    def strip(self, first: str, second: str) -> Iterator[Strip]:
        """The strip between two sentences, growing by a few λs at a time; at once if it was written before.

        Raises:
            InputError: for a sentence that is empty, overlong or no text.
        """
        first, second = _checked("first", first), _checked("second", second)
        known = self._strips.get((first, second))
        if known is not None:
            yield known
            return
        with self._models:
            ends = self.pair.task_model.encode([first, second])
        a, b = (end.expand(len(LAMS), -1) for end in ends)
        lams = torch.tensor(LAMS)
        strip = Strip(first, second, (), interpolate(a, b, lams), torch.empty(0, a.shape[1]))
        for at in range(0, len(LAMS), CHUNK):
            part = slice(at, at + CHUNK)
            points, reread = self._write(a[part], b[part], lams[part], [0] * len(lams[part]), self._greedy)
            strip = dataclasses.replace(
                strip, points=(*strip.points, *points), reread=torch.cat([strip.reread, reread])
            )
            yield strip
        _remember(self._strips, (first, second), strip)

    def candidates(self, first: str, second: str, lam: float, *, many: int = 6) -> list[Row]:
        """Texts drawn at one λ, best cycle similarity first, each as the gate judges it.

        A parent that is no training text has the class that the task model sees in it.

        Raises:
            InputError: for a sentence that is empty, overlong or no text.
        """
        first, second = _checked("first", first), _checked("second", second)
        with self._models:
            ends = self.pair.task_model.encode([first, second])
        a, b = (end.expand(many, -1) for end in ends)
        points, _ = self._write(a, b, torch.full((many,), lam), list(range(many)), self._sampled)
        labels = self._labels(first, second, ends)
        rows = [self._row(number, point, labels) for number, point in enumerate(points)]
        gate = Gate(self.gate, (example.text for example in self.examples), self._known_fluencies())
        rows.sort(key=lambda row: -row.cycle_similarity)
        return [gate.judge(row, (first, second), labels) for row in rows]

    def labels_of(self, strip: Strip) -> tuple[str, str]:
        """The classes of the parents; of one that is no training text, the class that the task model sees in it."""
        return self._labels(strip.first, strip.second, strip.mixed[[0, -1]])

    def _labels(self, first: str, second: str, ends: Tensor) -> tuple[str, str]:
        """The same of two sentences and their embeddings [2, d]."""
        seen = self.pair.task_model.predict_proba(ends).argmax(axis=1)
        return (
            self._label_of.get(first, self.classes[seen[0]]), self._label_of.get(second, self.classes[seen[1]])
        )  # fmt: skip

    def _write(
        self, first: Tensor, second: Tensor, lams: Tensor, streams: list[int], config: DecodeConfig
    ) -> tuple[list[Point], Tensor]:
        """Points at mixes of parents [n, d], and the embeddings of their texts [n, d]."""
        with self._models, torch.no_grad():
            written = write_mixes(self.pair, first, second, lams, [row_stream(0, at) for at in streams], config)
        assert written.class_probs is not None
        probs = adjusted(written.class_probs, self.shares)  # as new texts are labelled
        points = [
            Point(
                round(float(lams[at]), 4), text, written.lam_realised[at], written.cycle_similarity[at],
                written.fluency[at],
                {name: round(float(p), 4) for name, p in zip(self.classes, probs[at], strict=True)},
            )
            for at, text in enumerate(written.texts)
        ]  # fmt: skip
        return points, written.reread

    def _row(self, number: int, point: Point, labels: tuple[str, str]) -> Row:
        soft = soft_label(labels[0], labels[1], point.lam, self.classes)
        task = max(self.classes, key=point.label_probs.__getitem__)
        label = labels[0] if point.lam >= 0.5 else labels[1]
        return Row(
            id=f"candidate-{number}", text=point.text, label=label, label_probs=soft, parents=[], lam=point.lam,
            lam_realised=point.lam_realised, cycle_similarity=point.cycle_similarity, fluency=point.fluency,
            labels={**dict.fromkeys(SOURCES), "soft": label, "task": task}, intruded=is_intruded(task, soft), seed=0,
        )  # fmt: skip

    def _known_fluencies(self) -> Sequence[float]:
        if self._fluencies is None:
            texts = [example.text for example in self.examples]
            picked = np.random.default_rng(0).permutation(len(texts))[:FLUENCY_TEXTS]
            with self._models:
                self._fluencies = [float(v) for v in self.pair.llm.log_likelihood([texts[i] for i in picked])]
        return self._fluencies

    # ---- the map -------------------------------------------------------------------------------------------------

    def places(self, kind: str = "PCA") -> np.ndarray:
        """The training rows on the map, [n, 2], each axis in [0, 1]."""
        train: np.ndarray = self._plane(kind).train
        return train

    def places_of(self, strip: Strip, kind: str = "PCA") -> tuple[np.ndarray, np.ndarray]:
        """Mixed and re-read points of a strip on the map, [21, 2] and [points, 2]."""
        key = (strip.first, strip.second, len(strip.points), kind)
        known = self._places.get(key)
        if known is None:
            placed = self._plane(kind)(torch.cat([strip.mixed, strip.reread]))
            known = placed[: len(strip.mixed)], placed[len(strip.mixed) :]
            _remember(self._places, key, known)
        return known

    def _plane(self, kind: str) -> Plane:
        if kind not in self._planes:  # once it is there, nobody waits for another kind
            with self._drawing:
                if kind not in self._planes:
                    self._planes[kind] = Plane(self.embeddings, kind)
        plane: Plane = self._planes[kind]
        return plane


class Plane:
    """A map of embeddings [n, d] in two dimensions: PCA, or UMAP (McInnes et al. 2018) where it is installed.

    On a map of UMAP other points lie between their nearest rows, weighted by nearness. UMAP's own ``transform`` starts
    from there and then moves them by gradient steps, which with a hundred rows throws neighbours to opposite edges.
    """

    def __init__(self, embeddings: Tensor, kind: str) -> None:
        if kind == "UMAP":
            import umap
            from sklearn.neighbors import KNeighborsRegressor

            found = umap.UMAP(n_components=2, random_state=0, n_jobs=1).fit_transform(embeddings.numpy())
            near = KNeighborsRegressor(min(UMAP_NEIGHBOURS, len(found)), weights="distance")
            self._place = near.fit(embeddings.numpy(), found).predict
        else:
            from sklearn.decomposition import PCA

            model = PCA(n_components=2, svd_solver="full")
            found = model.fit_transform(embeddings.numpy())
            self._place = model.transform
        low, high = found.min(axis=0), found.max(axis=0)
        self._low, self._span = low, np.maximum(high - low, 1e-9)
        self.train = (found - self._low) / self._span

    def __call__(self, embeddings: Tensor) -> np.ndarray:
        """Other embeddings [n, d] on this map, [n, 2]; they may lie outside [0, 1]."""
        return np.asarray((self._place(embeddings.numpy()) - self._low) / self._span)


def open_explorer(target: str, models: PairOptions, *, text_column: str, label_column: str) -> Explorer:
    """The explorer of a run (``OUT`` or ``OUT.run``) or of a labelled file.

    Raises:
        InputError: if neither is there, or it cannot be read.
    """
    if is_run(target):
        run = read_run(target)
        gate = build(
            GateConfig, {f.name: run.settings[f.name] for f in dataclasses.fields(GateConfig) if f.name in run.settings}
        )
        pair = models.load_pair(run.folder / "model")
        weight = run.settings.get("word_weight", 0.0)  # as the rows of the run were written
        return Explorer(
            pair, run.examples, gate=gate, rows=list(run.rows()), originals=list(run.originals()),
            fluencies=run.fluencies, word_weight=weight,
        )  # fmt: skip
    examples = read_examples(target, text_column=text_column, label_column=label_column)
    check_classes(examples, target)
    weight, pair = 0.0 if models.engine == "vllm" else WORD_WEIGHT, models.load_pair()
    if pair.task_model.classes:  # it has been fitted
        check_known_labels(examples, pair.task_model.classes, target)
    gate = GateConfig(accept_labels=AugmentConfig().accepted)  # as `augment` would judge them
    return Explorer(pair, examples, gate=gate, word_weight=weight)


def _checked(name: str, text: str) -> str:
    """A sentence as the models take it."""
    text = " ".join(str(text or "").split())
    check_sentence(name, text)
    return text


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:  # noqa: ANN401
    cache[key] = value
    while len(cache) > CACHED:
        cache.popitem(last=False)
