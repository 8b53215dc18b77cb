"""Stage 3 on a Ray cluster: ``--engine ray`` for this machine, ``--engine ray:ADDRESS`` for a cluster.

Workers hold the models; Ray Data feeds them shard numbers and brings the rows back in order, a few shards ahead of the
gate. A row depends on (seed, row number) alone, so the rows are those of one process with as many threads. When a
worker or a node dies, the shards that were under way are made again by those that are left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import socket
import tempfile
import threading
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inversedmixup.data import Example, Row
from inversedmixup.errors import InputError, write_whole
from inversedmixup.judges import JUDGE_FILES
from inversedmixup.labels import parse_labels
from inversedmixup.loading import first_line
from inversedmixup.models.pair import PAIR_FILES, Pair
from inversedmixup.options import at_least, option
from inversedmixup.stages.augment import AugmentConfig, RowWriter

logger = logging.getLogger(__name__)

ENGINE = "ray"
DESCRIPTIONS = "descriptions.yaml"
SHARDS_A_TASK = 4  # a task costs Ray about ten milliseconds; what is lost with a worker is at most two tasks
TEXTS_A_TASK = 1024  # a multiple of the encoder's batch, so that a text has the same neighbours as in one process
HERE = 4 * TEXTS_A_TASK  # fewer texts than this are encoded before a worker has loaded its models
# seconds that the threads of a pipeline get to notice that nobody wants its rows any more
EXECUTOR_END, HELPER_END = 60.0, 1.0
FAILURES_IN_A_ROW = 3  # deaths without a shard in between, after which the fault is not a machine's


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """How the work is spread; it changes speed, never the rows."""

    workers: int | None = option(None, "with --engine ray: processes that hold the models; default: all that fit")
    worker_cpus: float = option(1.0, "with --engine ray: processor cores, and threads, of a worker")
    worker_gpus: float = option(0.0, "with --engine ray: GPUs of a worker, or a share of one, e.g. 0.5")

    def __post_init__(self) -> None:
        at_least(self, 1, "workers")
        at_least(self, 0, "worker_cpus", "worker_gpus")


def address_of(engine: str) -> str | None:
    """``ray`` → ``""``, ``ray:ADDRESS`` → the address, any other engine → ``None``."""
    name, _, address = engine.partition(":")
    return address if name == ENGINE else None


def check_labels(labels: str) -> None:
    """Refuse a judge that every worker would pay for again.

    Raises:
        InputError: naming it.
    """
    if "api" in (parse_labels(labels).judge or "").split("+"):
        raise InputError("--engine ray: judge api works in one process; use another one, or leave out --engine")


def check_address(address: str) -> None:
    """Refuse a cluster that cannot be had; Ray itself would try for minutes.

    Raises:
        InputError: if Ray is not installed, or nothing answers at the address.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray needs Ray: pip install 'inversedmixup[ray]'")
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


@dataclasses.dataclass(frozen=True)
class Task:
    """What the shards are made from; ``files`` are those that the judges need: made once, or given, for all workers.

    Embeddings [n, d] travel as a numpy array, which the workers of a machine share in Ray's memory; a tensor would be
    copied into each.
    """

    examples: list[Example]
    classes: list[str]
    config: AugmentConfig
    embeddings: np.ndarray
    files: dict[str, bytes]

    @classmethod
    def of(cls, writer: RowWriter) -> Task:
        """What this writer makes shards from."""
        writer.prepare_judges()
        files = packed(writer.folder, JUDGE_FILES) if writer.folder else {}
        if writer.config.descriptions:
            files[DESCRIPTIONS] = Path(writer.config.descriptions).read_bytes()
        return cls(writer.examples, writer.classes, writer.config, writer.embeddings.numpy(), files)

    def writer(self, pair: Pair) -> RowWriter:
        """A writer of the same rows."""
        with unpacked(self.files) as folder:
            given = str(folder / DESCRIPTIONS) if DESCRIPTIONS in self.files else None
            config = dataclasses.replace(self.config, descriptions=given)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # shared memory cannot be written to, and nobody does
                embeddings = torch.from_numpy(self.embeddings)
            writer = RowWriter(pair, self.examples, self.classes, config, embeddings=embeddings, folder=folder)
            writer.prepare_judges()
        return writer


class ShardWorker:
    """Holds a pair and makes shards; Ray Data calls it with their numbers."""

    def __init__(self, models: Any, task: Any) -> None:  # noqa: ANN401 (references to objects of the cluster)
        import ray

        what, where = ray.get(task), ray.get(models)
        with unpacked(where.files) as folder:
            pair = Pair.load(folder, llm=where.llm, device=where.device, dtype=where.dtype)
        self.writer = what.writer(pair)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Each shard's rows, as JSON."""
        shards = [self.writer.shard(int(number)) for number in batch["item"]]
        return {"made": [json.dumps([dataclasses.asdict(row) for row in rows]) for rows in shards]}


class EncodingWorker:
    """Holds a task model and encodes texts."""

    def __init__(self, models: Any) -> None:  # noqa: ANN401
        import ray

        where = ray.get(models)
        with unpacked(where.files) as folder:
            self.task_model = Pair.load_task_model(folder, device=where.device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """The embeddings of each list of texts, as the bytes of float32 numbers."""
        return {"made": [self.task_model.encode(json.loads(texts)).numpy().tobytes() for texts in batch["item"]]}


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

    def encode(self, texts: Sequence[str]) -> Tensor | None:
        """Embeddings [n, d] of many texts, bit for bit those of one process; ``None`` for few: they are no work."""
        if len(texts) < HERE:
            return None
        order = np.argsort([len(text) for text in texts], kind="stable")
        parts = [order[at : at + TEXTS_A_TASK] for at in range(0, len(order), TEXTS_A_TASK)]
        lists = [json.dumps([texts[at] for at in part]) for part in parts]
        made = b"".join(self._stream(EncodingWorker, lists, 1, [self._models]))
        out = np.empty((len(texts), len(made) // 4 // len(texts)), dtype=np.float32)
        out[order] = np.frombuffer(made, dtype=np.float32).reshape(out.shape)
        return torch.from_numpy(out)

    def shards(self, writer: RowWriter, numbers: Sequence[int]) -> Iterator[list[Row]]:
        """The rows of these shards, in this order."""
        import ray

        task = ray.put(Task.of(writer))
        for made in self._stream(ShardWorker, numbers, SHARDS_A_TASK, [self._models, task]):
            yield [Row(**fields) for fields in json.loads(made)]

    def _stream(self, worker: type, items: Sequence[Any], per_task: int, arguments: list[Any]) -> Iterator[Any]:
        """What workers make of items, in order, whatever dies on the way."""
        import ray

        done = failures = 0
        while done < len(items):
            try:
                # held here too: a caller that fails leaves the pipeline as it is, and it must not outlive the cluster
                self._rows = (
                    row["made"] for row in self._dataset(worker, items[done:], per_task, arguments).iter_rows()
                )
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

    def _dataset(self, worker: type, items: Sequence[Any], per_task: int, arguments: list[Any]) -> Any:  # noqa: ANN401
        import ray.data

        many = self._workers()
        blocks = -(-len(items) // per_task)
        return ray.data.from_items(list(items), override_num_blocks=blocks).map_batches(
            worker, batch_size=1, fn_constructor_args=arguments, num_cpus=self.config.worker_cpus,
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
