"""Stage 2, warm-up: fit the task model to the labels, then let the adaptor follow it (paper, stage 2).

    L_CE(θ) + L_GEN(φ)

θ learns by cross-entropy. A fine-tuned encoder is far too sure of itself after that, so its logits are divided by the
temperature at which rows that it has not learnt from are likeliest (ours; temperature scaling, Guo et al. 2017). φ is
then refined in two steps. *Following* (ours) needs no LLM: for mixes of the labelled texts, the adaptor at the new
mixed embedding is pulled to the soft tokens that the old adaptor gave at the old one. *L_GEN* then trains on the
labelled texts, plus replayed unlabelled ones if there are any, through the LLM. A word head is part of φ here and
learns by its own loss in both steps.
Reconstruction is measured before and after; a drop beyond the tolerance is an error.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.data import check_texts, iter_texts
from inversedmixup.errors import InputError
from inversedmixup.folds import by_fold, folds_of, held_out_rows, measured_rows
from inversedmixup.labelled import Subset, Texts, class_numbers, sample_numbers, shares_of
from inversedmixup.models.adaptor import Adaptor
from inversedmixup.models.pair import Pair, PairOptions
from inversedmixup.models.task_model import FitSettings, OneHot, TaskModel
from inversedmixup.models.word_head import WordHead
from inversedmixup.options import Options, at_least, option
from inversedmixup.runs import RunFolder
from inversedmixup.same_text import words_of
from inversedmixup.schema import Example
from inversedmixup.stages.lessons import evaluate_pair
from inversedmixup.terminal import Advance, progress

logger = logging.getLogger(__name__)

_Heads = tuple[Adaptor, WordHead | None]  # what reads embeddings on the LLM's behalf
HOTTEST = 20.0  # temperature of a task model that is no better than chance
TAUGHT_ROWS = 8192  # labelled rows that the adaptor follows and is refined on, at most
PROBED_ROWS = 32  # texts on which reconstruction is measured before and after


@dataclasses.dataclass(frozen=True)
class TaskModelConfig(Options):
    """Settings of the training of the task model, and of the rows that it learns from."""

    GROUP: ClassVar[str] = "task model"

    train_encoder: str = option("full", "what cross-entropy trains", choices=("full", "head"))
    task_steps: int = option(150, "optimiser steps of the task model; a head alone takes none")
    encoder_learning_rate: float = option(5e-5, "peak learning rate of the encoder")
    head_learning_rate: float = option(5e-3, "peak learning rate of the head")
    text_column: str = option("text", "column of the text")
    seed: int = option(0, "seed of everything random but the choice of examples")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "task_steps", "encoder_learning_rate", "head_learning_rate", "seed")


@dataclasses.dataclass(frozen=True)
class WarmupConfig(TaskModelConfig):
    """Settings of stage 2."""

    GROUP: ClassVar[str] = "stage 2"

    follow_steps: int = option(
        100, "adaptor steps that follow the moved embeddings, without the LLM; none where only the head is trained"
    )
    refine_steps: int = option(20, "adaptor steps of L_GEN, 16 texts each")
    refine_learning_rate: float = option(1e-4, "learning rate of the adaptor in stage 2")
    unlabelled: str | None = option(
        None, "file of unlabelled texts to replay in stage 2; benchmark: also those of method pseudo-label"
    )
    tolerance: float = option(0.1, "largest drop of reconstruction token F1 that stage 2 may cause")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "follow_steps", "refine_steps", "refine_learning_rate")

    @property
    def steps_of_following(self) -> int:
        """``follow_steps``, unless the embeddings stay where they are."""
        return self.follow_steps if self.train_encoder == "full" else 0


@dataclasses.dataclass(frozen=True)
class WarmedConfig(PairOptions, WarmupConfig):
    """A pair, and the settings of the stage 2 that it goes through."""


def warmed_up(
    config: WarmedConfig, examples: Sequence[Example], classes: Sequence[str], run: RunFolder,
    cross_validated: CrossValidation, unread: Container[str] = (), check: Callable[[Pair], None] = lambda _: None,
) -> Pair:  # fmt: skip
    """The pair after stage 2, from the run folder if it was finished there; see :func:`run_warmup`.

    ``check`` refuses a pair before stage 2.
    """
    model = run.folder / "model"
    if run.read("warmup") is not None:
        try:
            return config.load_pair(model)
        except InputError as error:
            logger.warning("%s; stage 2 is done again", error)
    pair = config.load_pair()
    check(pair)
    measured = run_warmup(pair, examples, classes, config, cross_validated, unread)
    pair.save(model, encoder=True)
    run.write("warmup", measured)
    return pair


def run_warmup(
    pair: Pair, examples: Sequence[Example], classes: Sequence[str], config: WarmupConfig,
    cross_validated: CrossValidation | None = None, unread: Container[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Fit ``pair`` to labelled examples in place.

    Args:
        pair: models as they come.
        examples: the labelled rows.
        classes: class names.
        config: settings.
        cross_validated: its temperature softens the task model; ``None``: left as sure as it is.
        unread: unlabelled texts that are not replayed, by :func:`~inversedmixup.same_text.words_of`: those measured on.

    Returns:
        Training accuracy, temperature, and reconstruction before and after.

    Raises:
        InputError: if reconstruction drops by more than the tolerance.
    """
    # a few thousand texts teach the adaptor as well as a million: the others need not be encoded for it
    taught = _some(examples, config.seed)
    texts = [example.text for example in taught]
    replayed = _replayed(config, unread)
    probe, replayed = _probe(texts, replayed, config.seed)
    # by the LLM alone: a word head that follows well would hide an adaptor that does not
    before = evaluate_pair(pair, probe, 40, word_weight=0.0)
    old_embeddings, old = pair.task_model.encode(texts + replayed), copy.deepcopy(_heads(pair))
    with progress("warm-up", config.task_steps + config.steps_of_following + config.refine_steps) as advance:
        fit_task_model(pair.task_model, examples, classes, config, advance)
        accuracy = _training_accuracy(pair.task_model, taught)
        _refine(pair, old, old_embeddings, texts, replayed, config, advance)
    temperature = 1.0 if cross_validated is None else cross_validated.temperature
    pair.task_model.soften(temperature)
    moved = config.train_encoder == "full" or config.refine_steps
    after = evaluate_pair(pair, probe, 40, word_weight=0.0) if moved else before
    drop = before["token_f1"] - after["token_f1"]
    if drop > config.tolerance:
        raise InputError(
            f"stage 2 spoilt reconstruction: token F1 fell from {before['token_f1']:.3f} to {after['token_f1']:.3f}, "
            f"more than --tolerance {config.tolerance}; lower --encoder-learning-rate or --task-steps, raise "
            f"--refine-steps, give --unlabelled text, or use --train-encoder head"
        )
    logger.info("warm-up: reconstruction token F1 %.3f → %.3f", before["token_f1"], after["token_f1"])
    return {
        "train_accuracy": accuracy, "temperature": temperature,
        "reconstruction_before": before, "reconstruction_after": after,
    }  # fmt: skip


def _replayed(config: WarmupConfig, unread: Container[str]) -> list[str]:
    if config.unlabelled is None:
        return []
    check_texts(config.unlabelled, config.text_column)
    texts = iter_texts([config.unlabelled], config.text_column, log=True)
    return list(islice(_different(texts, unread), 2000))


def _different(texts: Iterable[str], unread: Container[str]) -> Iterator[str]:
    """Each text once."""
    seen = set[str]()
    for text in texts:
        words = words_of(text)
        if words not in seen and words not in unread:
            seen.add(words)
            yield text


def _probe(texts: list[str], replayed: list[str], seed: int) -> tuple[list[str], list[str]]:
    """Texts for the measurement, and the replayed ones that are left.

    Where there are enough they are replayed texts, which the adaptor then does not learn from. Otherwise labelled ones,
    too, of which there are too few to keep any from it: what is measured after stage 2 flatters there.
    """
    rng = np.random.default_rng([seed, 3])
    order = rng.permutation(len(replayed))
    if len(replayed) >= 2 * PROBED_ROWS:
        apart = set(order[:PROBED_ROWS].tolist())
        return [replayed[i] for i in sorted(apart)], [text for i, text in enumerate(replayed) if i not in apart]
    probe = [replayed[i] for i in order[: PROBED_ROWS // 2]]
    return probe + [texts[i] for i in rng.permutation(len(texts))[: PROBED_ROWS - len(probe)]], replayed


def fit_task_model(
    model: TaskModel, examples: Sequence[Example], classes: Sequence[str], config: TaskModelConfig, advance: Advance,
    *, known: Tensor | None = None,
) -> None:  # fmt: skip
    """L_CE(θ) on the labelled set, from a fresh head; ``known`` are the embeddings where the encoder does not learn.

    Of more rows than there is room for, every class keeps some; they are weighted so that classes count as they did.
    """
    model.set_classes(classes)
    settings = fit_settings(config, config.task_steps)
    numbers = class_numbers(examples, classes)
    weights = np.ones(len(numbers))
    if len(numbers) > settings.rows:
        rows = sample_numbers(numbers, settings.rows, seed=[config.seed, 19])
        examples, known = Subset(examples, rows, classes), None if known is None else known[torch.from_numpy(rows)]
        shares, numbers = shares_of(numbers, len(classes)), numbers[rows]
        weights = (shares / np.maximum(shares_of(numbers, len(classes)), 1e-12))[numbers]
    targets = OneHot(numbers, len(classes))
    model.fit(Texts(examples), targets, torch.from_numpy(weights).float(), settings, known=known, advance=advance)


class CrossValidation:
    """What task models that were fitted, as in stage 2, without a row say about it, and how much too sure they are.

    Args:
        fresh: makes an untrained task model, the same each time.
        examples: the labelled rows.
        classes: class names.
        config: settings of the fit.
    """

    def __init__(
        self, fresh: Callable[[], TaskModel], examples: Sequence[Example], classes: Sequence[str],
        config: TaskModelConfig,
    ) -> None:  # fmt: skip
        self.fresh, self.examples, self.classes, self.config = fresh, examples, classes, config
        self._said: dict[int, np.ndarray] = {}

    def __call__(self, rows: Sequence[int]) -> np.ndarray:
        """Class probabilities [m, classes] of rows, by number, of softened models."""
        return softened(self.raw(rows), self.temperature)

    @cached_property
    def temperature(self) -> float:
        """What the logits are to be divided by, from 1 to :data:`HOTTEST`, for held-out rows to be likeliest.

        A head on a frozen encoder is penalised logistic regression, and not too sure: 1.
        """
        if self.config.train_encoder == "head":
            return 1.0
        rows = measured_rows(held_out_rows(self.examples, seed=self.config.seed), seed=self.config.seed)
        if not rows:
            return 1.0
        probs = self.raw(rows)
        true = class_numbers([self.examples[row] for row in rows], self.classes)
        # it only softens: a few rows that happen to be all right would ask for certainty
        found = best_temperature(probs, true)
        logger.info(
            "task model: right on %.0f %% of %d rows held out, sure of %.0f %%; temperature %.1f",
            100 * (probs.argmax(1) == true).mean(), len(rows), 100 * probs.max(1).mean(), found,
        )  # fmt: skip
        return found

    def raw(self, rows: Sequence[int]) -> np.ndarray:
        """The same of models as they are. One is fitted for each fold that holds a new row."""
        new = [row for row in dict.fromkeys(rows) if row not in self._said]
        if new:
            fold_of = folds_of(self.examples, seed=self.config.seed)
            steps = len(set(fold_of[new].tolist())) * self.config.task_steps
            with progress("cross-validation of the task model", steps) as advance:

                def ask(others: np.ndarray, asked: np.ndarray) -> np.ndarray:
                    model = self.fresh()
                    fit_task_model(
                        model, Subset(self.examples, others, self.classes), self.classes, self.config, advance
                    )
                    return model.predict_proba(model.encode([self.examples[row].text for row in asked.tolist()]))

                self._said |= zip(new, by_fold(new, fold_of, ask), strict=True)
        return np.array([self._said[row] for row in rows]).reshape(len(rows), len(self.classes))


def best_temperature(probs: np.ndarray, true: np.ndarray, *, coldest: float = 1.0, smoothed: bool = False) -> float:
    """The temperature, from ``coldest`` to :data:`HOTTEST`, at which rows are likeliest.

    Args:
        probs: class probabilities [n, classes].
        true: their classes [n].
        coldest: the lowest that is looked at; below 1 makes surer.
        smoothed: count a row as of its class with probability (m + 1) / (m + 2) only, where m rows are of it (Platt
            1999, "Probabilistic outputs for support vector machines"): a few that are all right then prove little.
    """
    from scipy.optimize import minimize_scalar

    rows, classes = probs.shape
    doubt = 1 / (np.bincount(true, minlength=classes)[true] + 2) if smoothed else np.zeros(rows)
    wanted = np.repeat(doubt[:, None] / (classes - 1), classes, axis=1)
    wanted[np.arange(rows), true] = 1 - doubt

    def loss(log_temperature: float) -> float:
        said = softened(probs, np.exp(log_temperature))
        return float(-(wanted * np.log(np.clip(said, 1e-30, 1.0))).sum(axis=1).mean())

    bounds = np.log(coldest), np.log(HOTTEST)
    return round(float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)), 2)


def softened(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Class probabilities [n, classes] of logits divided by a temperature."""
    if temperature == 1:
        return probs
    from scipy.special import softmax

    out: np.ndarray = softmax(np.log(np.clip(probs, 1e-30, 1.0)) / temperature, axis=1)
    return out


def _some(examples: Sequence[Example], seed: int) -> list[Example]:
    """The rows, or so many of them, in their order."""
    rows = np.random.default_rng([seed, 14]).permutation(len(examples))[:TAUGHT_ROWS]
    return [examples[at] for at in sorted(rows.tolist())]


def _training_accuracy(model: TaskModel, examples: Sequence[Example]) -> float:
    predicted = model.predict_proba(model.encode([example.text for example in examples])).argmax(1)
    return float(np.mean([model.classes[at] == row.label for at, row in zip(predicted, examples, strict=True)]))


def fit_settings(config: TaskModelConfig, steps: int) -> FitSettings:
    """The task-model training settings of a config."""
    return FitSettings(
        steps=steps, encoder=config.train_encoder == "full", encoder_learning_rate=config.encoder_learning_rate,
        head_learning_rate=config.head_learning_rate, seed=config.seed,
    )  # fmt: skip


def _refine(
    pair: Pair, old: _Heads, old_embeddings: Tensor, texts: list[str], replayed: list[str],
    config: WarmupConfig, advance: Advance,
) -> None:  # fmt: skip
    """Following, then L_GEN(φ); the encoder and the LLM stay as they are."""
    everything = texts + replayed
    rng = np.random.default_rng([config.seed, 4])
    embeddings = pair.task_model.encode(everything)
    parts = [part for part in _heads(pair) if part is not None]
    weights = [weight for part in parts for weight in part.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=config.refine_learning_rate, betas=(0.9, 0.98))
    for part in parts:
        part.train()
    for step in range(config.steps_of_following + config.refine_steps):
        if step < config.steps_of_following:
            first, second = (torch.from_numpy(rng.integers(len(everything), size=64)) for _ in range(2))
            lam = torch.from_numpy(rng.random((64, 1)).astype(np.float32))
            mixes = [lam * h[first] + (1 - lam) * h[second] for h in (embeddings, old_embeddings)]
            loss = _following(pair, mixes[0].to(pair.llm.device), old, mixes[1].to(pair.llm.device))
        else:
            rows = rng.integers(len(everything), size=16)
            at = embeddings[torch.from_numpy(rows)].to(pair.llm.device)
            loss = _generation(pair, at, [everything[i] for i in rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for part in parts:
            nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimiser.step()
        advance(1)
    for part in parts:
        part.eval()


def _heads(pair: Pair) -> _Heads:
    """What reads embeddings on the LLM's behalf."""
    return pair.adaptor, pair.word_head


def _following(pair: Pair, embeddings: Tensor, old: _Heads, old_embeddings: Tensor) -> Tensor:
    """How far adaptor and word head are, at new embeddings [n, d], from what the old ones gave at the old."""
    adaptor, word_head = old
    with torch.no_grad():
        wanted = adaptor(old_embeddings)
        words = None if word_head is None else word_head(old_embeddings).sigmoid()
    loss: Tensor = nn.functional.mse_loss(pair.adaptor(embeddings), wanted) / wanted.pow(2).mean()
    if words is not None:
        assert pair.word_head is not None
        loss = loss + pair.word_head.loss(embeddings, words).mean()
    return loss


def _generation(pair: Pair, embeddings: Tensor, texts: list[str]) -> Tensor:
    """L_GEN of texts at their embeddings [n, d], and the word head's own loss if there is one."""
    targets = pair.llm.targets(texts, 64)
    loss = pair.llm.loss(pair.adaptor(embeddings), targets)
    if pair.word_head is not None:
        loss = loss + pair.word_head.loss(embeddings, pair.word_head.present(targets)).mean()
    return loss
