"""A run folder beside the output: the resolved config, finished stages, finished shards. Everything resumes from it."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from inversedmixup.errors import InputError
from inversedmixup.labelled import Lazy
from inversedmixup.sealed import check_settings, digest, read_record, write_json, write_record

try:
    import fcntl
except ModuleNotFoundError:  # Windows: nothing is locked there
    LOCKABLE = False
else:
    LOCKABLE = True

logger = logging.getLogger(__name__)
T = TypeVar("T", covariant=True)

JUDGEMENTS = "judgements.jsonl"  # what judge api was told
FITTED = "fitted"  # a record that runs of `label` have, and those of `augment` have not
# settings whose values say nothing to a person
IN_WORDS = {
    "inputs_sha256": "the rows of the input files have changed",
    "files_sha256": "the files of the pair or its models, --unlabelled or --descriptions have changed",
    "test_sha256": "the test rows have changed",
    "texts_sha256": "the texts to label have changed",
    "unread_sha256": "the test rows, which stage 2 must not read in --unlabelled, have changed",
}
RUN_SUFFIX = ".run"
SUMMARY = "summary.json"  # what came of it; of another choice something else does
PLACES = "places"  # where those files lie that are known by their content
LOCK = ".lock"
EXAMPLES_FILE = "examples.jsonl"
BEFORE_WORK = (LOCK, "config.json", "provenance.json", EXAMPLES_FILE)  # what a folder holds before anything is finished
SHARDS_HELD = 32  # of rows that are read again


class Lock:
    """A folder that no other process may work in, as long as this object, or the process, lives.

    Raises:
        InputError: if one does.
    """

    _held: ClassVar[weakref.WeakValueDictionary[Path, Lock]] = weakref.WeakValueDictionary()

    def __init__(self, folder: Path) -> None:
        self.file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, self.file)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is working in {folder}; wait for it, or choose another output") from None
        except OSError:  # a file system without locks
            logger.debug("%s cannot be locked", folder)

    @classmethod
    def of(cls, folder: Path) -> Lock | None:
        """The lock that this process has on a folder, or a new one; none where nothing can be locked."""
        if not LOCKABLE:
            return None
        where = folder.resolve()
        lock = cls._held.get(where) or cls(folder)
        cls._held[where] = lock
        return lock


class RunFolder:
    """Finished work of one run.

    Each record carries the sha256 of its content and of the settings; a damaged one counts as not done. Records are
    written whole or not at all, so a run may be killed at any moment.

    Args:
        folder: where; made if absent.
        settings: everything that decides what is made. A folder with work of other settings is refused. What stands
            under :data:`PLACES` decides nothing, and is only recorded.
        choice: everything that decides what is taken of it. With another choice the finished work is taken up again;
            only records of :attr:`chosen` are made anew.
        overwrite: throw a run with other settings away instead of refusing it.
        lock: keep other processes out; not in a worker, whose parent does.
        results: files outside that say what came of it: of other settings or another choice they are no longer true.

    Raises:
        InputError: if the folder holds work of other settings or of another program, or another process is working in
            it.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], *, choice: dict[str, Any] | None = None, overwrite: bool = False,
        lock: bool = True, results: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        self.folder = folder
        path = folder / "config.json"
        check_settings(path)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock.of(folder) if lock else None
        settings, choice = json.loads(json.dumps(settings)), json.loads(json.dumps(choice or {}))
        places = settings.pop(PLACES, {})
        self._settings, self._chosen = digest(settings), digest({**settings, **choice})
        # None: there is nothing to compare with; empty: nothing has changed, and other processes may be reading it
        before, before_at = _settings_in(path) if path.exists() else (None, {})
        changed = None if before is None else _difference(before, settings, but=choice)
        rechosen = "" if changed or before is None else _difference(before, {**settings, **choice})
        if changed and not overwrite and self._holds_work():
            raise InputError(
                f"{folder} holds a run with other settings ({changed}); choose another output, or add --overwrite "
                f"to replace it"
            )
        if changed and folder.is_symlink():
            raise InputError(f"{folder} is a link, and what it leads to is not deleted here; remove it yourself")
        if changed:
            for old in sorted(folder.iterdir()):
                if old.name in (LOCK, JUDGEMENTS):  # judgements are keyed by what was asked
                    continue
                if old.is_dir() and not old.is_symlink():
                    shutil.rmtree(old)
                else:
                    old.unlink()
        if rechosen:
            logger.info("%s: finished work is taken up again (%s)", folder, rechosen)
        if before is None or changed or rechosen:
            for result in (folder / SUMMARY, *results):
                result.unlink(missing_ok=True)
        if before is None or changed or rechosen or places != before_at:
            write_json(path, {**settings, **choice, PLACES: places, "sha256": self._chosen})

    def _holds_work(self) -> bool:
        """Whether anything was finished; a run that was refused for one of its settings leaves only what it was."""
        return any(path.name not in BEFORE_WORK for path in self.folder.iterdir())

    @property
    def chosen(self) -> RunFolder:
        """The same run, for records that depend on the choice, too."""
        inner = copy.copy(self)
        inner._settings = self._chosen
        return inner

    def read(self, name: str) -> Any | None:  # noqa: ANN401
        """A finished record, or ``None`` if it is absent or damaged."""
        return read_record(self.folder / f"{name}.json", belongs_to=self._settings)

    def part(self, name: str) -> RunFolder:
        """The same run in a folder of its own inside, for work that is done several times."""
        inner = copy.copy(self)
        inner.folder = self.folder / name
        return inner

    def write(self, name: str, value: Any) -> None:  # noqa: ANN401
        """Record finished work."""
        path = self.folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, value, belongs_to=self._settings)


def _settings_in(path: Path) -> tuple[dict[str, Any] | None, Any]:
    """What a run folder says of its settings, ``None`` if that is damaged, and of where files lie."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        places = before.pop(PLACES, {})
        if before.pop("sha256") != digest(before):
            raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        logger.warning("%s is damaged and written anew; records of other settings count as not done", path)
        return None, {}
    return dict(before), places


def _difference(before: dict[str, Any], now: dict[str, Any], *, but: Collection[str] = ()) -> str:
    """The first setting that differs, in words; empty: none does."""
    if {*before, *but} ^ {*now, *but}:  # what only one has says nothing to a person
        return "it was made by another command or another version"
    changed = (name for name in {*before, *now} if name not in but and before.get(name) != now.get(name))
    name = min(changed, key=lambda name: (name in IN_WORDS, name), default="")  # digests say less than the others
    return IN_WORDS.get(name) or (name and f"{name}: {before.get(name)!r} there, {now.get(name)!r} now")


def recorded(
    run: RunFolder | None, name: str, make: Callable[[], Any], *, fits: Callable[[Any], bool] = lambda _: True
) -> Any:  # noqa: ANN401 (any JSON value)
    """A finished record of the run, made if it is not there, or is not one that ``fits``."""
    stored = run.read(name) if run else None
    if stored is None or not fits(stored):
        stored = make()
        if run:
            run.write(name, stored)
    return stored


def shard_name(number: int) -> str:
    """Name of a shard's record."""
    return f"shards/{number:06d}"


class ShardedRows(Lazy[T]):
    """Rows of a run, read from its shards when they are asked for.

    Args:
        run: its folder.
        numbers: theirs, counted over all shards.
        size: rows of a shard.
        kind: what they are, by the fields in the records.
    """

    def __init__(self, run: RunFolder, numbers: Sequence[int], size: int, kind: Callable[..., T]) -> None:
        self.numbers, self.size = numbers, size
        # texts are asked for first, then their labels; not by a method: in a cycle the run would outlive its use
        self._shard = lru_cache(SHARDS_HELD)(partial(_read_shard, run, kind))

    def __len__(self) -> int:
        return len(self.numbers)

    def item(self, number: int) -> T:
        """See :class:`~inversedmixup.labelled.Lazy`."""
        shard, place = divmod(self.numbers[number], self.size)
        return self._shard(shard)[place]


def _read_shard(run: RunFolder, kind: Callable[..., T], number: int) -> list[T]:
    stored = run.read(shard_name(number))
    if stored is None:
        raise InputError(f"{run.folder / shard_name(number)}.json is damaged; run the same command again")
    return [kind(**row) for row in stored]
