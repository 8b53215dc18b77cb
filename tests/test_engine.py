"""The engine against plain transformers: likelihoods, gradients, texts; other engines."""

import dataclasses
import sys
import types

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, cache_utils

from inversedmixup.errors import InputError
from inversedmixup.judges.prompt import Prompt
from inversedmixup.models import decoding, nll
from inversedmixup.models.decoding import growing_cache
from inversedmixup.models.llm import SoftTokenLLM, choose_dtype
from inversedmixup.models.sampling import GREEDY, Sampling, pick
from inversedmixup.models.vllm import VllmDecoder
from plain import SAMPLED, check_decoding, check_likelihood, soft_tokens
from studies.families import Size, make_generator
from tiny import SENTENCES, make_llm_of, save_tokenizer


@pytest.fixture
def llm(tiny_llm):
    return SoftTokenLLM.from_pretrained(tiny_llm)


@pytest.fixture(scope="session")
def granite(tmp_path_factory):
    """An architecture that scales its logits after the output projection."""
    from transformers import GraniteConfig, GraniteForCausalLM

    folder = tmp_path_factory.mktemp("granite")
    size = save_tokenizer(folder, {"eos_token": "<end>", "unk_token": "<unk>", "bos_token": "<start>"})
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = GraniteConfig(
            vocab_size=size, eos_token_id=0, bos_token_id=2, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, logits_scaling=8.0, initializer_range=0.3,
        )  # fmt: skip
        GraniteForCausalLM(config).save_pretrained(folder)
    return SoftTokenLLM.from_pretrained(str(folder))


EARLY = not hasattr(cache_utils, "LinearAttentionLayer")  # transformers 5 in its first releases
with_state_caches = pytest.mark.skipif(EARLY, reason="states are kept in caches of the families' own there")
with_marian = pytest.mark.skipif(EARLY, reason="Marian's tokenizer cannot be read there without sentencepiece")
GATED = {
    "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
# convolutions, a delta rule or a state space beside attention: in layers of their own, in each layer
HYBRIDS = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "falcon_h1": {
        "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
}  # fmt: skip


# ---- likelihood ------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 9), size=st.integers(2, 40), chunk=st.integers(1, 5), bias=st.booleans())
@settings(max_examples=40, deadline=None)
def test_chunked_likelihood_and_gradient_equal_cross_entropy(rows, size, chunk, bias):
    rng = torch.Generator().manual_seed(rows * 100 + size)
    hidden = torch.randn(rows, 6, generator=rng)
    weight, offset = torch.randn(size, 6, generator=rng), torch.randn(size, generator=rng) if bias else None
    targets = torch.randint(size, (rows,), generator=rng)
    scale = torch.rand(rows, generator=rng)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nll, "CHUNK_LOGITS", chunk * size)
        a = nll.chunked_nll(ours, weight, offset, targets)
    b = functional.cross_entropy(functional.linear(theirs, weight, offset), targets, reduction="none")
    (a * scale).sum().backward()
    (b * scale).sum().backward()
    assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


def test_the_gradient_of_a_likely_token_survives_bfloat16():
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(2000, 64, generator=rng).bfloat16()
    targets = torch.arange(32)
    hidden = (weight[targets].float() * 0.2).bfloat16()  # their probabilities are 0.98 on average
    grads = []
    for rough in (True, False):
        given = hidden.clone().requires_grad_() if rough else hidden.float().requires_grad_()
        nll.chunked_nll(given, weight if rough else weight.float(), None, targets).sum().backward()
        grads.append(given.grad.float())
    assert ((grads[0] - grads[1]).norm(dim=1) / grads[1].norm(dim=1)).median() < 0.02


def test_likelihood_under_scaled_logits_equals_the_models_own(granite):
    check_likelihood(granite)


TOKENS_SCALED = {  # by the model itself, outside the embedding layer; embeddings that it is handed are not
    "marian": {
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 0, "scale_embedding": True,
        "init_std": 0.3,
    },
    "falcon_h1": {**GATED, **HYBRIDS["falcon_h1"], "embedding_multiplier": 5.0},
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [pytest.param("marian", marks=with_marian), pytest.param("falcon_h1", marks=with_state_caches)]
)
def test_words_as_embeddings_are_what_words_as_tokens_are(kind, tmp_path):
    llm = SoftTokenLLM.from_pretrained(make_llm_of(kind, tmp_path, **TOKENS_SCALED[kind]))
    table = llm.lm.get_input_embeddings().weight.norm(dim=1).mean().item()
    assert llm.norm == pytest.approx(table * (5 if kind == "falcon_h1" else 32**0.5), rel=1e-4)
    words, rest = llm.ids("where is my parcel"), llm.ids("refund now")
    if llm.encoder_decoder:
        logits = llm.lm(
            input_ids=torch.tensor([words]), decoder_input_ids=torch.tensor([[llm.start, *rest[:-1]]])
        ).logits
    else:
        logits = llm.lm(input_ids=torch.tensor([[*words, *rest[:-1]]])).logits[:, len(words) - 1 :]
    expected = functional.cross_entropy(logits[0], torch.tensor(rest), reduction="none")
    assert torch.allclose(llm.nll(llm._words(words), [rest]), expected, atol=1e-4)


@pytest.mark.parametrize("prompt", ["my {soft} parcel", "{soft} parcel", "where is {soft}"])
def test_a_prompt_read_once_gives_what_a_prompt_in_line_gives(llm, prompt):
    llm.set_prompt(prompt)
    check_likelihood(llm)
    soft = soft_tokens(llm)
    texts = llm.decode(soft, dataclasses.replace(GREEDY, max_tokens=8))
    assert bool(llm._opening) == bool(llm._before)
    llm._open = list  # nothing is kept: the prompt stands in line
    assert llm.decode(soft, dataclasses.replace(GREEDY, max_tokens=8)) == texts


def test_a_prompts_keys_are_not_kept_while_lora_learns(llm):
    llm.set_prompt("where is {soft}")
    assert llm.prefix(soft_tokens(llm))[0]
    llm.add_lora(2, seed=0)
    assert not llm.prefix(soft_tokens(llm))[0]


def test_looking_at_fluency_leaves_frozen_weights_frozen(llm, tmp_path):
    llm.add_lora(2, seed=0)
    llm.save_lora(tmp_path)
    loaded = SoftTokenLLM.from_pretrained(llm.name)
    loaded.load_lora(tmp_path)
    loaded.set_prompt("where is {soft}")
    loaded.log_likelihood(SENTENCES[:3])
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert loaded.prefix(soft_tokens(loaded))[0]
    learning = {name for name, weight in llm.model.named_parameters() if weight.requires_grad}
    llm.log_likelihood(SENTENCES[:3])
    assert {name for name, weight in llm.model.named_parameters() if weight.requires_grad} == learning


def test_decoding_compiles_nothing_and_training_few_graphs(llm, monkeypatch):
    graphs, real = [], torch.nn.Module.compile

    def counting(module, inputs):
        graphs.append(module)
        return module.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: real(module, backend=counting))
    torch.compiler.reset()
    llm.compile_layers()
    soft = soft_tokens(llm)
    llm.decode(soft, dataclasses.replace(GREEDY, max_tokens=6))
    assert graphs == []
    for words in (1, 2, 3, 4, 5, 6):
        llm.loss(soft, llm.targets([" ".join(["parcel"] * words)] * 9, 64))
    assert 1 <= len(graphs) <= 3


def test_bfloat16_stays_near_float32(tiny_llm, llm):
    half = SoftTokenLLM.from_pretrained(tiny_llm, dtype=torch.bfloat16)
    soft, targets = soft_tokens(llm), llm.targets(SENTENCES[:9], 64)
    assert half.loss(soft, targets).item() == pytest.approx(llm.loss(soft, targets).item(), rel=0.02)
    assert len(half.decode(soft, dataclasses.replace(GREEDY, max_tokens=5))) == 9


def test_on_a_cpu_bfloat16_does_without_the_fused_attention(tiny_llm):
    """Its backward pass takes a third of a training step there, and decoding is slower with it, too."""
    gradients = []
    for attention in ("eager", "sdpa"):
        half = SoftTokenLLM.from_pretrained(tiny_llm, dtype=torch.bfloat16)
        assert half.lm.config._attn_implementation == "eager"
        half.lm.set_attn_implementation(attention)
        soft = torch.randn(2, 3, half.dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
        half.loss(soft, half.targets(["where is my parcel", "i want a refund"], 8)).backward()
        gradients.append(soft.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.1, atol=0.02 * gradients[0].abs().max().item())
    assert SoftTokenLLM.from_pretrained(tiny_llm).lm.config._attn_implementation == "sdpa"


def test_the_projection_is_handed_no_strided_view(llm):
    """Of a [:, -1:] view torch makes one product a row, and copies the vocabulary matrix for each."""
    laid_out = []
    seen = llm.lm.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: laid_out.append(given[0].is_contiguous())
    )
    llm.lm(input_ids=torch.tensor([llm.ids("where is my parcel")] * 3), logits_to_keep=1)
    seen.remove()
    assert laid_out == [True]


def test_auto_takes_bfloat16_only_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert choose_dtype("auto", "cpu") == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert choose_dtype("auto", "cpu") == torch.float32
    assert choose_dtype("bfloat16", "cpu") == torch.bfloat16


# ---- decoding --------------------------------------------------------------------------------------------------


def test_candidates_that_share_a_prefill_are_those_of_rows_apart(llm):
    check_decoding(llm)


def test_scaled_logits_decode_as_generate_does(granite):
    check_decoding(granite)


@with_state_caches
@pytest.mark.parametrize("kind", HYBRIDS)
def test_layers_with_a_state_of_their_own_let_rows_share_a_prefill_and_leave(kind, tmp_path):
    llm = SoftTokenLLM.from_pretrained(make_llm_of(kind, tmp_path, **GATED, **HYBRIDS[kind]))
    soft, uniforms = soft_tokens(llm), np.random.default_rng(0).random((27, 10))
    expected = []
    for row, numbers in zip(soft.repeat_interleave(3, dim=0), uniforms, strict=True):
        ids = []
        while len(ids) < 10 and llm.eos not in ids:
            embedded = llm.lm.get_input_embeddings()(torch.tensor([ids], dtype=torch.long))
            logits = llm.lm(inputs_embeds=torch.cat([row[None], embedded], 1), use_cache=False).logits[:, -1]
            ids += pick(logits, SAMPLED, numbers[len(ids) : len(ids) + 1]).tolist()
        expected.append(llm.text(ids))
    assert len({len(text.split()) for text in expected}) > 2  # some rows end before others
    assert llm.decode(soft, SAMPLED, uniforms, candidates=3) == expected


@with_state_caches
def test_lora_goes_on_a_state_space_but_for_the_weight_that_its_kernels_take_past_it(tmp_path):
    llm = SoftTokenLLM.from_pretrained(make_llm_of("falcon_h1", tmp_path / "llm", **GATED, **HYBRIDS["falcon_h1"]))
    llm.add_lora(2, seed=0)
    places = {name.split(".lora_")[0] for name, weight in llm.model.named_parameters() if weight.requires_grad}
    assert {place.split(".")[-1] for place in places} >= {"in_proj", "q_proj", "down_proj"}
    assert not any(place.endswith(".out_proj") for place in places)
    soft, targets = soft_tokens(llm), llm.targets(SENTENCES[:9], 16)
    before = llm.loss(soft, targets).detach()
    optimiser = torch.optim.AdamW([weight for weight in llm.model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        llm.loss(soft, targets).backward()
        optimiser.step()
    learnt = llm.loss(soft, targets).detach()
    assert learnt < before
    llm.save_lora(tmp_path / "lora")
    again = SoftTokenLLM.from_pretrained(str(tmp_path / "llm"))
    again.load_lora(tmp_path / "lora")
    assert again.loss(soft, targets).item() == pytest.approx(learnt.item(), abs=1e-2)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mamba", {"num_hidden_layers": 2, "state_size": 8}),
        ("recurrent_gemma", {**GATED, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16}),
    ],
)
def test_llms_that_cannot_go_on_from_what_they_have_read_are_refused(kind, more, tmp_path):
    with pytest.raises(InputError, match=f"{kind} cannot go on .*choose"):
        SoftTokenLLM.from_pretrained(make_llm_of(kind, tmp_path, **more))


@pytest.mark.parametrize("kind", ["gemma3n_text", "gemma4_text"])
def test_llms_that_know_a_token_by_more_than_its_embedding_are_refused(kind, tmp_path):
    if kind not in CONFIG_MAPPING:
        pytest.skip("not there in early transformers 5")
    more = {
        **GATED, "head_dim": 8, "hidden_size_per_layer_input": 8, "layer_types": ["full_attention"] * 2,
        "vocab_size_per_layer_input": 200,
    }  # fmt: skip
    if kind == "gemma3n_text":
        more |= {"laurel_rank": 4, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 2}
    folder = make_llm_of(kind, tmp_path, **more)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.random.fork_rng(), torch.no_grad():  # some weights begin at zero, and nothing comes of what they read
        torch.manual_seed(0)
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    with pytest.raises(InputError, match=f"{kind} knows a token by more than its embedding.*choose"):
        SoftTokenLLM.from_pretrained(folder)


def test_an_llm_that_reads_too_few_tokens_for_a_text_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"reads 64 tokens at a time.*choose another"):
        SoftTokenLLM.from_pretrained(make_llm_of("gpt2", tmp_path, n_layer=2, n_head=4, n_positions=64))


@pytest.mark.parametrize("kind", ["gpt2", "bart", "bert2bert"])
def test_a_text_that_the_window_does_not_hold_is_refused_before_it_is_written(kind, tmp_path):
    size = Size(hidden=32, layers=2, heads=2, vocabulary=300, positions=130)
    llm = SoftTokenLLM.from_pretrained(make_generator(kind, size, SENTENCES, tmp_path))
    soft = soft_tokens(llm)
    most = 130 if llm.encoder_decoder else 127
    assert len(llm.decode(soft, dataclasses.replace(GREEDY, max_tokens=most))) == len(soft)
    assert llm.nll(soft, [[5] * most] * len(soft)).isfinite().all()
    for beyond in (
        lambda: llm.decode(soft, dataclasses.replace(GREEDY, max_tokens=most + 1)),
        lambda: llm.nll(soft, [[5] * (most + 1)] * len(soft)),
    ):
        with pytest.raises(InputError, match=r"reads 130 tokens at a time.*lower --max-tokens"):
            beyond()
    assert np.isfinite(llm.log_likelihood([" ".join(SENTENCES)])).all()
    with pytest.raises(InputError, match=r"reads 130 tokens at a time.*choose judges"):
        Prompt(llm, ["delivery", "refund"], opening=" ".join(SENTENCES[:3]))


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried"), MemoryError()])
def test_less_memory_means_smaller_batches_and_the_same_texts(llm, monkeypatch, error):
    soft, real, sizes = soft_tokens(llm, rows=8), decoding._decode_batch, []

    def scarce(llm, part, *rest):
        sizes.append(len(part))
        if len(part) > 3:
            raise error
        return real(llm, part, *rest)

    expected = llm.decode(soft)
    monkeypatch.setattr(decoding, "_decode_batch", scarce)
    assert llm.decode(soft) == expected
    assert sizes == [8, 4, 2, 2, 2, 2]


def test_other_errors_are_not_taken_for_a_lack_of_memory(llm, monkeypatch):
    monkeypatch.setattr(decoding, "_decode_batch", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        llm.decode(soft_tokens(llm))


def test_the_cache_holds_what_transformers_own_holds(llm):
    from transformers import DynamicCache

    inputs, rows = soft_tokens(llm, rows=4, k=5), torch.tensor([2, 0, 2])
    ours, theirs = growing_cache(llm.lm.config, 12), DynamicCache(config=llm.lm.config)
    with torch.no_grad():
        for cache in (ours, theirs):
            llm.lm(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            cache.reorder_cache(rows)
            llm.lm(input_ids=torch.tensor([[5], [6], [7]]), past_key_values=cache, use_cache=True)
    assert ours.get_seq_length() == theirs.get_seq_length() == 6
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert torch.allclose(a.keys, b.keys, atol=1e-6)
        assert torch.allclose(a.values, b.values, atol=1e-6)


# ---- vLLM: its requests, as it is not at hand --------------------------------------------------------------------


class Engine:
    """Stands for ``vllm.LLM``: answers each request with three tokens and the end."""

    def __init__(self, **options):
        self.options, self.calls = options, []

    def generate(self, prompts, params, use_tqdm):
        self.calls.append((prompts, params))
        answer = types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=[5, 6, 7, 0])])
        return [answer] * len(prompts)


@pytest.fixture
def stored_lora(llm, tmp_path):
    """A folder with LoRA weights to write with and such to correct with, of a tiny LLM."""
    llm.add_lora(2, seed=0)
    llm.add_correction()
    llm.save_lora(tmp_path / "lora")
    llm.save_correction(tmp_path / "correction_lora")
    return tmp_path


def test_lora_weights_are_read_to_where_the_model_is(tiny_llm, stored_lora, monkeypatch):
    asked = []
    load = peft.peft_model.load_peft_weights
    monkeypatch.setattr(peft.peft_model, "infer_device", lambda: "cuda")  # a machine with a GPU, but --device cpu
    monkeypatch.setattr(
        peft.peft_model, "load_peft_weights", lambda at, device, **more: asked.append(device) or load(at, "cpu", **more)
    )
    again = SoftTokenLLM.from_pretrained(tiny_llm)
    again.load_lora(stored_lora / "lora")
    again.load_correction(stored_lora / "correction_lora")
    assert asked == ["cpu", "cpu"]
    assert not any(weight.requires_grad for weight in again.model.parameters())


def test_weights_are_as_frozen_after_an_error_as_before(llm):
    llm.add_lora(2, seed=0)
    llm.add_correction()
    llm.model.requires_grad_(False)

    def fail_in(block):
        with pytest.raises(KeyboardInterrupt), block:
            raise KeyboardInterrupt

    for block in (llm.plain, llm.correcting, lambda: llm.correcting(learning=True)):
        fail_in(block())
        assert not any(weight.requires_grad for weight in llm.model.parameters())
        assert llm.model.active_adapter == "default"


def test_lack_of_memory_is_not_told_as_lora_weights_of_another_model(tiny_llm, stored_lora, monkeypatch):
    def full(*given, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    again = SoftTokenLLM.from_pretrained(tiny_llm)
    again.load_lora(stored_lora / "lora")
    monkeypatch.setattr(peft.peft_model, "load_peft_weights", full)
    with pytest.raises(torch.OutOfMemoryError):
        again.load_correction(stored_lora / "correction_lora")
    with pytest.raises(torch.OutOfMemoryError):
        SoftTokenLLM.from_pretrained(tiny_llm).load_lora(stored_lora / "lora")


def test_vllm_gets_one_request_a_text_with_the_rows_own_seed(llm, monkeypatch):
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = Engine, lambda **settings: settings
    monkeypatch.setitem(sys.modules, "vllm", module)
    llm.set_prompt("my {soft} parcel")
    llm.add_lora(2, seed=0)
    decoder = VllmDecoder.from_llm(llm, dtype="float32")
    assert decoder.engine.options["enable_prompt_embeds"]
    soft = soft_tokens(llm, rows=2)
    uniforms = np.array([[0.25], [0.5], [0.75], [0.0]])
    texts = decoder.decode(soft, Sampling(0.7, 0.9, 40, 12), uniforms, candidates=2)
    assert texts == [llm.text([5, 6, 7])] * 4
    prompts, params = decoder.engine.calls[0]
    assert torch.equal(prompts[1]["prompt_embeds"], llm.whole_prefix(soft)[0])
    assert torch.equal(prompts[2]["prompt_embeds"], llm.whole_prefix(soft)[1])
    assert [p["seed"] for p in params] == [2**29, 2**30, 3 * 2**29, 0]
    assert params[0]["top_p"] == 0.9
    assert params[0]["max_tokens"] == 12
    assert "seed" not in decoder.requests(soft, GREEDY, None, 1)[1][0]
    decoder.decode(soft, GREEDY)
    assert decoder.engine.calls[1][1][0]["temperature"] == 0.0


def test_the_merged_model_is_the_model_with_its_lora(llm, tmp_path):
    llm.add_lora(2, seed=0)
    with torch.no_grad():
        for weight in (w for w in llm.model.parameters() if w.requires_grad):
            weight.add_(0.1)
    llm.save_merged(tmp_path)
    soft, targets = soft_tokens(llm), llm.targets(SENTENCES[:9], 64)
    merged = SoftTokenLLM.from_pretrained(str(tmp_path))
    assert not merged.has_lora
    assert merged.loss(soft, targets).item() == pytest.approx(llm.loss(soft, targets).item(), rel=1e-4)


def test_vllm_that_is_not_installed_is_bad_input(llm, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"pip install vllm"):
        VllmDecoder.from_llm(llm)
