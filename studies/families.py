"""Random models of every kind: generators and encoders of one size, and a tokenizer of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from inversedmixup.models.randomness import own_randomness

SPECIAL = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>", "unk_token": "<unk>"}
# the names that BERT-type tokenizers give to the same roles
SPECIAL_OF_ENCODERS = {"pad_token": "<pad>", "cls_token": "<start>", "sep_token": "<end>", "unk_token": "<unk>"}
PAD, START, END = 0, 1, 2  # their ids


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        hidden: width.
        layers: number of layers; of the encoder and of the decoder in an encoder-decoder.
        heads: attention heads.
        vocabulary: tokens that its tokenizer has at most.
        positions: longest text, in tokens.
    """

    hidden: int
    layers: int
    heads: int
    vocabulary: int
    positions: int = 256


def save_tokenizer(texts: Iterable[str], vocabulary: int, special: dict[str, str], folder: Path) -> int:
    """Train a byte-level BPE tokenizer on texts and write it; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(special.values()), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


# ---- generators --------------------------------------------------------------------------------------------------


def gpt2(size: Size, ids: dict[str, int]) -> Any:  # noqa: ANN401 (a PreTrainedModel, as below)
    """GPT-2: learned positions, layer norm, GELU."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(n_embd=size.hidden, n_layer=size.layers, n_head=size.heads, n_positions=size.positions, **ids)
    )


def llama(size: Size, ids: dict[str, int]) -> Any:  # noqa: ANN401
    """Llama: rotary positions, RMS norm, gated MLP, grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_gated(size), **ids))


def qwen2(size: Size, ids: dict[str, int]) -> Any:  # noqa: ANN401
    """Qwen 2: a Llama with biases on queries, keys and values."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_gated(size), **ids))


def qwen3(size: Size, ids: dict[str, int]) -> Any:  # noqa: ANN401
    """Qwen 3: a Llama that normalises queries and keys."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(head_dim=size.hidden // size.heads, **_gated(size), **ids))


def t5(size: Size, ids: dict[str, int]) -> Any:  # noqa: ANN401
    """T5: encoder-decoder with relative positions."""
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            d_model=size.hidden, d_kv=size.hidden // size.heads, d_ff=2 * size.hidden, num_layers=size.layers,
            num_heads=size.heads, decoder_start_token_id=PAD, **ids,
        )
    )  # fmt: skip


def bart(size: Size, ids: dict[str, int]) -> Any:  # noqa: ANN401
    """BART: encoder-decoder with learned positions."""
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(
        BartConfig(
            d_model=size.hidden, encoder_layers=size.layers, decoder_layers=size.layers,
            encoder_attention_heads=size.heads, decoder_attention_heads=size.heads, encoder_ffn_dim=2 * size.hidden,
            decoder_ffn_dim=2 * size.hidden, max_position_embeddings=size.positions, decoder_start_token_id=END,
            forced_eos_token_id=None, **ids,
        )
    )  # fmt: skip


def bert2bert(size: Size, ids: dict[str, int]) -> Any:  # noqa: ANN401
    """BERT-to-BERT: two encoders, the second with a causal mask and cross-attention (Rothe et al. 2020)."""
    from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

    encoder = BertConfig(**_encoder(size), **ids)
    decoder = BertConfig(is_decoder=True, add_cross_attention=True, **_encoder(size), **ids)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=START, eos_token_id=END, pad_token_id=PAD
    )
    return EncoderDecoderModel(config=config)


GENERATORS: dict[str, Callable[[Size, dict[str, int]], Any]] = {
    make.__name__: make for make in (gpt2, llama, qwen2, qwen3, t5, bart, bert2bert)
}


def make_generator(kind: str, size: Size, texts: Iterable[str], folder: Path, *, seed: int = 0) -> str:
    """Write a random generator of this kind, with a tokenizer trained on texts; returns its folder."""
    special = SPECIAL_OF_ENCODERS if kind == "bert2bert" else SPECIAL
    return _save(GENERATORS[kind], size, save_tokenizer(texts, size.vocabulary, special, folder), folder, seed)


# ---- encoders ----------------------------------------------------------------------------------------------------


def bert(size: Size, ids: dict[str, int]) -> Any:  # noqa: ANN401
    """BERT."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**_encoder(size), **ids))


def roberta(size: Size, ids: dict[str, int]) -> Any:  # noqa: ANN401
    """RoBERTa: its positions begin after the padding id."""
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(RobertaConfig(**_encoder(size), **ids))


def mpnet(size: Size, ids: dict[str, int]) -> Any:  # noqa: ANN401
    """MPNet: relative positions besides its own."""
    from transformers import MPNetConfig, MPNetModel

    return MPNetModel(MPNetConfig(**_encoder(size), **ids))


def distilbert(size: Size, ids: dict[str, int]) -> Any:  # noqa: ANN401
    """DistilBERT: other names for everything, no token types."""
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(
        DistilBertConfig(
            dim=size.hidden, n_layers=size.layers, n_heads=size.heads, hidden_dim=2 * size.hidden,
            max_position_embeddings=size.positions, **ids,
        )
    )  # fmt: skip


ENCODERS: dict[str, Callable[[Size, dict[str, int]], Any]] = {
    make.__name__: make for make in (bert, roberta, mpnet, distilbert)
}


def make_sentence_encoder(kind: str, size: Size, texts: Iterable[str], folder: Path, *, seed: int = 0) -> str:
    """Write a random sentence encoder of this kind (mean pooling, length 1); returns its folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    inside, whole = folder / "transformer", folder / "encoder"
    tokens = save_tokenizer(texts, size.vocabulary, SPECIAL_OF_ENCODERS, inside)
    _save(ENCODERS[kind], size, tokens, inside, seed)
    model = SentenceTransformer(modules=[Transformer(str(inside)), Pooling(size.hidden), Normalize()], device="cpu")
    model.save(str(whole), create_model_card=False)
    return str(whole)


def _save(make: Callable[[Size, dict[str, int]], Any], size: Size, tokens: int, folder: Path, seed: int) -> str:
    ids = {"vocab_size": tokens, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    with own_randomness(seed):
        make(size, ids).save_pretrained(folder)
    return str(folder)


def _gated(size: Size) -> dict[str, Any]:
    return {
        "hidden_size": size.hidden, "intermediate_size": 2 * size.hidden, "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads, "num_key_value_heads": size.heads // 2, "tie_word_embeddings": True,
        "max_position_embeddings": size.positions,
    }  # fmt: skip


def _encoder(size: Size) -> dict[str, int]:
    return {
        "hidden_size": size.hidden, "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
        "intermediate_size": 2 * size.hidden, "max_position_embeddings": size.positions,
    }  # fmt: skip
