"""Does λ control the text? λ against λ̂ over many pairs of sentences (trap 3 of the design: shown, never assumed)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inversedmixup.errors import InputError
from inversedmixup.mixing import INTERPOLATIONS, row_stream
from inversedmixup.models.pair import Pair
from inversedmixup.runs import RunFolder, recorded
from inversedmixup.stages.writer import DecodeConfig, write_mixes
from inversedmixup.terminal import Advance, progress

LAMS = tuple(round(0.1 * step, 1) for step in range(11))
INNER = (0.2, 0.8)  # a text between these that lands on a parent has snapped to it
SNAPPED = 0.05  # λ̂ within this of 0 or 1
BLOCK = 32  # pairs at a time
PICTURES = (".png", ".svg", ".pdf")


def lam_control(
    pair: Pair, texts: Sequence[str], labels: Sequence[str] | None, config: DecodeConfig, pairs: int,
    run: RunFolder | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a text at λ = 0, 0.1, … 1 between random pairs of sentences, by every interpolation.

    Args:
        pair: the pair.
        texts: sentences to draw parents from.
        labels: their classes: half of the pairs are then of one class, half of two.
        config: how texts are written; ``config.interpolation`` gives the headline figures.
        pairs: how many pairs.
        run: where finished blocks of pairs are kept, and taken up again.

    Returns:
        ``spearman`` of λ and λ̂, ``mean_abs_error`` |λ − λ̂|, and ``snap_rate``: how often a text for λ in
        :data:`INNER` has a λ̂ within :data:`SNAPPED` of a parent. The same by interpolation, by kind of pair and by λ,
        there with mean λ̂, cycle similarity and fluency. ``real_fluency`` is that of the parents.

    Raises:
        InputError: if there are fewer than two sentences.
    """
    if len(texts) < 2:
        raise InputError("--evaluate needs at least two sentences")
    rng = np.random.default_rng([config.seed, 8])
    drawn, kinds = _draw(labels, len(texts), pairs, rng)
    embeddings = pair.task_model.encode(texts)
    by_interpolation: dict[str, Any] = {}
    ends: np.ndarray | None = None
    with progress("λ control", pairs * len(INTERPOLATIONS)) as advance:
        for how in INTERPOLATIONS:
            lams = LAMS if ends is None else LAMS[1:-1]
            table = _walk(pair, embeddings, drawn, lams, dataclasses.replace(config, interpolation=how), advance, run)
            if ends is None:
                ends = table[:, [0, -1]]
            else:  # every interpolation begins and ends at the parents
                table = np.concatenate([ends[:, :1], table, ends[:, 1:]], axis=1)
            by_interpolation[how] = _figures(table)
            if kinds is not None:
                for kind in ("same-class", "cross-class"):
                    by_interpolation[how][kind] = _headline(table[kinds == kind])
    parents = [texts[i] for i in sorted(set(drawn.flatten().tolist()))]
    headline = by_interpolation[config.interpolation]
    return {
        **{name: headline[name] for name in ("spearman", "mean_abs_error", "snap_rate")},
        "pairs": pairs, "n": pairs * len(LAMS), "interpolation": config.interpolation,
        "real_fluency": round(float(pair.llm.log_likelihood(parents).mean()), 4), "interpolations": by_interpolation,
    }  # fmt: skip


def _draw(
    labels: Sequence[str] | None, n: int, pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Indices of parents [pairs, 2], and what kind each pair is."""
    if labels is None:
        return np.array([rng.choice(n, 2, replace=False) for _ in range(pairs)]), None
    names, counts = np.unique(np.asarray(labels), return_counts=True)
    if len(names) < 2 or counts.max() < 2:
        raise InputError("--evaluate: the labels need two classes, and one of them two rows")
    classes = np.asarray(labels)
    drawn, kinds = [], np.array(["same-class", "cross-class"] * pairs)[:pairs]
    own = counts[np.searchsorted(names, classes)]  # rows of each row's class
    partners = {"same-class": own - 1, "cross-class": n - own}
    for kind in kinds:  # every such pair is as likely as any other
        first = rng.choice(n, p=partners[kind] / partners[kind].sum())
        fitting = np.flatnonzero((classes == classes[first]) == (kind == "same-class"))
        drawn.append((first, rng.choice(fitting[fitting != first])))
    return np.array(drawn), kinds


def _walk(
    pair: Pair, embeddings: torch.Tensor, drawn: np.ndarray, ratios: Sequence[float], config: DecodeConfig,
    advance: Advance, run: RunFolder | None,
) -> np.ndarray:  # fmt: skip
    """λ, λ̂, cycle similarity and fluency of every text: [pairs, λs, 4]."""

    def written(at: int) -> list[list[float]]:
        block = drawn[at : at + BLOCK]
        first, second = (torch.from_numpy(block[:, side]).repeat_interleave(len(ratios)) for side in (0, 1))
        lams = np.tile(ratios, len(block))
        # the same stream for every λ of a pair: neighbours differ by λ, not by luck
        streams = [row_stream(config.seed, at + row) for row in range(len(block)) for _ in ratios]
        found = write_mixes(pair, embeddings[first], embeddings[second], torch.from_numpy(lams), streams, config)
        return [lams.tolist(), found.lam_realised, found.cycle_similarity, found.fluency]

    blocks = []
    for at in range(0, len(drawn), BLOCK):
        columns = recorded(run, f"{config.interpolation}/{at:06d}", partial(written, at))
        blocks.append(np.stack([np.asarray(column, dtype=float) for column in columns], axis=-1))
        advance(min(BLOCK, len(drawn) - at))
    return np.concatenate(blocks).reshape(len(drawn), len(ratios), 4)


def _headline(table: np.ndarray) -> dict[str, float]:
    from scipy.stats import spearmanr

    lam, realised = table[..., 0].ravel(), table[..., 1].ravel()
    inner = (lam >= INNER[0]) & (lam <= INNER[1])
    snapped = np.minimum(realised, 1 - realised)[inner] <= SNAPPED
    rank = spearmanr(lam, realised).statistic if np.ptp(realised) > 0 else 0.0
    return {
        "spearman": round(float(rank), 4), "mean_abs_error": round(float(np.abs(lam - realised).mean()), 4),
        "snap_rate": round(float(snapped.mean()), 4),
    }  # fmt: skip


def _figures(table: np.ndarray) -> dict[str, Any]:
    names = ("lam", "lam_realised", "cycle_similarity", "fluency")
    means = table.mean(axis=0).round(4)
    return {**_headline(table), "by_lam": [dict(zip(names, map(float, row), strict=True)) for row in means]}


def check_plot(path: Path) -> None:
    """Refuse, before any work, a picture that could not be written.

    Raises:
        InputError: without matplotlib, for an unknown format or for a folder that is not there.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("--plot needs matplotlib; pip install matplotlib") from None
    if path.suffix not in PICTURES:
        raise InputError(f"--plot {path}: end it in {', '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"--plot {path}: the folder {path.parent} cannot be written to; choose another")


def plot(report: dict[str, Any], path: str | Path) -> None:
    """λ against mean λ̂, cycle similarity and fluency by interpolation, as a picture; see :func:`check_plot`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = (("lam_realised", "mean λ̂"), ("cycle_similarity", "cycle similarity"), ("fluency", "fluency (nats/token)"))
    for axes, (name, title) in zip(figure.subplots(1, 3), panels, strict=True):
        for how, figures in report["interpolations"].items():
            rows = figures["by_lam"]
            axes.plot([row["lam"] for row in rows], [row[name] for row in rows], marker=".", label=how)
        axes.set(xlabel="λ", title=title)
        axes.spines[["top", "right"]].set_visible(False)
        if name == "lam_realised":
            axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
            axes.legend(frameon=False)
        if name == "fluency":
            axes.axhline(report["real_fluency"], color="0.7", linestyle="--", linewidth=1)
    figure.savefig(path)
