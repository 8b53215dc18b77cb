"""The Python API: fit a pair to your labelled sentences, then mix, augment, resample or label."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inversedmixup.data import check_sentence, check_several, checked_examples, label_name
from inversedmixup.errors import InputError, clear_write_errors, local_path
from inversedmixup.judges import Case, JudgeConfig, make_panel
from inversedmixup.judges.panel import Panel
from inversedmixup.labelled import check_classes, class_counts
from inversedmixup.labels import parse_labels
from inversedmixup.mixing import row_stream
from inversedmixup.models.pair import Pair, warn_if_fitted
from inversedmixup.models.task_model import TaskModel
from inversedmixup.options import WORK, build, deciding
from inversedmixup.row_file import arrow_schema
from inversedmixup.schema import Example, LabelledText, Row
from inversedmixup.sealed import digest
from inversedmixup.stages.augment import AugmentConfig, AugmentResult, check_rows, run_augment
from inversedmixup.stages.pseudo_label import PseudoLabelConfig, run_pseudo_label
from inversedmixup.stages.warmup import CrossValidation, WarmupConfig, run_warmup
from inversedmixup.stages.writer import DecodeConfig, write_mixes

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

PARAMETERS = ("pair", "encoder", "llm", "device", "dtype", "engine", "seed", "options")
RESAMPLE_ROUNDS = 3  # the gate decides which classes a round fills; what is still missing gets another


class InversedMixup:
    """Augments labelled sentences with texts that a language model writes between two of them.

    Also a resampler in the manner of imbalanced-learn: :meth:`fit_resample`, ``get_params``, ``set_params``.

    Args:
        pair: pair folder; default: the pair that ships with the package.
        encoder: where the pair's encoder lies, if not where the pair says.
        llm: where the pair's LLM lies, if not where the pair says.
        device: torch device.
        dtype: precision of the LLM: ``float32``, ``bfloat16``, or ``auto`` for what suits the device.
        engine: what writes the texts: ``transformers``, or ``vllm`` (needs a GPU and its package).
        seed: decides everything random.
        options: for :meth:`fit_resample`, options of :meth:`fit` and :meth:`augment` by name.

    Attributes:
        classes_: class names, after :meth:`fit`.
        warmup_: what stage 2 measured, after :meth:`fit`.
        result_: kept and rejected rows and the summary of the last :meth:`augment`.
        labelled_: what the last :meth:`label` counted and measured.
    """

    def __init__(
        self, pair: str | Path | None = None, *, encoder: str | None = None, llm: str | None = None,
        device: str = "cpu", dtype: str = "auto", engine: str = "transformers", seed: int = 0,
        options: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.pair, self.encoder, self.llm, self.device = pair, encoder, llm, device
        self.dtype, self.engine, self.seed, self.options = dtype, engine, seed, options
        self._pair: Pair | None = None
        self._examples: list[Example] = []
        self._last_panel: tuple[str, Panel] | None = None  # the judges last asked, and the settings that they are of

    @classmethod
    def from_pretrained(cls, pair: str | Path | None = None, **arguments: Any) -> InversedMixup:
        """A mixer with its models loaded: the default pair, or one that ``align`` or :meth:`save_pretrained` wrote.

        Takes the arguments of the constructor.

        Raises:
            InputError: if a model cannot be loaded, or the encoder is not the one the adaptor was trained on.
        """
        mixer = cls(pair, **arguments)
        mixer.models_  # noqa: B018 (loads them)
        return mixer

    @property
    def models_(self) -> Pair:
        """The models, loaded when first needed."""
        if self._pair is None:
            self._pair = Pair.load(
                self.pair, encoder=self.encoder, llm=self.llm, device=self.device, dtype=self.dtype, engine=self.engine
            )
        return self._pair

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Constructor arguments, for scikit-learn's ``clone``."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def set_params(self, **params: Any) -> InversedMixup:
        """Change constructor arguments; the models are loaded anew, unless none is given."""
        if unknown := params.keys() - set(PARAMETERS):
            raise InputError(f"InversedMixup has no parameter {min(unknown)!r}")
        for name, value in params.items():
            setattr(self, name, value)
        if params:
            self._pair, self._examples, self._last_panel = None, [], None
        return self

    # ---- the stages ------------------------------------------------------------------------------------------

    def fit(self, texts: Any, labels: Any = None, **options: Any) -> InversedMixup:  # noqa: ANN401
        """Stage 2: fine-tune the task model on the labels and refine the adaptor (paper, stage 2).

        Args:
            texts: a sequence of sentences (list, array, pandas Series), or a ``datasets.Dataset`` or pandas
                DataFrame with columns ``text`` and ``label``.
            labels: their labels; leave out for a data set.
            options: fields of :class:`~inversedmixup.stages.warmup.WarmupConfig`, e.g. ``train_encoder="head"``.

        Raises:
            InputError: for unusable rows or options, fewer than two classes, or spoilt reconstruction.
        """
        examples = as_examples(texts, labels)
        classes = check_classes(examples, "labels")
        config = build(WarmupConfig, {"seed": self.seed}, options)
        if self._examples:  # a second fit starts from the pair as it was, not from the first fit
            self._pair = None
        self._examples, self._last_panel = [], None
        warn_if_fitted(self.pair)
        cross_validated = CrossValidation(self._fresh, examples, classes, config)
        try:
            self.warmup_ = run_warmup(self.models_, examples, classes, config, cross_validated)
        except BaseException:
            self._pair = None  # half-trained: the next use loads the models anew
            raise
        self._examples, self.classes_ = examples, classes
        self._cross_validated = cross_validated
        return self

    def augment(self, n: int = 200, **options: Any) -> Dataset:
        """Stage 3: ``n`` new rows between the rows given to :meth:`fit` (paper, stage 3).

        Args:
            n: rows wanted; fewer come back when the gate rejects too many.
            options: fields of :class:`~inversedmixup.stages.augment.AugmentConfig`, e.g. ``lam="beta:0.4"``,
                ``labels="llm"``, ``pairs="cross-class"``, ``candidates=8``.

        Returns:
            The kept rows, with the columns of :class:`~inversedmixup.schema.Row`. Rejected rows and the summary are in
            ``result_``.

        Raises:
            InputError: before :meth:`fit`, or for options that the rows cannot serve.
        """
        self.result_ = self._augment(n, options)
        return _dataset(self.result_.kept, self.classes_, Row)

    def _augment(self, n: int, options: dict[str, Any], attempt: int = 0) -> AugmentResult:
        self._check_fitted("augment")
        config = build(AugmentConfig, {"seed": self.seed}, options, {"n": n})
        config.check_descriptions(self.classes_, parse_labels(config.labels).judges)
        kept: list[Row] = []
        rejected: list[Row] = []
        summary = run_augment(
            self.models_, self._examples, self.classes_, dataclasses.replace(config, seed=config.seed + attempt),
            lambda row: (kept if row.kept else rejected).append(row), cross_validated=self._cross_validated,
            panel=self._panel(config.labels, config),
        )  # fmt: skip
        return AugmentResult(kept, rejected, summary)

    def _check_fitted(self, what: str) -> None:
        if self._examples:
            return
        if self.models_.task_model.head is not None:
            raise InputError(
                f"{what} needs labelled rows, which a saved pair does not hold: call fit(texts, labels) on the pair "
                f"that it was fitted from (or on this one, if the rows are others)"
            )
        raise InputError(f"{what} needs labelled rows: call fit(texts, labels) first")

    def _panel(self, labels: str, config: AugmentConfig | PseudoLabelConfig) -> Panel | None:
        """The judges of a label policy, made and measured once as long as neither it nor their settings change."""
        policy = parse_labels(labels)
        if policy.judge is None:
            return None
        of_judges = {field.name for field in dataclasses.fields(JudgeConfig)}
        own = {name: value for name, value in deciding(config, WORK).items() if name in of_judges}
        told = config.described(self.classes_)
        key = digest([policy.judge, policy.kind == "pool", config.seed, {**own, "descriptions": told}])
        if self._last_panel is None or self._last_panel[0] != key:
            self._last_panel = None  # those of other settings go first: each may hold a copy of the LLM
            case = Case(self.models_, self._examples, self.classes_, config, config.seed, self._cross_validated)
            self._last_panel = key, make_panel(policy.judge, case, pooled=policy.kind == "pool")
        return self._last_panel[1]

    def __getstate__(self) -> dict[str, Any]:
        """Judges are made anew where it is unpickled."""
        return {**self.__dict__, "_last_panel": None}

    def label(self, texts: Any, **options: Any) -> Dataset:  # noqa: ANN401
        """Labels for sentences that nobody has labelled, by the judges that label new ones (pseudo-labels, Lee 2013).

        Args:
            texts: sentences: list, array, Series, or something with one column.
            options: fields of :class:`~inversedmixup.stages.pseudo_label.PseudoLabelConfig`, e.g.
                ``labels="pool:task+probe"``.

        Returns:
            A row for each text, but for empty and overlong ones, with the columns of
            :class:`~inversedmixup.schema.LabelledText`; ``id`` is its place in ``texts``. What ``reject_reason`` names
            is not to be trained on. The counts, and how often the judges are right on rows given to :meth:`fit`, are
            in ``labelled_``.

        Raises:
            InputError: before :meth:`fit`, for options that the rows cannot serve, or a judge not to be trusted.
        """
        self._check_fitted("label")
        config = build(PseudoLabelConfig, {"seed": self.seed}, options)
        config.check_descriptions(self.classes_, parse_labels(config.labels).judges)
        numbered = ((at, str(at), text, None) for at, text in enumerate(flatten(texts)))
        rows: list[LabelledText] = []
        self.labelled_ = run_pseudo_label(
            self.models_, self._examples, self.classes_, list(checked_examples(numbered, "texts", labelled=False)),
            config, rows.append, cross_validated=self._cross_validated, panel=self._panel(config.labels, config),
        )  # fmt: skip
        return _dataset(rows, self.classes_, LabelledText)

    def _fresh(self) -> TaskModel:
        """An untrained task model."""
        return Pair.load_task_model(self.pair, encoder=self.encoder, device=self.device)

    def mix(
        self, first: str, second: str, *, steps: int = 7, lams: Sequence[float] | None = None, **options: Any
    ) -> Dataset:
        """The λ strip: what lies between two sentences.

        Args:
            first: the sentence at λ = 1.
            second: the sentence at λ = 0.
            steps: how many points, evenly spaced from λ = 1 to λ = 0.
            lams: the ratios themselves, instead of ``steps``.
            options: fields of :class:`~inversedmixup.stages.writer.DecodeConfig`.

        Returns:
            One row per λ: ``lam, text, lam_realised, cycle_similarity, fluency`` and, once fitted, ``label_probs``.
        """
        from datasets import Dataset

        return Dataset.from_list(self.strip(first, second, steps=steps, lams=lams, **options))

    def strip(
        self, first: str, second: str, *, steps: int = 7, lams: Sequence[float] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """The rows of :meth:`mix` as plain dictionaries."""
        for name, text in (("first", first), ("second", second)):
            if not isinstance(text, str):
                raise InputError(f"the {name} sentence is a {type(text).__name__}, not a string")
            check_sentence(name, text)
        if lams is None and (not isinstance(steps, int | np.integer) or steps < 2):
            raise InputError(f"steps {steps}: a strip needs at least 2, and a whole number of them")
        try:
            ratios = np.linspace(1.0, 0.0, steps).tolist() if lams is None else [float(lam) for lam in lams]
        except (TypeError, ValueError):
            raise InputError(f"lams {lams!r}: expected numbers") from None
        if not ratios or not all(0 <= lam <= 1 for lam in ratios):
            raise InputError("lams: give one or more λ between 0 and 1")
        config = build(DecodeConfig, {"seed": self.seed}, options)
        ends = self.models_.task_model.encode([first, second])
        a, b = (end.expand(len(ratios), -1) for end in ends)
        # the same stream for every λ: neighbours differ by λ, not by luck
        streams = [row_stream(config.seed, 0) for _ in ratios]
        written = write_mixes(self.models_, a, b, torch.tensor(ratios), streams, config)
        names = self.models_.task_model.classes
        rows: list[dict[str, Any]] = []
        for at, lam in enumerate(ratios):
            rows.append({
                "lam": round(lam, 4), "text": written.texts[at], "lam_realised": written.lam_realised[at],
                "cycle_similarity": written.cycle_similarity[at], "fluency": written.fluency[at],
            })  # fmt: skip
            if written.class_probs is not None:
                probs = zip(names, written.class_probs[at], strict=True)
                rows[-1]["label_probs"] = {name: round(float(p), 4) for name, p in probs}
        return rows

    def fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:  # noqa: ANN401, N803 (imbalanced-learn's names)
        """Balance the classes: each is filled up towards the size of the largest, in at most a few rounds.

        Args:
            X: sentences: list, array, Series, or a one-column DataFrame or two-dimensional array.
            y: their labels.

        Returns:
            The originals followed by the new rows, as arrays, Series, DataFrames or tuples where such came in, else as
            lists.

        Raises:
            InputError: for rows or options that cannot be used; as :meth:`fit` and :meth:`augment` do.
        """
        texts, labels = flatten(X), flatten(y)
        options = dict(self.options or {})
        if "n" in options:
            raise InputError("options: n is not to be chosen, as the classes say how many rows they lack; leave it out")
        fields = {config: {f.name for f in dataclasses.fields(config)} for config in (WarmupConfig, AugmentConfig)}
        chosen = {"pairs": "balanced"} | {
            k: v for k, v in options.items() if k in fields[AugmentConfig] or k not in fields[WarmupConfig]
        }
        check_rows(as_examples(texts, labels), build(AugmentConfig, chosen))  # now rather than after the fit
        self.fit(texts, labels, **{k: v for k, v in options.items() if k in fields[WarmupConfig]})
        original = {label_name(label): label for label in labels}
        counts = class_counts(self._examples)
        missing = {name: max(counts.values()) - count for name, count in counts.items()}
        new: dict[str, Any] = {}
        for attempt in range(RESAMPLE_ROUNDS):
            if not any(missing.values()):
                break
            try:
                # each round draws from a stream of its own, so that it does not repeat the last one's rows
                self.result_ = self._augment(sum(missing.values()), chosen, attempt)
            except InputError as error:
                if not attempt:
                    raise
                logger.warning("round %d: %s; what earlier rounds made stays", attempt + 1, error)
                break
            for row in self.result_.kept:
                if missing[row.label] > 0 and row.text not in new:
                    missing[row.label] -= 1
                    new[row.text] = original[row.label]
        if any(missing.values()):
            unfilled = ", ".join(f"{name}: {count}" for name, count in missing.items() if count)
            logger.warning("classes are left without as many rows as others: %s", unfilled)
        return _like(X, [*texts, *new]), _like(y, [*labels, *new.values()])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pair, fitted encoder and head included, for :meth:`from_pretrained`. It holds no training text."""
        target = local_path(folder)
        with clear_write_errors(target):
            self.models_.save(target, encoder=self.models_.task_model.head is not None)


def _dataset(
    rows: Sequence[Row] | Sequence[LabelledText], classes: Sequence[str], kind: type[Row] | type[LabelledText]
) -> Dataset:
    """A data set with the columns and types of the files, whatever the rows hold, and if there are none."""
    import pyarrow as pa
    from datasets import Dataset

    records = [dataclasses.asdict(row) for row in rows]
    return Dataset(pa.Table.from_pylist(records, schema=arrow_schema(classes, kind)))


def flatten(texts: Any) -> list[Any]:  # noqa: ANN401
    """A flat list from a list, array, Series, or something with one column.

    Raises:
        InputError: for more columns, or a single string.
    """
    check_several(texts)
    if not hasattr(texts, "__iter__"):
        raise InputError(f"a {type(texts).__name__} was given where a list is expected")
    names = list(getattr(texts, "column_names", None) or [])  # of a datasets.Dataset
    if len(names) == 1:
        texts = texts[names[0]]
    if hasattr(texts, "columns") and hasattr(texts, "iloc"):
        if len(texts.columns) != 1:
            raise InputError(f"X or y has {len(texts.columns)} columns; give the one that counts")
        texts = texts.iloc[:, 0]
    if isinstance(texts, np.ndarray) and texts.ndim == 2:
        if texts.shape[1] != 1:
            raise InputError(f"X or y has {texts.shape[1]} columns; give the one that counts")
        texts = texts[:, 0]
    return list(texts)


def _like(template: Any, values: list[Any]) -> Any:  # noqa: ANN401
    """Values in the type of the template."""
    if isinstance(template, np.ndarray):
        out = np.empty(len(values), dtype=object if template.dtype.kind in "OUS" else template.dtype)
        out[:] = values
        return out.reshape(-1, 1) if template.ndim == 2 else out
    if hasattr(template, "iloc"):
        import pandas as pd

        if hasattr(template, "columns"):
            return pd.DataFrame({template.columns[0]: values})
        return pd.Series(values, name=template.name, dtype=template.dtype)
    return tuple(values) if isinstance(template, tuple) else values


def as_examples(texts: Any, labels: Any = None) -> list[Example]:  # noqa: ANN401
    """Checked examples from sequences, a ``datasets.Dataset`` or a DataFrame; ``ClassLabel`` numbers become names.

    Raises:
        InputError: for missing columns, unequal lengths or unusable rows.
    """
    if labels is None:
        columns = getattr(texts, "column_names", None) or list(getattr(texts, "columns", []))
        if not columns:
            raise InputError("no labels were given: fit(texts, labels), or a data set with columns text and label")
        for name in ("text", "label"):
            if name not in columns:
                raise InputError(f"no column {name!r} (found: {', '.join(map(str, columns)) or 'none'}); rename it")
        if hasattr(texts, "with_format"):  # of a datasets.Dataset: tensors and arrays are no labels
            texts = texts.with_format(None)
        names = getattr(getattr(texts, "features", {}).get("label"), "names", None) if columns else None
        texts, labels = list(texts["text"]), list(texts["label"])
        if names:
            labels = [names[label] if isinstance(label, int) and 0 <= label < len(names) else None for label in labels]
    rows, tags = flatten(texts), flatten(labels)
    if len(rows) != len(tags):
        raise InputError(f"{len(rows)} texts but {len(tags)} labels")
    numbered = ((at, str(at), text, tag) for at, (text, tag) in enumerate(zip(rows, tags, strict=True)))
    return list(checked_examples(numbered, "texts"))
