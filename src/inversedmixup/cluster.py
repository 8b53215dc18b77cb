"""Stage 3 on a Ray cluster: ``--engine ray`` for this machine, ``--engine ray:ADDRESS`` for a cluster.

Workers hold the models; Ray Data feeds them shard numbers and brings the rows back in order, a few shards ahead of the
gate. A row depends on (seed, row number) alone, so the rows are those of one process with as many threads. When a
worker or a node dies, the shards that were under way are made again by those that are left.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from inversedmixup.errors import InputError, first_line, local_path, write_whole
from inversedmixup.judges import JUDGE_FILES
from inversedmixup.labelled import Labelled, as_line, class_names, class_numbers, from_line
from inversedmixup.labels import parse_labels
from inversedmixup.mixing import PairSampler
from inversedmixup.models.pair import PAIR_FILES, Pair
from inversedmixup.options import NOTHING, Options, at_least, option
from inversedmixup.schema import Example, Row
from inversedmixup.stages.augment import AugmentConfig, RowWriter

logger = logging.getLogger(__name__)

ENGINE = "ray"
DESCRIPTIONS = "descriptions.yaml"
SHARDS_A_TASK = 4  # a task costs Ray about ten milliseconds; what is lost with a worker is at most two tasks
BLOCK_BYTES = 2**20  # of labelled rows, that travel together
BLOCKS_HELD = 64  # by each worker: as many as the parents of a shard may lie in
# seconds that the threads of a pipeline get to notice that nobody wants its rows any more
EXECUTOR_END, HELPER_END = 60.0, 1.0
FAILURES_IN_A_ROW = 3  # deaths without a shard in between, after which the fault is not a machine's


@dataclasses.dataclass(frozen=True)
class ClusterConfig(Options):
    """How the work is spread; it changes speed, never the rows."""

    GROUP: ClassVar[str] = "cluster"

    workers: int | None = option(
        None, "with --engine ray: processes that hold the models; default: all that fit", decides=NOTHING
    )
    worker_cpus: float = option(1.0, "with --engine ray: processor cores, and threads, of a worker", decides=NOTHING)
    worker_gpus: float = option(
        0.0, "with --engine ray: GPUs of a worker, or a share of one, e.g. 0.5", decides=NOTHING
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "workers")
        at_least(self, 0, "worker_cpus", "worker_gpus")
        if not (self.worker_cpus or self.worker_gpus):
            raise InputError("worker_cpus and worker_gpus are 0; a worker needs some of one of them")


def address_of(engine: str) -> str | None:
    """``ray`` → ``""``, ``ray:ADDRESS`` → the address, any other engine → ``None``."""
    name, _, address = engine.partition(":")
    return address if name == ENGINE else None


def check_labels(labels: str) -> None:
    """Refuse a judge that every worker would pay for again.

    Raises:
        InputError: naming it.
    """
    if "api" in parse_labels(labels).judges:
        raise InputError("--engine ray: judge api works in one process; use another one, or leave out --engine")


def check_address(address: str) -> None:
    """Refuse a cluster that cannot be had; Ray itself would try for minutes.

    Raises:
        InputError: if Ray is not installed, or nothing answers at the address.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray needs Ray: pip install 'ray[data]>=2.44,<2.64'")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():  # "auto", or this machine
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--engine ray:{address}: no cluster there ({first_line(error)})") from error


@dataclasses.dataclass(frozen=True)
class Models:
    """What a worker loads: a pair's files, so that the machines need no common file system, and where to run it."""

    files: dict[str, bytes]
    llm: str | None
    device: str
    dtype: str

    @classmethod
    def read(cls, folder: Path, **where: Any) -> Models:
        """The pair in ``folder``."""
        return cls(packed(folder, PAIR_FILES), **where)


def packed(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The files of these names, and those in the folders of these names, by their path in ``folder``."""
    paths = [path for name in names for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@contextlib.contextmanager
def unpacked(files: Mapping[str, bytes]) -> Iterator[Path]:
    """Packed files in a folder of this machine, for as long as it takes to load them."""
    with tempfile.TemporaryDirectory(prefix="inversedmixup-") as folder:
        for name, data in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
        yield Path(folder)


class SharedRows(Labelled):
    """Labelled rows in Ray's object store, block by block; a machine's workers share them, and disks take the rest.

    Args:
        rows: the rows.
        keep: where a block goes: ``ray.put``.
    """

    def __init__(self, rows: Sequence[Example], keep: Callable[[bytes], Any]) -> None:
        self.classes = class_names(rows)
        self.numbers = class_numbers(rows, self.classes).astype(np.int32)
        self.ends, self.firsts, self.blocks = np.empty(len(rows), dtype=np.int64), list[int](), list[Any]()
        block, length = list[bytes](), 0
        for number, row in enumerate(rows):
            block.append(as_line(row))
            length += len(block[-1])
            self.ends[number] = length  # in its block
            if length >= BLOCK_BYTES or number == len(rows) - 1:
                self.firsts.append(number + 1 - len(block))
                self.blocks.append(keep(b"".join(block)))
                block, length = [], 0

    def item(self, number: int) -> Example:
        """See :class:`~inversedmixup.labelled.Lazy`."""
        at = bisect.bisect_right(self.firsts, number) - 1
        begin = 0 if number == self.firsts[at] else int(self.ends[number - 1])
        return from_line(_block(self.blocks[at])[begin : int(self.ends[number])])


@functools.lru_cache(maxsize=BLOCKS_HELD)
def _block(reference: Any) -> bytes:  # noqa: ANN401 (a reference to an object of the cluster)
    import ray

    found: bytes = ray.get(reference)
    return found


@dataclasses.dataclass(frozen=True)
class Task:
    """What the shards are made from; ``files`` are those that the judges need: made once, or given, for all workers.

    What the sampler draws from travels as numpy arrays, which the workers of a machine share in Ray's memory.
    """

    examples: Sequence[Example]
    classes: list[str]
    config: AugmentConfig
    sampler: PairSampler
    files: dict[str, bytes]

    @classmethod
    def of(cls, writer: RowWriter, keep: Callable[[bytes], Any]) -> Task:
        """What this writer makes shards from; the rows go where ``keep`` puts them."""
        writer.prepare_judges()
        files = packed(writer.folder, JUDGE_FILES) if writer.folder else {}
        if writer.config.descriptions:
            files[DESCRIPTIONS] = local_path(writer.config.descriptions).read_bytes()
        return cls(SharedRows(writer.examples, keep), writer.classes, writer.config, writer.sampler, files)

    def writer(self, pair: Pair) -> RowWriter:
        """A writer of the same rows."""
        with unpacked(self.files) as folder:
            given = str(folder / DESCRIPTIONS) if DESCRIPTIONS in self.files else None
            config = dataclasses.replace(self.config, descriptions=given)
            writer = RowWriter(pair, self.examples, self.classes, config, folder=folder, sampler=self.sampler)
            writer.prepare_judges()
        return writer


class ShardWorker:
    """Holds a pair and makes shards; Ray Data calls it with their numbers."""

    def __init__(self, models: Any, task: Any) -> None:  # noqa: ANN401 (references to objects of the cluster)
        import ray

        what, where = ray.get(task), ray.get(models)
        with unpacked(where.files) as folder:
            pair = Pair.load(folder, llm=where.llm, device=where.device, dtype=where.dtype)
            self.writer = what.writer(pair)  # a judge may read the LLM again

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Each shard's rows, as JSON."""
        shards = [self.writer.shard(int(number)) for number in batch["item"]]
        return {"made": [json.dumps([dataclasses.asdict(row) for row in rows]) for rows in shards]}


class Cluster:
    """A Ray cluster for the length of a ``with`` block; a local one if ``address`` is empty.

    Args:
        address: of a running cluster, as ``ray.init`` takes it.
        config: how the work is spread.
        models: what the workers load; on GPUs their device is ``cuda``.

    Raises:
        InputError: if there is no cluster at the address.
    """

    def __init__(self, address: str, config: ClusterConfig, models: Models) -> None:
        self.address, self.config = address, config
        self._rows: Generator[Any] | None = None
        self.models = dataclasses.replace(models, device="cuda") if config.worker_gpus else models

    def __enter__(self) -> Cluster:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported unless the user asks for it
        import ray

        self._own = not ray.is_initialized()
        if self._own:
            local = {} if self.address else {"include_dashboard": False}
            try:
                ray.init(self.address or "local", log_to_driver=False, logging_level="ERROR", **local)
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                raise InputError(f"--engine ray:{self.address}: no cluster there ({first_line(error)})") from error
        self._models = ray.put(self.models)
        self._settings = contextlib.ExitStack()
        self._settings.enter_context(_ordered())
        self._before = set(threading.enumerate())
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        try:
            self._end_pipeline()
        finally:
            self._settings.close()
            if self._own:
                ray.shutdown()

    def _end_pipeline(self) -> None:
        """Let what Ray Data still does in the background end: Ray stops a process that asks it after its shutdown."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None
        for thread in set(threading.enumerate()) - self._before:
            # the executor notices in a while; helpers are done at once, but for a prefetcher that Ray Data lets wait
            executes = type(thread).__module__.startswith("ray.data")
            thread.join(EXECUTOR_END if executes else HELPER_END)

    def shards(self, writer: RowWriter, numbers: Sequence[int]) -> Iterator[list[Row]]:
        """The rows of these shards, in this order."""
        import ray

        task = ray.put(Task.of(writer, ray.put))
        for made in self._stream(numbers, [self._models, task]):
            yield [Row(**fields) for fields in json.loads(made)]

    def _stream(self, numbers: Sequence[int], arguments: list[Any]) -> Iterator[str]:
        """What workers make of shard numbers, in order, whatever dies on the way."""
        import ray

        done = failures = 0
        while done < len(numbers):
            try:
                # held here too: a caller that fails leaves the pipeline as it is, and it must not outlive the cluster
                self._rows = (row["made"] for row in self._dataset(numbers[done:], arguments).iter_rows())
                for made in self._rows:
                    yield made
                    done, failures = done + 1, 0
            except ray.exceptions.RayTaskError as error:  # the worker's own error: another one would fail as well
                raise InputError(f"--engine ray: a worker failed: {first_line(_root(error))}") from error
            except ray.exceptions.RayError as error:
                failures += 1
                if failures == FAILURES_IN_A_ROW:
                    raise InputError(
                        f"--engine ray: workers die ({first_line(error)}); give them more memory, or fewer --workers, "
                        f"then run the same command again: finished work is kept"
                    ) from error
                logger.warning("a worker or a node died; its shards are made again")

    def _dataset(self, numbers: Sequence[int], arguments: list[Any]) -> Any:  # noqa: ANN401
        import ray.data

        many = self._workers()
        blocks = -(-len(numbers) // SHARDS_A_TASK)
        return ray.data.from_items(list(numbers), override_num_blocks=blocks).map_batches(
            ShardWorker, batch_size=1, fn_constructor_args=arguments, num_cpus=self.config.worker_cpus,
            num_gpus=self.config.worker_gpus or None, max_restarts=0,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=many, initial_size=many),
        )  # fmt: skip

    def _workers(self) -> int:
        """How many workers there is room for, and no more than asked for."""
        import ray

        there, wanted = ray.cluster_resources(), {"CPU": self.config.worker_cpus, "GPU": self.config.worker_gpus}
        room = min(int(there.get(name, 0) / share) for name, share in wanted.items() if share)
        if not room:
            raise InputError(
                f"--engine ray: the cluster has no room for one worker ({there.get('CPU', 0):g} cores, "
                f"{there.get('GPU', 0):g} GPUs); lower --worker-cpus or --worker-gpus"
            )
        return min(room, self.config.workers or room)


@contextlib.contextmanager
def _ordered() -> Iterator[None]:
    """Ray Data gives rows in order and is quiet; its settings are as they were afterwards."""
    import ray.data

    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.execution_options.preserve_order, log.level
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    log.setLevel(logging.CRITICAL)  # what fails is said here, in one line
    try:
        yield
    finally:
        context.enable_progress_bars, context.execution_options.preserve_order = before[:2]
        log.setLevel(before[2])


def _root(error: BaseException) -> BaseException:
    """The first cause of an error that Ray has wrapped."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    return error
