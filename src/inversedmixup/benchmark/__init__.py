"""Does it help? Methods side by side on the same splits of labelled rows: ``inversedmixup benchmark``."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from typing import Any

import numpy as np

from inversedmixup.baselines import chosen
from inversedmixup.benchmark.cells import RUN, Bench
from inversedmixup.benchmark.estimate import cores_each, estimated_seconds, in_words
from inversedmixup.benchmark.records import ADDED, MEASURES, RARE, Record
from inversedmixup.benchmark.splits import DRAW_HELP, parse_draw
from inversedmixup.benchmark.verdict import verdicts
from inversedmixup.errors import InputError, clear_write_errors, local_path, write_whole
from inversedmixup.models.task_model import FitSettings
from inversedmixup.options import NOTHING, at_least, option
from inversedmixup.outputs import check_ours
from inversedmixup.remote import check_local
from inversedmixup.report.results import BENCHMARK_FILE
from inversedmixup.runs import PLACES
from inversedmixup.stages.augment import AugmentConfig
from inversedmixup.stages.downstream import DownstreamConfig
from inversedmixup.stages.warmup import WarmedConfig, fit_settings
from inversedmixup.terminal import progress

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(AugmentConfig, DownstreamConfig, WarmedConfig):
    """Settings of ``benchmark``: what is compared, on what, and every setting of ``augment``."""

    methods: str = option(
        "duplicate,eda,inversed", "methods to compare with the originals alone, joined by commas", decides=NOTHING
    )
    splits: int = option(10, "how often training rows are drawn; every method is trained on each draw", decides=NOTHING)
    draw: str | None = option(None, f"{DRAW_HELP}; default: 50%, or cv without a test file")
    test_rows: int | None = option(None, "measure on so many rows of the test file; default: all")
    label_column: str = option("label", "column of the label")
    data_seed: int = option(0, "seed of the draws of rows")
    n: int = option(100, "rows that each method adds")
    processes: int = option(1, "splits worked on at a time", decides=NOTHING)
    overwrite: bool = option(False, "replace a benchmark with other settings in the folder", decides=NOTHING)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "splits", "processes", "test_rows")
        at_least(self, 0, "data_seed")
        chosen(self.methods)
        if self.draw is not None:
            parse_draw(self.draw)


def run_benchmark(train: str, test: str | None, output: str, config: BenchmarkConfig) -> dict[str, Any]:
    """Train every method on every split, and say what comes of it: see :func:`judge_benchmark`.

    Raises:
        InputError: for input that cannot be used.
    """
    check_local("benchmark", train, test, output, config.unlabelled, config.descriptions)
    folder = local_path(output)
    check_ours(folder / RUN / "config.json", folder / BENCHMARK_FILE, overwrite=config.overwrite)
    bench = Bench(train, test, output, config)
    bench.check_splits()
    _warn_of_unshown(bench)
    missing = [bench.missing(number) for number in range(config.splits)]
    if runs := sum(map(len, missing)):
        logger.info("%s for %d runs", in_words(estimated_seconds(bench, missing)), runs)
        _warn_of_unread(bench)
    return judge_benchmark(bench, run_all(bench))


def _warn_of_unshown(bench: Bench) -> None:
    """Say which finished runs the folder's verdicts are going to leave out, as they were not asked for."""
    methods, splits = bench.unshown()
    if methods:
        logger.warning(
            "%s: finished runs of %s are not shown; name them in --methods, too", bench.folder, ", ".join(methods)
        )
    if splits > bench.config.splits:
        logger.warning(
            "%s: finished runs of %d splits, of which %d are shown; --splits %d shows all",
            bench.folder, splits, bench.config.splits, splits,
        )  # fmt: skip


def _warn_of_unread(bench: Bench) -> None:
    """Say once, not for each run, that training a fine-tuned encoder does not look at every row."""
    config, train = bench.config, bench.train_rows
    looks = fit_settings(config, config.downstream_steps).steps_taken() * FitSettings.batch_size
    if 0 < looks < train + config.n:
        enough = -(-(train + config.n) // FitSettings.batch_size)
        logger.warning(
            "%d steps look at %d rows, of %d training rows and %d that a method may add: some are never trained on; "
            "--downstream-steps %d looks at all",
            config.downstream_steps, looks, train, config.n, enough,
        )  # fmt: skip


def run_all(bench: Bench) -> list[Record]:
    """Train every method on every split; each run is a file in the folder's ``runs``, and is not done again.

    Returns:
        The records, one a run (see :mod:`.cells`), split by split.
    """
    config = bench.config
    missing = {number: len(runs) for number in range(config.splits) if (runs := bench.missing(number))}
    with progress("benchmark", sum(missing.values())) as advance:
        if config.processes == 1 or len(missing) < 2:
            for number in missing:
                bench.run_split(number, advance)
        else:
            for number in _in_processes(bench, list(missing)):
                advance(missing[number])
    return [record for number in range(config.splits) for record in bench.records(number)]


def _in_processes(bench: Bench, numbers: Sequence[int]) -> Iterator[int]:
    """Each split in one of several processes, which share the processor's cores; the numbers of finished ones.

    Raises:
        InputError: if a process was killed.
    """
    processes = bench.config.processes
    share = cores_each(processes)
    single, others = dataclasses.replace(bench.config, processes=1, overwrite=False), active_children()
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_take_cores, initargs=(share,))
    try:
        work = {pool.submit(_one_split, *bench.given, single, number): number for number in numbers}
        for done in as_completed(work):
            done.result()
            yield work[done]
    except BrokenProcessPool as error:
        raise InputError(
            f"one of the {processes} processes was killed, mostly for lack of memory; run the same command again with "
            f"a lower --processes: finished runs are kept"
        ) from error
    except (KeyboardInterrupt, GeneratorExit):  # what is under way is not waited for
        for process in set(active_children()).difference(others):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _take_cores(share: int) -> None:
    import torch

    torch.set_num_threads(share)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _one_split(train: str, test: str | None, output: str, config: BenchmarkConfig, number: int) -> None:
    Bench(train, test, output, config, lock=False).run_split(number, lambda _: None)


def judge_benchmark(bench: Bench, records: Sequence[Record]) -> dict[str, Any]:
    """What the records of one benchmark say, also written into its folder.

    Returns:
        ``verdicts`` in words, and ``methods`` by name: means of every measure, of the rows added and, where classes are
        uneven, of the recall of rare classes, and for all but the baseline the gain in accuracy, its interval and the
        verdict. Then ``train_sha256`` and ``inputs_sha256``, of the training file and of its rows, ``splits`` and
        ``settings``, which tell :func:`~inversedmixup.report.results.read_run` what it is about.
    """
    found = {verdict.method: verdict for verdict in verdicts(records, overlap=bench.overlap)}
    methods: dict[str, Any] = {}
    for method in bench.methods:
        own = [record for record in records if record["method"] == method.name]
        measured = {name: [one[name] for one in own if one.get(name) is not None] for name in (*MEASURES, RARE, ADDED)}
        methods[method.name] = {name: float(np.mean(values)) for name, values in measured.items() if values}
        if method.name in found:
            methods[method.name]["verdict"] = found[method.name].as_dict()
    result = {
        "verdicts": [verdict.sentence() for verdict in found.values()], "methods": methods, **bench.origin,
        "splits": bench.config.splits,
        "settings": {name: value for name, value in bench.settings.items() if name != PLACES},
    }  # fmt: skip
    with clear_write_errors(bench.folder):
        write_whole(bench.folder / BENCHMARK_FILE, json.dumps(result, indent=1, ensure_ascii=False).encode())
    return result
