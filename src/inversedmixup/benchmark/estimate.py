"""How long will a benchmark take? A few steps of each kind of work, timed before it begins."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from inversedmixup.folds import ENOUGH_ROWS, FOLDS
from inversedmixup.judges import TUNED, Case
from inversedmixup.judges.tuned import BATCH, TunedJudge, tuning_steps
from inversedmixup.mixing import row_stream
from inversedmixup.models.task_model import FitSettings, Mixer
from inversedmixup.stages.downstream import one_hot
from inversedmixup.stages.warmup import fit_settings
from inversedmixup.stages.writer import write_texts

if TYPE_CHECKING:
    from inversedmixup.baselines import Method, Split
    from inversedmixup.benchmark import BenchmarkConfig
    from inversedmixup.benchmark.cells import Bench

PROBES = 8  # texts written
READ_PROBES = 64  # texts read: a batch of them
PROBE_STEPS = 2
TRIED = 1.3  # pairs tried for one row that is kept, about


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Seconds on this machine.

    Attributes:
        step: for a training step, or for all of a head where only it learns.
        read: for a text that is read.
        written: for a row that the LLM writes.
        tuned: for a training step of judge ``tuned``.
        heard: for a text that judge ``tuned`` reads.
        mixed: for a training step with the mixer of a method, by the method's name.
    """

    step: float
    read: float
    written: float
    tuned: float
    heard: float
    mixed: Mapping[str, float] = dataclasses.field(default_factory=dict)


def estimated_seconds(bench: Bench, missing: Sequence[Sequence[Method]]) -> float:
    """Seconds that the missing methods of each split need."""
    threads, processes = torch.get_num_threads(), bench.config.processes
    if processes > 1:
        torch.set_num_threads(cores_each(processes))
    try:
        speeds = measured_speeds(bench)
    finally:
        torch.set_num_threads(threads)
    return sum(_split_seconds(bench, methods, speeds) for methods in missing) / processes


def cores_each(processes: int) -> int:
    """Threads of each of several processes that share the processor."""
    return max(1, (os.cpu_count() or 1) // processes)


def _split_seconds(bench: Bench, methods: Sequence[Method], speeds: Speeds) -> float:
    if not methods:
        return 0.0
    config, learning = bench.config, bench.config.train_encoder == "full"
    writers = sum(method.writes for method in methods)
    tuning = tunes(methods, config)
    warms = writers > 0 or tuning > 0
    measured = len(bench.test) or len(bench.rows) / 5
    steps = config.downstream_steps
    fits = sum(
        steps * speeds.mixed[method.name] if method.mixer else (steps if learning else 1) * speeds.step
        for method in methods
    )
    # a fine-tuned task model is fitted again without each fold that its temperature is measured on
    folds = min(FOLDS, -(-ENOUGH_ROWS * FOLDS // bench.train_rows)) if warms and learning else 0
    folds = FOLDS if any(method.temperature for method in methods) else folds
    warming = config.task_steps * (warms + folds) + 3 * config.refine_steps * warms if learning else warms + folds
    # where the encoder learns, each method reads the rows that are measured on; else all share what was read
    read = len(methods) * measured if learning else len(bench.test) + sum(_new_texts(bench, m) for m in methods)
    written = writers * config.n * TRIED * speeds.written
    tuned = tuning * tuning_steps(bench.train_rows, config) * speeds.tuned
    heard = sum(_heard_texts(bench, method, measured) for method in methods) * speeds.heard
    return fits + warming * speeds.step + read * speeds.read + written + tuned + heard


def _new_texts(bench: Bench, method: Method) -> int:
    """Texts of a split that only this method has, about."""
    if method.texts is not None:
        return method.texts(bench.train_rows, bench.config)
    return bench.config.n if method.writes else 0


def _heard_texts(bench: Bench, method: Method, measured: float) -> float:
    """Texts of a split that tuned judges read for this method, about, once for each of them."""
    asked = sum(name in TUNED for name in method.asked(bench.config.labels))
    return asked * (measured if method.classify else _new_texts(bench, method) * (TRIED if method.writes else 1))


def tunes(methods: Sequence[Method], config: BenchmarkConfig) -> int:
    """How many copies of the LLM are tuned for the judges of these."""
    return max((sum(name in TUNED for name in method.asked(config.labels)) for method in methods), default=0)


def measured_speeds(bench: Bench) -> Speeds:
    """A few steps of each kind, timed; models are loaded, and the first call of each is not counted."""
    rows = bench.rows[: FitSettings.batch_size]
    classes = sorted({row.label for row in bench.rows})
    texts, targets = [row.text for row in rows], torch.from_numpy(one_hot(rows, classes)).float()
    learning = bench.config.train_encoder == "full"
    model = bench.fresh()
    model.set_classes(classes)
    known = None if learning else model.encode(texts)

    def step(mixer: Mixer | None = None) -> None:
        settings = fit_settings(bench.config, PROBE_STEPS)
        model.fit(texts, targets, torch.ones(len(rows)), settings, known=known, mixer=mixer)

    some = [row.text for row in bench.rows[:: max(1, len(bench.rows) // READ_PROBES)][:READ_PROBES]]
    reading = _timed(lambda: model.encode(some)) / len(some)
    stepping = _timed(step) / (PROBE_STEPS if learning else 1)
    mixing = {
        method.name: _timed(partial(step, method.mixer(_mixing_split(bench)))) / PROBE_STEPS
        for method in bench.methods
        if method.mixer
    }
    writing = 0.0
    if any(method.writes for method in bench.methods):
        pair = bench.config.load_pair()
        points = pair.task_model.encode((texts * PROBES)[:PROBES])
        streams = [row_stream(0, row) for row in range(PROBES)]
        writing = _timed(lambda: write_texts(pair, points, streams, bench.config)) / PROBES
    tuning = hearing = 0.0
    if tunes(bench.methods, bench.config):
        tuning, hearing = _tuning(bench, classes)
    return Speeds(stepping, reading, writing, tuning, hearing, mixing)


def _mixing_split(bench: Bench) -> Split:
    """A split on which a method mixes from its first step."""
    split, _ = bench.split(0)
    return dataclasses.replace(split, config=dataclasses.replace(split.config, downstream_steps=0))


def _tuning(bench: Bench, classes: Sequence[str]) -> tuple[float, float]:
    """Seconds of one step of judge ``tuned``, what its making costs besides taken off, and of a text that it reads."""
    rows, pair = bench.rows[:BATCH], bench.config.load_pair()

    def made(steps: int) -> TunedJudge:
        judge = TunedJudge(Case(pair, rows, classes, dataclasses.replace(bench.config, judge_steps=steps), seed=0))
        judge.prepare()
        return judge

    def seconds(steps: int) -> float:
        started = time.monotonic()
        made(steps)
        return time.monotonic() - started

    judge, texts = made(1), [row.text for row in rows]  # the first call of each kind is not counted
    step = max(0.0, seconds(1 + PROBE_STEPS) - seconds(1)) / PROBE_STEPS
    return step, _timed(lambda: judge.probabilities(texts, torch.empty(len(texts), 0))) / len(texts)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the second call."""
    work()
    started = time.monotonic()
    work()
    return time.monotonic() - started


def in_words(seconds: float) -> str:
    """``about 40 seconds``, ``about 12 minutes``, ``about 3 hours``: two digits at most."""
    for size, name in ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")):
        if seconds >= 1.5 * size:
            return f"about {float(np.format_float_positional(seconds / size, 2, fractional=False)):g} {name}"
    return "a second or two"
