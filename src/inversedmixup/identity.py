"""What makes a run this run: settings that decide what it makes, its rows, the files of its models.

Which option decides what stands beside the option (:data:`~inversedmixup.options.WORK`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inversedmixup import __version__
from inversedmixup.errors import local_path
from inversedmixup.gate import GateConfig
from inversedmixup.judges import JudgeConfig
from inversedmixup.judges.api import endpoint
from inversedmixup.labelled import inputs_digest
from inversedmixup.models.pair import PAIR_FILES, PairOptions, pair_folder, recorded_pair
from inversedmixup.models.sources import Source, file_sha256, resolved
from inversedmixup.options import CHOICE, WORK, deciding
from inversedmixup.runs import PLACES
from inversedmixup.schema import Example

BLOCK, BLOCKS = 2**16, 256  # bytes of a large file that are read, so many times: weights are gigabytes


def work_settings(config: PairOptions, *inputs: Sequence[Example], unread: Sequence[Example] = ()) -> dict[str, Any]:
    """Everything that decides what a run makes: options, input rows, the models' files, where judge ``api`` asks.

    Args:
        config: the options.
        inputs: rows that it works on.
        unread: rows that stage 2 is kept from reading.
    """
    work, files = deciding(config, WORK), files_digest(config)
    # what files_sha256 knows is the same wherever it lies; a name on the hub is no place
    places = {"pair": config.pair} if config.pair and local_path(config.pair).is_dir() else {}
    for name in ("encoder", "llm", "unlabelled", "descriptions"):
        if name in files and work.get(name) and local_path(work[name]).exists():
            places[name] = work[name]
    return {
        **work, "pair": recorded_pair(config.pair), **dict.fromkeys(places), PLACES: places, "dtype": config.precision,
        "version": __version__, "api_url": endpoint(config) if isinstance(config, JudgeConfig) else None,
        "inputs_sha256": inputs_digest(*inputs), "files_sha256": files, "unread_sha256": inputs_digest(unread),
    }  # fmt: skip


def choice_settings(
    config: PairOptions, test: Sequence[Example], texts: Sequence[Example] | None = None
) -> dict[str, Any]:
    """Everything that decides what is taken of it, and what is measured with that.

    Args:
        config: the options.
        test: rows that are measured on.
        texts: those to label, if that is what the run does: each block of them is known by itself.
    """
    chosen = {**deciding(config, CHOICE), "test_sha256": inputs_digest(test)}
    if texts is not None:
        chosen["texts_sha256"] = inputs_digest(texts)
    return {**chosen, "accept_labels": config.accepted} if isinstance(config, GateConfig) else chosen


def files_digest(config: PairOptions) -> dict[str, str]:
    """What tells the pair's files, its models, the replayed text and the descriptions from others of these names."""
    folder = pair_folder(config.pair)
    parts = [
        folder / name for name in PAIR_FILES if name != "pair.json"
    ]  # a card written into the record changes nothing
    files = sorted(path for part in parts for path in (part, *part.rglob("*")) if path.suffix == ".safetensors")
    paths = {str(path.relative_to(folder)): path for path in files if path.is_file()}
    for name in ("unlabelled", "descriptions"):
        given = getattr(config, name, None)
        if given and (path := local_path(given)).is_file():
            paths[name] = path
    outside = {part: _known(resolved(part, name)) for part, name in config.outside().items()}
    return {**{name: file_sha256(path) for name, path in paths.items()}, **outside}


def _known(source: Source) -> str:
    """What tells a model from others of its name: the digest of a folder, the commit on the hub."""
    return source.name if source.revision else model_digest(Path(source.place))


def model_digest(folder: Path) -> str:
    """sha256 of the names and sizes of a model folder's files and of their bytes, of large ones of blocks all over.

    What is hidden there (downloaders keep notes, with times) is no part of the model.
    """
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, size = path.relative_to(folder), path.stat().st_size
        if any(part.startswith(".") for part in name.parts):
            continue
        total.update(f"{name.as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            step = max(BLOCK, (size - BLOCK) // (BLOCKS - 1))
            for begin in range(0, size, step):
                file.seek(begin)
                total.update(file.read(BLOCK))
    return total.hexdigest()
