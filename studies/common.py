"""What the studies share: mixed texts, a linear head on a frozen encoder, grids of cells."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inversedmixup import __version__
from inversedmixup.errors import InputError
from inversedmixup.identity import files_digest
from inversedmixup.labelled import sample_rows
from inversedmixup.mixing import PairSampler, parse_lambda, row_stream, soft_label
from inversedmixup.models.pair import Pair
from inversedmixup.models.task_model import TaskModel
from inversedmixup.runs import RunFolder
from inversedmixup.schema import Example
from inversedmixup.stages.warmup import WarmedConfig
from inversedmixup.stages.writer import DecodeConfig, Written, write_mixes
from inversedmixup.terminal import console

SETS = ("trec", "sst2", "ag_news", "cr", "subj", "sms_spam", "banking77")
WEIGHT = 0.3  # of an augmented row in the head's loss
REFERENCE_ROWS = 5000


def write_texts(pair: Pair, examples: Sequence[Example], n: int, seed: int) -> tuple[np.ndarray, Written]:
    """Interpolated labels [n, classes, in alphabetical order] and texts of n cross-class mixes of these rows."""
    classes = sorted({example.label for example in examples})
    embeddings = pair.task_model.encode([example.text for example in examples])
    sampler = PairSampler([e.label for e in examples], "cross-class", parse_lambda("uniform:0,1"))
    streams = [row_stream(seed, row) for row in range(n)]
    draws = [sampler.draw(row, stream) for row, stream in enumerate(streams)]
    written = write_mixes(
        pair, embeddings[[draw.first for draw in draws]], embeddings[[draw.second for draw in draws]],
        torch.tensor([draw.lam for draw in draws]), streams,
        DecodeConfig(candidates=3, max_tokens=32, word_weight=0.0, correct=0),
    )  # fmt: skip
    soft = [soft_label(examples[d.first].label, examples[d.second].label, d.lam, classes) for d in draws]
    return np.array([[row[name] for name in classes] for row in soft]), written


# ---- a linear head on the frozen encoder ---------------------------------------------------------------------------


@lru_cache(maxsize=1)  # with its encoder: a study may load one after the other
def _encoded(encoder: TaskModel, texts: tuple[str, ...]) -> Tensor:
    return encoder.encode(texts)


def encode(encoder: TaskModel, rows: Sequence[Example]) -> Tensor:
    """Embeddings [n, d]; those asked for last are kept."""
    return _encoded(encoder, tuple(row.text for row in rows))


def sample(rows: Sequence[Example], count: int = REFERENCE_ROWS) -> list[Example]:
    """At most so many rows, the same ones each time, in their order; every class keeps one."""
    # no more than one: of banking77, more would be other rows than the published studies drew
    return sample_rows(rows, count, each=1, seed=0)


def one_hot(examples: Sequence[Example], classes: Sequence[str]) -> np.ndarray:
    """Labels as class probabilities [n, classes]."""
    return np.array([[float(example.label == name) for name in classes] for example in examples])


def head_accuracy(
    points: Tensor, targets: np.ndarray, weights: np.ndarray, classes: Sequence[str], test: Tensor, answers: np.ndarray
) -> float:
    """Test accuracy of a linear head fitted to targets [n, classes]: a row counts once for each class it may have."""
    from sklearn.linear_model import LogisticRegression

    rows, columns = np.nonzero(targets)
    share = targets[rows, columns] * weights[rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that stops at its last iteration is as good here
        head = LogisticRegression(C=10.0, max_iter=300).fit(points[rows].numpy(), columns, sample_weight=share)
    return float((np.array(classes)[head.predict(test.numpy())] == answers).mean())


def gained_accuracy(
    encoder: TaskModel, examples: Sequence[Example], test: Sequence[Example], texts: Tensor, targets: np.ndarray
) -> float:
    """Test accuracy that texts add to a linear head on a frozen encoder.

    Args:
        encoder: the same one for whatever is compared: on one that has learnt from these rows there is less to gain.
        examples: the labelled rows.
        test: rows to measure on.
        texts: its embeddings [n, d] of the texts.
        targets: their class probabilities [n, classes, in alphabetical order].
    """
    classes = sorted({example.label for example in examples})
    embeddings = encoder.encode([example.text for example in examples])
    points, answers = encode(encoder, test), np.array([row.label for row in test])
    labels = one_hot(examples, classes)
    base = head_accuracy(embeddings, labels, np.ones(len(examples)), classes, points, answers)
    accuracy = head_accuracy(
        torch.cat([embeddings, texts]), np.concatenate([labels, targets]),
        np.array([1.0] * len(examples) + [WEIGHT] * len(texts)), classes, points, answers,
    )  # fmt: skip
    return accuracy - base


# ---- grids and tables ----------------------------------------------------------------------------------------------


def interval_words(interval: Sequence[float] | None) -> str:
    """An interval of gains as tables show it."""
    return "–" if interval is None else f"{interval[0]:+.3f} … {interval[1]:+.3f}"


def json_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Records as a JSON Lines file holds them."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a JSON Lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def run_grid(
    cells: Iterable[tuple[Any, ...]], make: Callable[..., dict[str, Any]], run: RunFolder
) -> list[dict[str, Any]]:
    """Every cell's record, from the run if it is there."""
    records = []
    for one in cells:
        name = "cells/" + re.sub(r"[^\w.-]", "_", "-".join(map(str, one)))
        record = run.read(name)
        if record is None:
            record = make(*one)
            run.write(name, record)
        records.append(record)
    return records


def study_run(output: Path, options: dict[str, Any], pairs: Sequence[str | None]) -> RunFolder:
    """The folder of a study; cells made with other options, pairs or versions are refused, not mixed in."""
    digests = {str(pair): files_digest(WarmedConfig(pair=pair)) for pair in pairs}
    return RunFolder(output, {**options, "pairs": digests, "version": __version__})


def run(main: Callable[[], None]) -> None:
    """A study from the command line: what cannot be used is one line, and exit code 2."""
    try:
        main()
    except InputError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
