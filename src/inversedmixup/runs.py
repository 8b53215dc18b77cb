"""A run folder beside the output: the resolved config, finished stages, finished shards. Everything resumes from it."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from inversedmixup.errors import InputError, write_whole
from inversedmixup.labelled import Lazy
from inversedmixup.sealed import digest, read_record, write_json, write_record

logger = logging.getLogger(__name__)
T = TypeVar("T", covariant=True)

JUDGEMENTS = "judgements.jsonl"  # what judge api was told
FITTED = "fitted"  # a record that runs of `label` have, and those of `augment` have not
# settings whose values say nothing to a person
IN_WORDS = {
    "inputs_sha256": "the rows of the input files have changed",
    "files_sha256": "the pair's files, --unlabelled or --descriptions have changed",
}
SHARDS_HELD = 32  # of rows that are read again


class RunFolder:
    """Finished work of one run.

    Each record carries the sha256 of its content and of the settings; a damaged one counts as not done. Records are
    written whole or not at all, so a run may be killed at any moment.

    Args:
        folder: where; made if absent.
        settings: everything that decides the result. A folder with other settings is refused.
        overwrite: throw a run with other settings away instead of refusing it.

    Raises:
        InputError: if the folder holds a run with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        self.folder = folder
        path = folder / "config.json"
        settings = json.loads(json.dumps(settings))
        self._settings = digest(settings)
        # None: there is nothing to compare with; empty: nothing has changed, and other processes may be reading it
        changed = self._changed(path, settings) if path.exists() else None
        if changed and not overwrite:
            raise InputError(
                f"{folder} holds a run with other settings ({changed}); choose another output, or add --overwrite "
                f"to replace it"
            )
        if changed and folder.is_symlink():
            raise InputError(f"{folder} is a link, and what it leads to is not deleted here; remove it yourself")
        if changed:
            paid = folder / JUDGEMENTS
            kept = paid.read_bytes() if paid.is_file() else None
            shutil.rmtree(folder)
            if kept is not None:  # they are keyed by what was asked
                folder.mkdir(parents=True)
                write_whole(paid, kept)
        folder.mkdir(parents=True, exist_ok=True)
        if changed is None or changed:
            write_json(path, {**settings, "sha256": self._settings})

    @staticmethod
    def _changed(path: Path, settings: dict[str, Any]) -> str | None:
        """The first setting that differs from the recorded ones; empty: none does; ``None``: that cannot be told."""
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            if before.pop("sha256") != digest(before):
                raise ValueError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            logger.warning("%s is damaged and written anew; records of other settings count as not done", path)
            return None
        changed = (name for name in {*before, *settings} if before.get(name) != settings.get(name))
        name = min(changed, key=lambda name: (name in IN_WORDS, name), default="")  # digests say less than the others
        return IN_WORDS.get(name) or (name and f"{name}: {before.get(name)!r} there, {settings.get(name)!r} now")

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


def recorded(run: RunFolder | None, name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401 (any JSON value)
    """A finished record of the run, made if it is not there."""
    stored = run.read(name) if run else None
    if stored is None:
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
        self.run, self.numbers, self.size, self.kind = run, numbers, size, kind
        self._shard = lru_cache(SHARDS_HELD)(self._read)  # texts are asked for first, then their labels

    def __len__(self) -> int:
        return len(self.numbers)

    def item(self, number: int) -> T:
        """See :class:`~inversedmixup.labelled.Lazy`."""
        shard, place = divmod(self.numbers[number], self.size)
        return self._shard(shard)[place]

    def _read(self, number: int) -> list[T]:
        stored = self.run.read(shard_name(number))
        if stored is None:
            raise InputError(f"{self.run.folder / shard_name(number)}.json is damaged; run the same command again")
        return [self.kind(**row) for row in stored]
