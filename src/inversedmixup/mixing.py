"""Which two rows, in which ratio λ, and the point between them.

Everything random about an augmented row comes from :func:`row_stream`, that is from (seed, row number) alone:
batches, shards, workers and interruptions cannot change it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.errors import InputError

PAIR_POLICIES = ("cross-class", "same-class", "any", "balanced")
INTERPOLATIONS = ("linear", "renormalised", "slerp")
LAM_HELP = "0.5 | beta:ALPHA | uniform:LOW,HIGH | grid:L1,L2,…"


def row_stream(seed: int, row: int) -> np.random.Generator:
    """The random stream of one augmented row."""
    return np.random.default_rng([seed, row])


# ---- λ ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LambdaPolicy:
    """How λ is drawn: ``kind`` is ``fixed``, ``beta``, ``uniform`` or ``grid``."""

    kind: str
    values: tuple[float, ...]


def parse_lambda(spec: str | float) -> LambdaPolicy:
    """Read ``0.5``, ``beta:0.4``, ``uniform:0.2,0.8`` or ``grid:0,0.25,0.5``.

    Raises:
        InputError: for anything else, or a λ outside [0, 1].
    """
    text = str(spec).strip()
    kind, _, rest = text.partition(":") if ":" in text else ("fixed", "", text)
    try:
        values = tuple(float(part) for part in rest.split(","))
    except ValueError:
        values = ()
    wanted = {"fixed": (1, 1), "beta": (1, 1), "uniform": (2, 2), "grid": (1, 10**6)}.get(kind)
    if wanted is None or not wanted[0] <= len(values) <= wanted[1]:
        raise InputError(f"lam {text!r}: expected {LAM_HELP}")
    if kind == "beta" and not (0 < values[0] < np.inf):
        raise InputError(f"lam {text!r}: the beta parameter must be a positive number")
    if kind != "beta" and not all(0 <= value <= 1 for value in values):
        raise InputError(f"lam {text!r}: λ lies between 0 and 1")
    if kind == "uniform" and values[0] > values[1]:
        raise InputError(f"lam {text!r}: the lower bound comes first")
    return LambdaPolicy(kind, values)


def sample_lambda(policy: LambdaPolicy, row: int, rng: np.random.Generator) -> float:
    """λ in [0, 1] for one row, the weight of the first parent. A grid is walked through by row number."""
    if policy.kind == "fixed":
        return policy.values[0]
    if policy.kind == "beta":
        return float(rng.beta(policy.values[0], policy.values[0]))  # mixup's Beta(α, α), Zhang et al. 2018
    if policy.kind == "uniform":
        return float(rng.uniform(policy.values[0], policy.values[1]))
    return policy.values[row % len(policy.values)]


# ---- pairs -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Draw:
    """One planned row: its number, its parents' indices, λ."""

    row: int
    first: int
    second: int
    lam: float


class PairSampler:
    """Draws parents by a pair policy.

    ``cross-class``: two classes, drawn by their sizes; ``same-class``: one class with at least two rows; ``any``: any
    two rows; ``balanced``: the first parent's class is drawn by how many rows it lacks to the largest class, until as
    many are drawn as all lack, and evenly from there on; the second parent is of another class, and λ ≥ ½ keeps the
    rare class in the lead. Where classes have as many rows as each other this is ``cross-class``.

    Args:
        labels: the class of each row: names, or numbers in the order of the names.
        policy: one of :data:`PAIR_POLICIES`.
        lam: where λ comes from.

    Raises:
        InputError: if the labels cannot serve the policy.
    """

    def __init__(self, labels: Sequence[str] | np.ndarray, policy: str, lam: LambdaPolicy) -> None:
        if policy not in PAIR_POLICIES:
            raise InputError(f"pairs {policy!r} is not one of {', '.join(PAIR_POLICIES)}")
        self.policy, self.lam = policy, lam
        if not isinstance(labels, np.ndarray):
            number = {name: at for at, name in enumerate(sorted(set(labels)))}
            labels = np.array([number[name] for name in labels], dtype=np.int32)
        # a class without rows gets no number
        self._class_of = np.unique(labels, return_inverse=True)[1].astype(np.int32)
        self._sizes = np.bincount(self._class_of)
        self._across = policy in ("cross-class", "balanced")
        if self._across and len(self._sizes) < 2:
            raise InputError(f"pairs {policy}: the rows have one class only; use --pairs same-class or any")
        if policy == "same-class" and self._sizes.max() < 2:
            raise InputError("pairs same-class: no class has two rows; use --pairs cross-class or any")
        if len(self._class_of) < 2:
            raise InputError("mixing needs at least two rows")
        # rows class by class, where each class begins there, and each row's place: a draw costs the same for any n
        self._ordered = np.argsort(self._class_of, kind="stable").astype(np.int32)
        self._begins = np.cumsum(self._sizes) - self._sizes
        self._place = np.empty_like(self._ordered)
        self._place[self._ordered] = np.arange(len(self._ordered), dtype=np.int32)
        if policy == "same-class":
            self._mixable = self._ordered[(self._sizes > 1)[self._class_of[self._ordered]]]
        lacking = self._sizes.max() + 1.0 - self._sizes  # to one more than the largest has: it lacks some, too
        self._level_at = lacking.sum()  # rows after which no class lacks any
        self._lacking, self._evenly = lacking / lacking.sum(), np.ones_like(lacking) / len(lacking)

    def draw(self, row: int, rng: np.random.Generator) -> Draw:
        """The plan of row number ``row``; ``rng`` is its :func:`row_stream`."""
        first = self._first(row, rng)
        second = self._second(first, rng)
        lam = sample_lambda(self.lam, row, rng)
        return Draw(row, first, second, max(lam, 1 - lam) if self.policy == "balanced" else lam)

    def _first(self, row: int, rng: np.random.Generator) -> int:
        if self.policy == "balanced":
            number = int(rng.choice(len(self._sizes), p=self._lacking if row < self._level_at else self._evenly))
            begin = self._begins[number]
            return int(rng.choice(self._ordered[begin : begin + self._sizes[number]]))
        if self.policy == "same-class":
            return int(rng.choice(self._mixable))
        return int(rng.integers(len(self._ordered)))

    def _second(self, first: int, rng: np.random.Generator) -> int:
        """A partner: a row that lies outside, or inside, the first row's class; or any but itself."""
        number, place = int(self._class_of[first]), int(self._place[first])
        begin, size = int(self._begins[number]), int(self._sizes[number])
        if self._across:
            drawn = int(rng.integers(len(self._ordered) - size))
            return int(self._ordered[drawn if drawn < begin else drawn + size])
        low, high = (begin, begin + size) if self.policy == "same-class" else (0, len(self._ordered))
        drawn = int(rng.integers(low, high - 1))
        return int(self._ordered[drawn if drawn < place else drawn + 1])


# ---- the point between -------------------------------------------------------------------------------------------


def interpolate(first: Tensor, second: Tensor, lam: Tensor, how: str = "linear") -> Tensor:
    """Mixed embeddings h̃ [n, d] of embeddings [n, d], [n, d] and ratios [n] (paper, stage 3).

    ``linear``: λ h_i + (1−λ) h_j. ``renormalised``: the same direction, at the interpolated length, because the mean
    of two unit vectors is shorter than one. ``slerp``: along the great circle (Shoemake 1985), length interpolated.
    """
    weight = lam.to(first.dtype)[:, None]
    straight: Tensor = weight * first + (1 - weight) * second
    if how == "linear":
        return straight
    length: Tensor = weight * first.norm(dim=1, keepdim=True) + (1 - weight) * second.norm(dim=1, keepdim=True)
    if how == "renormalised":
        return nn.functional.normalize(straight, dim=1) * length
    if how != "slerp":
        raise InputError(f"interpolation {how!r} is not one of {', '.join(INTERPOLATIONS)}")
    a, b = nn.functional.normalize(first, dim=1), nn.functional.normalize(second, dim=1)
    cosine = (a * b).sum(1, keepdim=True).clamp(-1.0, 1.0)
    angle = torch.arccos(cosine)
    arc = (torch.sin(weight * angle) * a + torch.sin((1 - weight) * angle) * b) / torch.sin(angle).clamp_min(1e-6)
    # nearly parallel or opposite parents leave the circle undefined: the straight line is its limit
    return torch.where(cosine.abs() > 0.9995, nn.functional.normalize(straight, dim=1), arc) * length


def realised_ratio(reread: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """λ̂ [n]: where re-read embeddings project on the segment h_j → h_i, clipped to [0, 1]; ½ for equal parents."""
    along = first - second
    square = (along * along).sum(1)
    ratio = ((reread - second) * along).sum(1) / square.clamp_min(1e-12)
    return torch.where(square > 1e-12, ratio.clamp(0.0, 1.0), torch.full_like(ratio, 0.5))


def soft_label(first: str, second: str, lam: float, classes: Sequence[str]) -> dict[str, float]:
    """ỹ = λ y_i + (1−λ) y_j as class probabilities (paper, stage 3).

    The first parent's class comes first: at λ = ½ the two tie, and the first leads.
    """
    probs = dict.fromkeys([first, *classes], 0.0)
    probs[first] += lam
    probs[second] += 1 - lam
    return probs
