"""Does it help? Methods side by side on the same splits of labelled rows: ``inversedmixup benchmark``."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import Any

from inversedmixup.baselines import chosen
from inversedmixup.benchmark.cells import Bench
from inversedmixup.benchmark.estimate import estimated_seconds, in_words
from inversedmixup.benchmark.splits import DRAW_HELP, parse_draw
from inversedmixup.options import at_least, option
from inversedmixup.stages.augment import AugmentConfig
from inversedmixup.stages.downstream import DownstreamConfig
from inversedmixup.stages.warmup import WarmedConfig
from inversedmixup.terminal import progress

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(WarmedConfig, AugmentConfig, DownstreamConfig):
    """Settings of ``benchmark``: what is compared, on what, and every setting of ``augment``."""

    methods: str = option("duplicate", "methods to compare with the originals alone, joined by commas")
    splits: int = option(10, "how often training rows are drawn; every method is trained on each draw")
    draw: str | None = option(None, f"{DRAW_HELP}; default: 80%, or cv without a test file")
    test_rows: int | None = option(None, "measure on so many rows of the test file; default: all")
    label_column: str = option("label", "column of the label")
    data_seed: int = option(0, "seed of the draws of rows")
    n: int = option(100, "rows that each method adds")
    processes: int = option(1, "splits worked on at a time")
    overwrite: bool = option(False, "replace a benchmark with other settings in the folder")

    def __post_init__(self) -> None:
        for part in (AugmentConfig, DownstreamConfig):
            part.__post_init__(self)
        at_least(self, 1, "splits", "processes", "test_rows")
        at_least(self, 0, "data_seed")
        chosen(self.methods)
        if self.draw is not None:
            parse_draw(self.draw)


def run_benchmark(train: str, test: str | None, output: str, config: BenchmarkConfig) -> list[Record]:
    """Train every method on every split; each run is a file in ``output/runs``, and is not done again.

    Returns:
        The records, one a run (see :mod:`.cells`), split by split.

    Raises:
        InputError: for input that cannot be used.
    """
    bench = Bench(train, test, output, config)
    missing = [number for number in range(config.splits) if bench.missing(number)]
    if missing:
        logger.info(
            "%s for %d splits of %d methods",
            in_words(estimated_seconds(bench, len(missing))),
            len(missing),
            len(bench.methods),
        )
    with progress("benchmark", len(missing) * len(bench.methods)) as advance:
        if config.processes == 1 or len(missing) < 2:
            for number in missing:
                bench.run_split(number, advance)
        else:
            for _ in _in_processes(train, test, output, config, missing):
                advance(len(bench.methods))
    return [record for number in range(config.splits) for record in bench.records(number)]


def _in_processes(
    train: str, test: str | None, output: str, config: BenchmarkConfig, numbers: Sequence[int]
) -> Iterator[None]:
    """Each split in one of several processes, which share the processor's cores."""
    share = max(1, (os.cpu_count() or 1) // config.processes)
    single = dataclasses.replace(config, processes=1, overwrite=False)
    with ProcessPoolExecutor(
        config.processes, mp_context=get_context("spawn"), initializer=_take_cores, initargs=(share,)
    ) as pool:
        work = [pool.submit(partial(_one_split, train, test, output, single), number) for number in numbers]
        try:
            for done in as_completed(work):
                done.result()
                yield
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _take_cores(share: int) -> None:
    import torch

    torch.set_num_threads(share)


def _one_split(train: str, test: str | None, output: str, config: BenchmarkConfig, number: int) -> None:
    Bench(train, test, output, config).run_split(number, lambda _: None)
