"""Tiny random models for logic, the real default pair for behaviour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from inversedmixup.models.pair import Pair
from inversedmixup.schema import Example
from tiny import LABELS, SENTENCES, make_encoder, make_llm, make_pair


def pytest_collection_modifyitems(items):
    """The longest first, so that no worker waits for another at the end."""
    items.sort(key=lambda item: item.get_closest_marker("real") is None)


capabilities = getattr(torch.cpu, "get_capabilities", dict)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Tiny models compute in float32 on every processor, the real pair in what its processor is made for.

    Processes that a test starts do not know of it: where they must agree with it, the test names the dtype.
    """
    torch.cpu.get_capabilities = capabilities if item.get_closest_marker("real") else dict


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> str:
    return make_encoder(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory) -> str:
    return make_llm(tmp_path_factory.mktemp("models"))


@pytest.fixture
def tiny_pair(tiny_encoder, tiny_llm) -> Pair:
    return make_pair(tiny_encoder, tiny_llm)


@pytest.fixture(scope="session")
def tiny_pair_folder(tiny_encoder, tiny_llm, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pair")
    make_pair(tiny_encoder, tiny_llm).save(folder, encoder=False)
    return str(folder)


@pytest.fixture
def examples() -> list[Example]:
    return [Example(str(at), text, label) for at, (text, label) in enumerate(zip(SENTENCES, LABELS, strict=True))]


@pytest.fixture
def train_file(tmp_path, examples) -> Path:
    return write_jsonl(tmp_path / "train.jsonl", [{"text": e.text, "label": e.label} for e in examples])


@pytest.fixture
def corpus_file(tmp_path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(SENTENCES * 6) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
