"""M_θ: the user's task model, a sentence encoder with a classification head."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.data import check_several
from inversedmixup.errors import InputError, one_line
from inversedmixup.loading import SAFE, quiet_loading, refuse_pickles
from inversedmixup.models.sources import ORGANISATIONS, resolve

logger = logging.getLogger(__name__)

# of a head on an encoder that does not learn (docs/log.md, "The head of a frozen encoder"):
HEAD_C = 10.0  # the inverse of its L2 penalty, as scikit-learn's C, of two classes half of it
HEAD_ROWS = 8192  # rows that it learns from, at most
HEAD_ITERATIONS = 200
HEAD_HISTORY = 10  # steps that L-BFGS remembers, each twice the size of the head in float64


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """How a task model is trained.

    Attributes:
        steps: optimiser steps; see :meth:`steps_taken`.
        batch_size: rows per step.
        encoder: whether the encoder learns too, or only the head.
        encoder_learning_rate: peak rate of the encoder (linear warm-up over a tenth, then linear decay).
        head_learning_rate: peak rate of the head.
        seed: decides the order of the rows, and which ones are left out if there are more than :data:`HEAD_ROWS`.
    """

    steps: int
    batch_size: int = 16
    encoder: bool = True
    encoder_learning_rate: float = 5e-5
    head_learning_rate: float = 5e-3
    seed: int = 0

    @property
    def rows(self) -> int:
        """Rows that are looked at, at most."""
        return max(1, self.steps * self.batch_size) if self.encoder else HEAD_ROWS

    def steps_taken(self, *, mixing: bool = False) -> int:
        """``steps``; none where a head alone learns from rows as they are, as it is solved for."""
        return self.steps if self.encoder or mixing else 0


class Mixer(Protocol):
    """Mixes the rows of a training batch."""

    def __call__(
        self, model: TaskModel, texts: Sequence[str], known: Tensor | None, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [m, d] for the head and their targets [m, classes], mixed as the rows are.

        Args:
            model: the task model that is being trained.
            texts: the batch, b sentences.
            known: their embeddings [b, d] where the encoder does not learn, else ``None``.
            targets: their class probabilities [b, classes], each row's times how much it counts.
            rng: the mixer's random stream.
        """
        ...


class Targets(Protocol):
    """What rows are to be recognised as. A tensor [n, classes] is one; others need not hold all rows at once."""

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Class probabilities [m, classes] of rows by their numbers [m]."""
        ...


class OneHot:
    """The targets of rows that have one class each.

    Args:
        numbers: the class of each row [n].
        classes: how many there are.
    """

    def __init__(self, numbers: np.ndarray, classes: int) -> None:
        self.numbers, self.classes = numbers, classes

    def __getitem__(self, rows: Tensor) -> Tensor:
        there = torch.from_numpy(self.numbers[rows.numpy()]).long()
        return nn.functional.one_hot(there, self.classes).float()


def shuffled_batches(n: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Row numbers [size] of one batch after the other, without end: every row once before any comes again."""
    queue = np.empty(0, dtype=np.int64)
    while True:
        while len(queue) < size:
            queue = np.concatenate([queue, rng.permutation(n)])
        yield queue[:size]
        queue = queue[size:]


class TaskModel(nn.Module):
    """Encoder (a ``SentenceTransformer``: transformer, pooling, normalisation) and a linear head.

    Attributes:
        encoder: text → embedding h of size ``dim``.
        head: embedding → logits over ``classes``; ``None`` until :meth:`set_classes`.
        classes: class names, in the order of the logits.
    """

    def __init__(self, encoder: nn.Module, name: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.name = name
        self.dim = int(encoder.get_embedding_dimension())  # type: ignore[operator]
        self.head: nn.Linear | None = None
        self.classes: list[str] = []
        # dropout stays off even in training: it would draw from the global generator and blur the embeddings
        self.eval()

    @classmethod
    def from_pretrained(cls, name: str, *, device: str | torch.device = "cpu", max_tokens: int = 128) -> TaskModel:
        """Load a sentence encoder from a known wheel, a local folder or the hub (safetensors only).

        Raises:
            InputError: if it cannot be loaded.
        """
        from sentence_transformers import SentenceTransformer

        # the loaders raise a dozen types for "not there" and "not a model"
        with one_line(f"encoder {name!r} cannot be loaded"), quiet_loading():
            source = resolve(name, organisation=ORGANISATIONS["encoder"])
            refuse_pickles(source.place)
            encoder = SentenceTransformer(
                source.place, revision=source.revision, device=str(device),
                model_kwargs={"use_safetensors": True, "dtype": torch.float32}, **SAFE,
            )  # fmt: skip
            if getattr(encoder, "transformers_model", None) is None:
                raise InputError(f"encoder {name!r}: has no transformer inside, and only such are trained here")
            encoder.max_seq_length = min(encoder.max_seq_length or max_tokens, max_tokens)
        if encoder.default_prompt_name:  # adaptors learn from texts without one
            logger.warning(
                "encoder %s: its default prompt %r is put before no text, neither here nor by encoders saved from here",
                name, encoder.default_prompt_name,
            )  # fmt: skip
            encoder.default_prompt_name = None
        return cls(encoder, source.name)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.encoder.parameters()).device

    @property
    def transformer(self) -> nn.Module:
        """The transformer inside the encoder, without pooling."""
        inside: nn.Module = self.encoder.transformers_model  # type: ignore[assignment]
        return inside

    def set_classes(self, classes: Sequence[str]) -> None:
        """Give the model a head for these classes that knows nothing: every class is as likely as any other.

        It begins at zero, not at random: few rows span few of the ``dim`` directions, and what a random head says in
        the others would stay as it was and be noise in every prediction (docs/log.md).
        """
        self.classes = list(classes)
        # what a head begins with by itself would be drawn from the caller's generator, to be thrown away
        self.head = nn.utils.skip_init(nn.Linear, self.dim, len(classes), device=self.device)  # type: ignore[no-untyped-call]
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, texts: Sequence[str]) -> dict[str, Any]:
        """What the encoder reads: token numbers and attention mask [n, t] of one padded batch, on the device.

        Raises:
            InputError: for a single string.
        """
        check_several(texts)
        features = self.encoder.preprocess(list(texts))  # type: ignore[operator]
        return {key: value.to(self.device) if torch.is_tensor(value) else value for key, value in features.items()}

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [n, d] with gradients, as one padded batch.

        Raises:
            InputError: for a single string.
        """
        return self.embedded(self.features(texts))

    def embedded(self, features: dict[str, Any]) -> Tensor:
        """Embeddings [b, d] of what :meth:`features` gives, or of the same with something else to read."""
        embeddings: Tensor = self.encoder(features)["sentence_embedding"]
        return embeddings[..., : self.dim]  # truncated (Matryoshka), if the encoder was saved so

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Embeddings [n, d], no gradients, in the order given. Similar lengths share a batch.

        Raises:
            InputError: for a single string.
        """
        check_several(texts)
        order = np.argsort([len(text) for text in texts], kind="stable")
        out = torch.empty(len(texts), self.dim)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            # a batch without a single token would be more than some encoders can do
            out[torch.from_numpy(rows)] = self([texts[i] if texts[i].strip() else "." for i in rows]).float().cpu()
        return out

    def logits(self, embeddings: Tensor) -> Tensor:
        """Class logits [n, classes] of embeddings [n, d].

        Raises:
            RuntimeError: before :meth:`set_classes`.
        """
        if self.head is None:
            raise RuntimeError("the task model has no head yet: call set_classes first")
        # unit-length h and unit-scale weights give flat softmaxes; sqrt(d) brings logits to order one
        out: Tensor = self.head(embeddings * self.dim**0.5)
        return out

    def fit(
        self, texts: Sequence[str], targets: Targets, weights: Tensor, settings: FitSettings, *,
        known: Tensor | None = None, mixer: Mixer | None = None, advance: Callable[[float], None] = lambda _: None,
    ) -> None:  # fmt: skip
        """Cross-entropy training of head and encoder against soft or one-hot targets (paper, stage 2: L_CE(θ)).

        Where the encoder does not learn, the head is L2-regularised logistic regression on its embeddings: a convex
        problem, which is solved, not stepped towards. With a mixer, which needs batches, it takes the steps.

        Args:
            texts: n sentences; those that are drawn are asked for.
            targets: class probabilities [n, classes].
            weights: how much each row counts, [n].
            settings: steps, learning rates, what is trained.
            known: the embeddings [n, d], where they are there already and the encoder does not learn.
            mixer: what the rows of a batch become before the head sees them; of a mix, each row's share counts as much
                as the row.
            advance: told of each finished step.

        Raises:
            InputError: if training diverged.
        """
        assert self.head is not None
        if not settings.encoder and mixer is None:
            self._solve_head(texts, targets, weights, settings, known)
            advance(settings.steps)
            return
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters()), "lr": settings.head_learning_rate}]
        if settings.encoder:
            groups.append({"params": list(self.encoder.parameters()), "lr": settings.encoder_learning_rate})
        frozen, penalty = None, 0.0
        if not settings.encoder:
            frozen = self.encode(texts) if known is None else known
            penalty = self._penalty(frozen, weights)
        # fused: one pass over each weight; else the word table makes this a quarter of a CPU's time for a step
        optimiser = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
        ramp = max(1, settings.steps // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda s: min((s + 1) / ramp, max(0.0, (settings.steps - s) / max(1, settings.steps - ramp)))
        )
        mixing = np.random.default_rng([settings.seed, 13])
        batches = shuffled_batches(len(texts), settings.batch_size, np.random.default_rng([settings.seed, 2]))
        for rows in islice(batches, settings.steps):
            at, batch = torch.from_numpy(rows), [texts[i] for i in rows]
            here = None if frozen is None else frozen[at].to(self.device)
            wanted, weight = targets[at].to(self.device), weights[at].to(self.device)
            if mixer is None:
                embeddings = self(batch)
            else:
                # weighed before they are mixed: a rare row then counts as much in its mixes as it does by itself
                embeddings, wanted = mixer(self, batch, here, wanted * weight.unsqueeze(-1), mixing)
                weight = wanted.sum(-1)
                wanted = wanted / weight.clamp_min(1e-8).unsqueeze(-1)
            loss = _cross_entropy(self.logits(embeddings), wanted, weight)
            if frozen is not None:
                loss = loss + penalty * self.head.weight.pow(2).sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            advance(1)
        if settings.encoder:
            self._check_sane([texts[at] for at in range(min(4, len(texts)))])

    def _check_sane(self, texts: Sequence[str]) -> None:
        if not self.logits(self.encode(texts).to(self.device)).isfinite().all():
            raise InputError(
                "the task model diverged in training; lower --encoder-learning-rate or --head-learning-rate"
            )

    def _solve_head(
        self, texts: Sequence[str], targets: Targets, weights: Tensor, settings: FitSettings, known: Tensor | None
    ) -> None:
        """The head that minimises penalised cross-entropy on the rows as they are."""
        assert self.head is not None
        drawn, counts = _drawn(weights.double().numpy(), np.random.default_rng([settings.seed, 2]))
        rows, weight = torch.from_numpy(drawn), torch.from_numpy(counts)
        points = self.encode([texts[i] for i in rows.tolist()]) if known is None else known[rows].cpu()
        scaled, wanted = points.double() * self.dim**0.5, targets[rows].double()
        head, penalty = copy.deepcopy(self.head).cpu().double(), self._penalty(points, weight)
        optimiser = torch.optim.LBFGS(
            head.parameters(), max_iter=HEAD_ITERATIONS, history_size=HEAD_HISTORY, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = _cross_entropy(head(scaled), wanted, weight) + penalty * head.weight.pow(2).sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        self.head.load_state_dict(head.state_dict())

    def _penalty(self, points: Tensor, weights: Tensor) -> float:
        """What ‖W‖² is multiplied by: 1 / (2 C) on the scale of a mean over rows, for embeddings of unit length.

        Where the encoder's are longer (it does not normalise them), the same W does more, and is penalised more.
        """
        length = float(points.pow(2).sum(1).mean())
        length = length if abs(length - 1) > 1e-3 else 1.0
        return self.dim * length / (2 * HEAD_C * float(weights.sum().clamp_min(1e-8)))

    @torch.no_grad()
    def soften(self, temperature: float) -> None:
        """Divide the logits by a temperature, in the head itself (temperature scaling, Guo et al. 2017)."""
        assert self.head is not None
        for weight in self.head.parameters():
            weight.div_(temperature)

    @torch.no_grad()
    def predict_proba(self, embeddings: Tensor) -> np.ndarray:
        """Class probabilities [n, classes] of embeddings [n, d]."""
        return np.asarray(self.logits(embeddings.to(self.device)).softmax(-1).cpu().numpy())


def _drawn(weights: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers, in their order, and weights of what a head learns from: all that count, or a draw by weight.

    Systematic sampling (Madow 1949): each row is drawn as often as is its share of the weight, rounded up or down at
    random, so that on average it counts what it counted, and rows that count alike together do so in every draw.
    """
    rows = np.flatnonzero(weights > 0)
    if len(rows) <= HEAD_ROWS:
        return rows, weights[rows]
    order = rows[np.lexsort([rng.random(len(rows)), weights[rows]])]
    shares = np.cumsum(weights[order]) * (HEAD_ROWS / weights[rows].sum())
    hits = np.searchsorted(shares[:-1], rng.random() + np.arange(HEAD_ROWS), side="right")
    times = np.bincount(hits, minlength=len(rows))
    drawn, times = order[times > 0], times[times > 0]
    in_order = np.argsort(drawn)
    return drawn[in_order], times[in_order] * weights[rows].mean()


def _cross_entropy(logits: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over rows of −Σ target · log p, from logits and targets [n, classes] and weights [n]."""
    losses = -(wanted * logits.log_softmax(-1)).sum(-1)
    mean: Tensor = (losses * weight).sum() / weight.sum().clamp_min(1e-8)
    return mean
