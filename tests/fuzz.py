"""Every reader of untrusted bytes, for fuzzing: whatever they are given, they read it or refuse it in one line.

`make fuzz` runs each under atheris, guided by coverage; test_input.py runs them on hypothesis' mutations of the seeds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from inversedmixup.augment_job import AugmentJobConfig
from inversedmixup.data import iter_sourced, read_examples
from inversedmixup.errors import InputError
from inversedmixup.mixing import parse_lambda
from inversedmixup.models.pair import read_config
from inversedmixup.options import build, read_yaml
from inversedmixup.sealed import read_record, read_tensors, write_record, write_tensors

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
ROWS = [{"id": 1, "text": "where is my parcel", "label": "a"}, {"id": 2, "text": "=refund, me", "label": "-1"}]


def _file(suffix: str, data: bytes) -> Path:
    path = FOLDER / f"input{suffix}"
    path.write_bytes(data)
    return path


def _rows(suffix: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        path = _file(suffix, data)
        for example in read_examples(path):
            json.dumps([example.id, example.text, example.label], ensure_ascii=False).encode()

    return read


def _texts(data: bytes) -> None:
    for text, _ in iter_sourced(_file(".txt", data)):
        text.encode()


def _config(data: bytes) -> None:
    build(AugmentJobConfig, read_yaml(_file(".yaml", data), "--config"))


def _pair(data: bytes) -> None:
    (FOLDER / "pair.json").write_bytes(data)
    read_config(FOLDER)


TARGETS: dict[str, Callable[[bytes], object]] = {
    "csv": _rows(".csv"), "jsonl": _rows(".jsonl"), "parquet": _rows(".parquet"), "txt": _texts, "yaml": _config,
    "lam": lambda data: parse_lambda(data.decode("utf-8", "surrogateescape")), "pair": _pair,
    "record": lambda data: read_record(_file(".json", data)),
    "tensors": lambda data: read_tensors(_file(".safetensors", data)),
}  # fmt: skip


def seeds() -> Iterator[tuple[str, bytes]]:
    """A valid input of each target, or a few."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    yield "csv", b'id,text,label\n1,"where, is ""it""",a\n2,\'=refund me,-1\r\n'
    yield "csv", b"\xef\xbb\xbftext;label\rcaf\xc3\xa9;1.0\r"
    yield "jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    yield "txt", b"one line\r\n\n another\xe2\x80\xa8line\n"
    yield "yaml", b"n: 20\nlam: beta:0.4\npairs: any\ntries: 2.5\noverwrite: true\n"
    yield "lam", b"grid:0,0.25,1"
    pq.write_table(pa.table({"text": ["one", "two"], "label": [1, None]}), FOLDER / "seed.parquet")
    yield "parquet", (FOLDER / "seed.parquet").read_bytes()
    yield "pair", json.dumps({"format": 1, "encoder": "e", "llm": "l", "adaptor": {"embedding_dim": 1}}).encode()
    write_record(FOLDER / "seed.json", ["row"])
    yield "record", (FOLDER / "seed.json").read_bytes()
    write_tensors(FOLDER / "seed.safetensors", {"a": torch.ones(2)})
    yield "tensors", (FOLDER / "seed.safetensors").read_bytes()


def check(name: str, data: bytes) -> None:
    """Read ``data``; anything but a result or a refusal is a finding."""
    with contextlib.suppress(InputError):
        TARGETS[name](data)


def main() -> None:
    """``python tests/fuzz.py TARGET [libFuzzer options]``."""
    import atheris

    name = sys.argv.pop(1)
    logging.disable(logging.CRITICAL)
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, (target, data) in enumerate(seeds()):
        if target == name:
            (corpus / str(number)).write_bytes(data)
    for module in [module for key, module in sys.modules.items() if key.startswith("inversedmixup")]:
        for value in list(vars(module).values()):
            if getattr(value, "__module__", None) == module.__name__ and callable(value) and hasattr(value, "__code__"):
                setattr(module, value.__name__, atheris.instrument_func(value))
    atheris.Setup([*sys.argv, str(corpus)], lambda data: check(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
