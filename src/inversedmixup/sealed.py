"""Files that carry the sha256 of their own content, so that a flipped bit is noticed when they are read again."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from inversedmixup.errors import PARTIAL, InputError, write_whole

logger = logging.getLogger(__name__)

SEAL = "seal.json"
_TEXT_SEAL = re.compile(rb"; sha256 of the rest ([0-9a-f]{64}) -->")


def digest(value: Any) -> str:  # noqa: ANN401 (any JSON value)
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write JSON, whole or not at all; not sealed."""
    write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def write_record(path: Path, value: Any, *, belongs_to: str = "") -> None:  # noqa: ANN401
    """Write a sealed JSON value; ``belongs_to`` is what it is worth nothing without, e.g. the digest of settings."""
    write_json(path, {"sha256": digest([belongs_to, value]), "value": value})


def read_record(path: Path, *, belongs_to: str = "") -> Any | None:  # noqa: ANN401
    """What :func:`write_record` wrote; ``None`` if it is absent, damaged or belongs to something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["value"] if record["sha256"] == digest([belongs_to, record["value"]]) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def write_text(path: Path, text: str, comment: str) -> None:
    """Write a text that people may change, unless they have: then it stays, and that is said.

    Args:
        path: where.
        text: with an HTML comment in it that is not closed: its end, with the sha256 of the rest, is added.
        comment: how that comment begins.
    """
    if path.exists() and not as_written(path):
        logger.warning(
            "%s was changed since it was written, and stays as it is, its numbers too; delete it for a new one", path
        )
        return
    content, begun = text.encode(), comment.encode()
    seal = b"; sha256 of the rest %s -->" % hashlib.sha256(content).hexdigest().encode()
    write_whole(path, content.replace(begun, begun + seal, 1))


def as_written(path: Path) -> bool:
    """Whether a text is byte for byte what :func:`write_text` wrote; that of an earlier version cannot show it."""
    content = path.read_bytes()
    found = _TEXT_SEAL.search(content)
    return found is not None and hashlib.sha256(content.replace(found[0], b"", 1)).hexdigest() == found[1].decode()


def check_settings(path: Path) -> None:
    """Refuse settings that somebody else wrote: whole JSON without the ``sha256`` of ours; damaged ones may be ours.

    Raises:
        InputError: naming the file.
    """
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if not (isinstance(there, dict) and "sha256" in there):
        raise InputError(f"{path}: is not of a run of ours; choose another folder")


def seal_folder(folder: Path, *, belongs_to: str = "") -> None:
    """Write down what the files of a finished folder are, and what they are worth nothing without."""
    write_record(folder / SEAL, _files_of(folder), belongs_to=belongs_to)


def is_whole(folder: Path, *, belongs_to: str = "") -> bool:
    """Whether a folder was finished by :func:`seal_folder`, and its files are what they were then."""
    sealed = read_record(folder / SEAL, belongs_to=belongs_to)
    try:
        return sealed is not None and sealed == _files_of(folder)
    except OSError:
        return False


def _files_of(folder: Path) -> dict[str, str]:
    """sha256 of each file by its path in the folder."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if name not in (SEAL, SEAL + PARTIAL)
    }


def write_tensors(path: Path, tensors: dict[str, Tensor], state: str = "") -> None:
    """Write sealed safetensors, whole or not at all, with a text that goes with them."""
    write_whole(path, save(tensors, {"state": state, "sha256": _tensors_digest(tensors, state)}))


def read_tensors(path: Path, *, device: str = "cpu") -> tuple[dict[str, Tensor], str]:
    """What :func:`write_tensors` wrote: the tensors, and the text. A file of an earlier version has no seal to check.

    Raises:
        InputError: if the file is damaged.
    """
    try:
        with safe_open(path, "pt", device=device) as file:
            record = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        state = record.get("state", "")
        found = _tensors_digest(tensors, state)
        if record.get("sha256", found) != found:
            raise InputError(f"{path}: damaged (its content is not what its sha256 says)")
    except InputError:
        raise
    except Exception as error:  # safetensors raises types of its own
        raise InputError(f"{path}: damaged ({' '.join(str(error).split())[:120]})") from error
    return tensors, state


def _tensors_digest(tensors: dict[str, Tensor], state: str) -> str:
    total = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
