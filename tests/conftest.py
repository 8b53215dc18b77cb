"""Tiny random models for logic, the real default pair for behaviour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from inversedmixup.data import Example
from inversedmixup.models.pair import Pair

SENTENCES = [
    "where is my parcel", "the parcel is late again", "my order never came", "when will the box arrive",
    "the courier lost my parcel", "tracking says nothing at all", "please give me my money back",
    "i want a refund now", "refund the broken lamp", "how long does a refund take", "the money is not back yet",
    "cancel this and refund me", "i cannot log in today", "reset my password please", "my account is locked out",
    "the password mail never came", "log in fails every time", "change the mail of my account",
]  # fmt: skip
LABELS = ["delivery"] * 6 + ["refund"] * 6 + ["account"] * 6
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})


def save_tokenizer(folder: Path, special: dict[str, str]) -> int:
    """A word-level tokenizer over the test sentences; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        word: index for index, word in enumerate([*special.values(), *WORDS, ":", "/", ".", ",", "Label", "Text"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return len(vocabulary)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> str:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "bert"
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    size = save_tokenizer(folder, special)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=size, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64,
        )  # fmt: skip
        BertModel(config).save_pretrained(folder)
    transformer = Transformer(str(folder))
    model = SentenceTransformer(modules=[transformer, Pooling(24), Normalize()], device="cpu")
    out = folder.with_name("encoder")
    model.save(str(out), create_model_card=False)
    return str(out)


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "llm"
    size = save_tokenizer(folder, {"eos_token": "<end>", "unk_token": "<unk>", "bos_token": "<start>"})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, eos_token_id=0, bos_token_id=2, pad_token_id=0,
            tie_word_embeddings=True, initializer_range=0.3,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tiny_pair(tiny_encoder, tiny_llm) -> Pair:
    return Pair.fresh(tiny_encoder, tiny_llm, soft_tokens=2, hidden=16, layers=1)


@pytest.fixture(scope="session")
def tiny_pair_folder(tiny_encoder, tiny_llm, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pair")
    Pair.fresh(tiny_encoder, tiny_llm, soft_tokens=2, hidden=16, layers=1).save(folder, encoder=False)
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
