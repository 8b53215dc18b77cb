"""M_ψ: the LLM. Loss on a text given its soft tokens, decoding from soft tokens, log-likelihood of a text.

Everything goes through transformers' public API, so any decoder-only or encoder-decoder model that it loads and that
goes on from a cache of what it has read will do, two encoders put together (BERT-to-BERT) included.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.data import check_several
from inversedmixup.errors import InputError, first_line, one_line
from inversedmixup.loading import SAFE, quiet_loading
from inversedmixup.models.lora import add_lora, load_lora, load_more_lora, save_lora
from inversedmixup.models.lower_layers import READ_TOKENS, deepest_stacks
from inversedmixup.models.nll import chunked_nll
from inversedmixup.models.randomness import own_randomness
from inversedmixup.models.sampling import GREEDY, Sampling
from inversedmixup.models.sources import cache_dir, resolve

SOFT = "{soft}"
CORRECTION = "correction"  # name of the LoRA weights for correcting
DTYPES = ("auto", "float32", "bfloat16")
Opening = list[tuple[Tensor, Tensor]]  # keys and values [1, heads, p, size] of a fixed prompt, by layer
EMPTY_FLUENCY = -99.0  # finite, so that it is valid JSON


def choose_dtype(name: str, device: str | torch.device) -> torch.dtype:
    """The dtype called ``name``; ``auto`` is bfloat16 where the device is made for it, else float32.

    Raises:
        InputError: for a device that torch does not know or cannot use here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {str(device)!r}: cannot be used ({first_line(error)[:80]}); choose another, such as cpu"
        ) from error
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capable: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = capable.get("amx_bf16") or capable.get("avx512_bf16")
    return torch.bfloat16 if fast and torch.device(device).type == "cpu" else torch.float32


def precision_of(name: str, device: str | torch.device) -> str:
    """The dtype called ``name`` as a setting of a run, which ``auto`` is not: see :func:`choose_dtype`."""
    return str(choose_dtype(name, device)).removeprefix("torch.")


class SoftTokenLLM:
    """A decoder-only or encoder-decoder LLM that reads soft tokens.

    Attributes:
        model: the ``PreTrainedModel``, or a peft model around it when LoRA is used.
        encoder_decoder: whether an encoder reads the soft tokens and a decoder writes.
        dim: D, size of the input embeddings.
        norm: mean length of the token embeddings; adaptors match it.
        eos, start: ids of the token that ends a text, and of the one that a decoder starts from.
        empty: the special tokens around a text that an encoder reads; none in a decoder-only LLM.
        prompt: text around the soft tokens, with ``{soft}`` where they go; ``{soft}`` alone is no prompt.
        ends: tokens that end a text.

    Raises:
        InputError: if the LLM cannot end a text, cannot go on from what it has read, or reads too few tokens.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, prompt: str = SOFT) -> None:  # noqa: ANN401
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.encoder_decoder = bool(self.lm.config.is_encoder_decoder)
        self._compiled = False
        self._head: tuple[nn.Linear | None] | None = None
        if not self._goes_on():
            raise InputError(
                f"LLM {name!r}: a {self.lm.config.model_type} cannot go on from what it has read, row by row, so that "
                f"nothing can be written with it; choose another LLM, such as a Llama, Qwen or LFM2"
            )
        if self.window < READ_TOKENS:
            raise InputError(
                f"LLM {name!r} reads {self.window} tokens at a time, and texts have up to {READ_TOKENS}; "
                f"choose another LLM"
            )
        # families hand it a strided [:, -k:] view, for which torch copies the vocabulary matrix once a row
        self.lm.get_output_embeddings().register_forward_pre_hook(_laid_out)
        self._scale = self._scale_of_words()
        if not self._reads_embeddings():
            raise InputError(
                f"LLM {name!r}: a {self.lm.config.model_type} knows a token by more than its embedding, so that it "
                f"cannot read soft tokens; choose another LLM, such as a Llama or Qwen"
            )
        table = self.lm.get_input_embeddings().weight
        self.dim = int(table.shape[1])
        with torch.no_grad():  # through the layer, as some families scale what is in their table
            self.norm = float(self._embed(torch.arange(len(table), device=table.device)).float().norm(dim=1).mean())
        self.eos, self.start = _ends(self.lm, tokenizer, name)
        self.ends = frozenset({self.eos})
        self.empty = list(tokenizer("")["input_ids"]) if self.encoder_decoder else []
        self.set_prompt(prompt)

    @classmethod
    def from_pretrained(
        cls, name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, prompt: str = SOFT
    ) -> SoftTokenLLM:
        """Load an LLM (safetensors only) with frozen weights.

        Raises:
            InputError: if it cannot be loaded.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        # the loaders raise a dozen types for "not there" and "not a model"
        with one_line(f"LLM {name!r} cannot be loaded"), quiet_loading():
            source = resolve(name)
            place, safely = source.place, {"revision": source.revision, **SAFE}
            both = AutoConfig.from_pretrained(place, **safely).is_encoder_decoder
            tokenizer = AutoTokenizer.from_pretrained(place, **safely)
            family = AutoModelForSeq2SeqLM if both else AutoModelForCausalLM
            # torch's fused attention is slow in bfloat16 on a CPU, above all its backward pass (docs/engine.md)
            attention = "eager" if dtype == torch.bfloat16 and torch.device(device).type == "cpu" else None
            model = family.from_pretrained(
                place, dtype=dtype, attn_implementation=attention, use_safetensors=True, **safely
            )
        model.requires_grad_(False)
        return cls(model.to(device).eval(), tokenizer, source.name, prompt)

    @property
    def lm(self) -> Any:  # noqa: ANN401 (a PreTrainedModel)
        """The LLM itself; peft hides it one level down."""
        return self.model.get_base_model() if self.has_lora else self.model

    @property
    def vocabulary(self) -> int:
        """V, how many tokens the LLM scores."""
        return int(self.lm.get_output_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(next(self.model.parameters()).device)

    def set_prompt(self, prompt: str) -> None:
        """Choose the text around the soft tokens.

        Raises:
            InputError: unless ``{soft}`` occurs exactly once.
        """
        if prompt.count(SOFT) != 1:
            raise InputError(f"prompt {prompt!r}: expected {SOFT} exactly once, where the soft tokens go")
        self.prompt = prompt
        before, after = prompt.split(SOFT)
        self._before, self._after = (self.ids(part) for part in (before, after))
        self._opening: Opening | None = None

    @cached_property
    def window(self) -> int:
        """How many tokens it can read at a time; of an encoder-decoder, either part of it."""
        parts = (self.lm.get_encoder(), self.lm.get_decoder()) if self.encoder_decoder else ()
        configs = [self.lm.config, *(part.config for part in parts if hasattr(part, "config"))]
        return min(getattr(config, "max_position_embeddings", None) or 10**9 for config in configs)

    def check_room(self, soft_tokens: int, max_tokens: int) -> None:
        """Make sure that it can read its prompt and so many soft tokens, and write so many tokens.

        Raises:
            InputError: if its window does not hold them.
        """
        given = self.prompt_length + soft_tokens
        if (max(given, max_tokens) if self.encoder_decoder else given + max_tokens) > self.window:
            raise InputError(
                f"LLM {self.name!r} reads {self.window} tokens at a time: its prompt and {soft_tokens} soft tokens "
                f"take {given} of them, and a text up to {max_tokens}; lower --max-tokens, or choose another LLM"
            )

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt, without the soft ones."""
        return len(self._before) + len(self._after)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, without marks of its beginning and end."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def targets(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Token ids of each text, ended by end-of-text; a longer text is cut at ``max_tokens`` and left open.

        Raises:
            InputError: for a single string.
        """
        check_several(texts)
        encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[*ids, self.eos][:max_tokens] for ids in encoded]

    # ---- LoRA ------------------------------------------------------------------------------------------------

    def add_lora(self, rank: int, *, seed: int, layers: list[int] | None = None) -> None:
        """Put trainable LoRA weights of this rank on the LLM, or on some of its layers."""
        self.model, self._opening = add_lora(self.model, rank, seed=seed, layers=layers), None

    def load_lora(self, folder: Path) -> None:
        """Read LoRA weights that :meth:`save_lora` wrote, and freeze them."""
        self.model, self._opening = load_lora(self.model, folder), None

    def save_lora(self, folder: Path) -> None:
        """Write the LoRA weights."""
        save_lora(self.model, folder, self.name)

    def merge_lora(self) -> None:
        """Make the LoRA weights part of the LLM; what is plain afterwards has them in it."""
        self.model, self._opening = self.model.merge_and_unload(), None

    def add_correction(self) -> None:
        """Give the LLM a second set of LoRA weights, for correcting: at first a copy of those that it writes with."""
        state = {name: weight for name, weight in self.model.state_dict().items() if ".default." in name}
        with own_randomness():
            self.model.add_adapter(CORRECTION, copy.copy(self.model.peft_config["default"]))
        self.model.load_state_dict(
            {name.replace(".default.", f".{CORRECTION}."): weight for name, weight in state.items()}, strict=False
        )
        self._activate("default")

    def correction_weights(self) -> dict[str, nn.Parameter]:
        """The LoRA weights for correcting, by name; none where the LLM corrects as it writes."""
        marked = f".{CORRECTION}."
        return {f"llm.{name}": weight for name, weight in self.model.named_parameters() if marked in name}

    def load_correction(self, folder: Path) -> None:
        """Read the second set of LoRA weights."""
        load_more_lora(self.model, folder, CORRECTION)
        self._activate("default")

    def save_correction(self, folder: Path) -> None:
        """Write the second set of LoRA weights."""
        save_lora(self.model, folder, self.name, CORRECTION)

    @contextlib.contextmanager
    def correcting(self, *, learning: bool = False) -> Iterator[None]:
        """The LLM with the LoRA weights that it corrects with, if it has any; they get gradients while ``learning``."""
        second = self.has_lora and CORRECTION in self.model.peft_config
        if second:
            self._activate(CORRECTION)
        for weight in self.correction_weights().values():
            weight.requires_grad_(learning)
        try:
            yield
        finally:
            for weight in self.correction_weights().values():
                weight.requires_grad_(False)
            if second:
                self._activate("default")

    def _activate(self, adapter: str) -> None:
        with self._gradients_kept():
            self.model.base_model.set_adapter(adapter, inference_mode=True)
        self._opening = None

    def save_merged(self, folder: str | Path) -> None:
        """Write model and tokenizer as ``from_pretrained`` reads them, LoRA weights merged into the LLM's."""
        merged = copy.deepcopy(self.model).merge_and_unload() if self.has_lora else self.model
        merged.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def has_lora(self) -> bool:
        """Whether LoRA weights sit on the LLM."""
        return hasattr(self.model, "get_base_model")  # older peft leaves its config on a model that it has let go

    @contextlib.contextmanager
    def plain(self) -> Iterator[None]:
        """The LLM as it came, without LoRA: for fluency and judging."""
        if not self.has_lora:
            yield
            return
        with self._gradients_kept(), self.model.disable_adapter():
            yield

    @contextlib.contextmanager
    def _gradients_kept(self) -> Iterator[None]:
        """Leave every weight as trainable or frozen as it is: peft changes that when it switches LoRA weights."""
        learning = [weight for weight in self.model.parameters() if weight.requires_grad]
        try:
            yield
        finally:
            self.model.requires_grad_(False)
            for weight in learning:
                weight.requires_grad_(True)

    def compile_layers(self) -> None:
        """Compile the repeated layer rather than the whole model: the layers share their code, kept on disk."""
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
        for layer in itertools.chain.from_iterable(deepest_stacks(self.lm)):
            layer.compile()
        self._compiled = True

    # ---- inputs ----------------------------------------------------------------------------------------------

    def _embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.lm.get_input_embeddings()(ids)
        return out if self._scale == 1 else out * self._scale

    @torch.no_grad()
    def _scale_of_words(self) -> float:
        """What its tokens' embeddings are multiplied by outside their layer, and others are not (Marian, Falcon-H1)."""
        part = self.lm.get_encoder() if self.encoder_decoder else self.lm.base_model
        scale = float(getattr(part, "embed_scale", getattr(part, "embedding_multiplier", 1.0)))
        if scale == 1:
            return scale
        ids, layer = self._some_words(), self.lm.get_input_embeddings()
        states = part(input_ids=ids).last_hidden_state
        off = part(inputs_embeds=layer(ids) * scale).last_hidden_state - states
        return scale if off.std() < 0.01 * states.std() else 1.0  # others, as Granite, scale whatever they are handed

    @torch.no_grad()
    def _reads_embeddings(self) -> bool:
        """Whether an embedding stands for a token, or for none: some families look ids up in each layer (Gemma 3n)."""
        ids = self._some_words()
        words = self._embed(ids)
        more: dict[str, Any] = {"decoder_input_ids": ids[:, :1]} if self.encoder_decoder else {}
        more["use_cache"] = False
        by_id = self.lm(input_ids=ids, **more).logits.float()
        try:
            self.lm(inputs_embeds=words.mean(dim=1, keepdim=True), **more)
            by_embedding = self.lm(inputs_embeds=words, **more).logits.float()
        except Exception:  # of any kind that a family of LLMs can think of
            return False
        return bool((by_embedding - by_id).std() < 0.01 * by_id.std())  # to the bit, but for roundings of a scale

    def _some_words(self) -> Tensor:
        """Ids [1, 2] of tokens that are no padding, which can be zero."""
        ids: Tensor = self.lm.get_input_embeddings().weight.norm(dim=1).topk(2).indices[None]
        return ids

    def prefix(self, soft: Tensor) -> tuple[Opening, Tensor]:
        """The prompt around soft tokens [n, k, D]: keys and values of its beginning, embeddings [n, p, D] of the rest.

        The text before the soft tokens is the same for every row, so a frozen LLM reads it once and keeps its keys
        and values.
        """
        opening = self._open() if self._before else []
        whole = self.whole_prefix(soft)
        return opening, whole[:, len(self._before) :] if opening else whole

    def whole_prefix(self, soft: Tensor) -> Tensor:
        """Embeddings [n, p, D] of the prompt with soft tokens [n, k, D] in their place."""
        parts = [soft.to(self.lm.get_input_embeddings().weight.dtype)]
        if self._before:
            parts.insert(0, self._words(self._before).expand(len(soft), -1, -1))
        if self._after:
            parts.append(self._words(self._after).expand(len(soft), -1, -1))
        return torch.cat(parts, dim=1)

    def read(self, texts: Sequence[str], length: int) -> Tensor:
        """Embeddings [n, length, D] of texts, each cut or filled up with end-of-text to the same length.

        Raises:
            InputError: for a single string.
        """
        check_several(texts)
        ids = [[*self.ids(text)[:length], *[self.eos] * length][:length] for text in texts]
        return self._embed(torch.tensor(ids, device=self.device))

    def _words(self, ids: Sequence[int]) -> Tensor:
        return self._embed(torch.tensor([list(ids)], device=self.device))

    @cached_property
    def keeps_all(self) -> bool:
        """Whether its keys and values are kept for all positions alike: not where layers see a sliding window only."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) is DynamicLayer for layer in DynamicCache(config=self.lm.config).layers)

    @torch.no_grad()
    def _goes_on(self) -> bool:
        """Whether a cache holds all that it has read, by row. Some families have none, or keep states elsewhere."""
        from transformers import DynamicCache

        if "past_key_values" not in inspect.signature(self.lm.forward).parameters:
            return False
        if self.encoder_decoder or self.keeps_all:
            return True
        ids, swapped = torch.arange(32, device=self.device).reshape(2, 16) % self.vocabulary, [1, 0]
        whole = self.lm(input_ids=ids, use_cache=False).logits[swapped, -1].float()
        cache = DynamicCache(config=self.lm.config)
        self.lm(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        cache.reorder_cache(torch.tensor(swapped, device=self.device))
        step = self.lm(input_ids=ids[swapped, -1:], past_key_values=cache, use_cache=True).logits[:, -1].float()
        return bool((step - whole).std() < 0.1 * whole.std())  # bfloat16 is off by 0.02

    def _open(self) -> Opening:
        """Keys and values of the text before the soft tokens; none where they change or cannot be kept apart."""
        from transformers import DynamicCache

        if self.encoder_decoder or not self.keeps_all or any(weight.requires_grad for weight in self.lm.parameters()):
            return []
        if self._opening is None:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                cache = DynamicCache(config=self.lm.config)
                self.lm.base_model(inputs_embeds=self._words(self._before), past_key_values=cache, use_cache=True)
            self._opening = [(layer.keys, layer.values) for layer in cache.layers]
        return self._opening

    def pad(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids [n, longest] padded at the end, and the mask of what is real."""
        longest = max(len(ids) for ids in sequences)
        padded = torch.full((len(sequences), longest), self.eos)
        for row, ids in enumerate(sequences):
            padded[row, : len(ids)] = torch.tensor(ids)
        mask = torch.arange(longest)[None] < torch.tensor([len(ids) for ids in sequences])[:, None]
        return padded.to(self.device), mask.to(self.device)

    # ---- likelihood ------------------------------------------------------------------------------------------

    def nll(self, soft: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
        """Negative log-likelihood of every target token given the soft tokens, in nats, one text after the other.

        Args:
            soft: soft tokens [n, k, D], with gradients.
            targets: n token-id lists, as :meth:`targets` makes them.

        Raises:
            InputError: if the LLM's window does not hold them.
        """
        self.check_room(soft.shape[1], max(map(len, targets)))
        # with kept keys every layer would be another graph to the compiler
        opening, prefix = ([], self.whole_prefix(soft)) if self._compiled else self.prefix(soft)
        return self._nll(prefix, targets, opening)

    def loss(self, soft: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
        """L_GEN: mean of :meth:`nll` over the tokens (paper, stage 1)."""
        return self.nll(soft, targets).mean()

    def _nll(self, prefix: Tensor, targets: Sequence[Sequence[int]], opening: Opening) -> Tensor:
        ids, mask = self.pad(targets)
        if self.encoder_decoder:
            start = torch.full((len(ids), 1), self.start, device=ids.device)
            before = torch.cat([start, ids[:, :-1]], dim=1)
            logits = self.lm(inputs_embeds=prefix, decoder_input_ids=before, use_cache=False).logits
            return nn.functional.cross_entropy(logits[mask].float(), ids[mask], reduction="none")
        inputs: dict[str, Any] = {"inputs_embeds": torch.cat([prefix, self._embed(ids[:, :-1])], dim=1)}
        inputs["use_cache"] = bool(opening)
        if opening:
            inputs["past_key_values"] = self._opened(opening, len(ids))
        first, head = prefix.shape[1] - 1, self.projection()
        if head is None:
            logits = self.lm(**inputs).logits[:, first:][mask].float()
            return nn.functional.cross_entropy(logits, ids[mask], reduction="none")
        # select the target positions first: projecting a strided [:, a:b] view copies the vocabulary matrix per row
        hidden = self.lm.base_model(**inputs).last_hidden_state[:, first:][mask]
        return chunked_nll(hidden, head.weight, head.bias, ids[mask])

    def _opened(self, opening: Opening, rows: int) -> Any:  # noqa: ANN401 (a transformers Cache)
        from transformers import DynamicCache

        cache = DynamicCache(config=self.lm.config)
        for layer, (keys, values) in enumerate(opening):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache

    def projection(self) -> nn.Linear | None:
        """The output projection, if it is all that turns hidden states into logits, and frozen.

        Some families scale or cap their logits after it; they go the long way round, through the model's own forward.
        """
        if self._head is None:
            head, ids = self.lm.get_output_embeddings(), torch.tensor([[self.start, self.eos]], device=self.device)
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                short = head(self.lm.base_model(input_ids=ids, use_cache=False).last_hidden_state)
                alone = torch.allclose(short, self.lm(input_ids=ids, use_cache=False).logits, rtol=1e-2, atol=1e-2)
            self._head = (head if alone and isinstance(head, nn.Linear) and not head.weight.requires_grad else None,)
        return self._head[0]

    @torch.no_grad()
    def log_likelihood(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Mean token log-likelihood [n] of each text under the plain LLM, in nats; no soft tokens.

        The encoder of an encoder-decoder reads an empty text meanwhile, so that its decoder is on its own. Few are
        trained on that: compare such figures within one LLM only. An empty text scores :data:`EMPTY_FLUENCY`.

        Raises:
            InputError: for a single string.
        """
        check_several(texts)
        encoded = [self.ids(text)[:READ_TOKENS] for text in texts]
        scores = np.full(len(texts), EMPTY_FLUENCY)
        order = [i for i in np.argsort([len(ids) for ids in encoded], kind="stable") if encoded[i]]
        with self.plain():
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                opened = self._words(self.empty or [self.start]).expand(len(rows), -1, -1)
                nll = self._nll(opened, [encoded[i] for i in rows], []).cpu().numpy()
                ends = np.cumsum([len(encoded[i]) for i in rows])
                scores[rows] = [-part.mean() for part in np.split(nll, ends[:-1])]
        return scores

    # ---- decoding --------------------------------------------------------------------------------------------

    def decode(
        self, soft: Tensor, sampling: Sampling = GREEDY, uniforms: np.ndarray | None = None, *,
        candidates: int = 1, batch_size: int | None = None, lift: Tensor | None = None,
    ) -> list[str]:  # fmt: skip
        """Texts from soft tokens; see :class:`~inversedmixup.models.sampling.Decoder`."""
        from inversedmixup.models.decoding import decode

        self.check_room(soft.shape[1], sampling.max_tokens)
        # a step of one token is another graph than training's, and would use up the compiler's patience
        with torch.compiler.set_stance("force_eager"):
            return decode(self, soft, sampling, uniforms, candidates, batch_size, lift)

    def end_at_newline(self) -> None:
        """Let a text end with its first line, as an answer to a prompt does; soft tokens ask for the end themselves."""
        self.ends = frozenset({self.eos, *(token for token, word in enumerate(self._spelled()) if "\n" in word)})

    def wordless(self) -> frozenset[int]:
        """Tokens without a letter or a digit (punctuation, spaces, parts of characters), and special ones."""
        bare = {token for token, word in enumerate(self._spelled()) if not any(map(str.isalnum, word))}
        return frozenset({*bare, self.eos, *self.tokenizer.all_special_ids})

    def _spelled(self) -> list[str]:
        """Every token as text."""
        return list(self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))]))

    def text(self, ids: list[int]) -> str:
        """Token ids as text, up to the first token that ends it."""
        ended = list(takewhile(lambda token: token not in self.ends, ids))
        return " ".join(str(self.tokenizer.decode(ended, skip_special_tokens=True)).split())


def _laid_out(head: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    return (given[0].contiguous(),)


def _ends(lm: Any, tokenizer: Any, name: str) -> tuple[int, int]:  # noqa: ANN401
    """The token that ends a text, and the one that a decoder starts from, as ``generate`` chooses them.

    Raises:
        InputError: if no token ends a text.
    """
    said = lm.generation_config
    end = tokenizer.eos_token_id
    if end is None:  # a BERT-type tokenizer has none; the model says which of its tokens serves
        end = said.eos_token_id[0] if isinstance(said.eos_token_id, list) else said.eos_token_id
    if end is None:
        raise InputError(f"LLM {name!r} has no end-of-text token: sentences could not end; choose another LLM")
    start = tokenizer.bos_token_id
    if lm.config.is_encoder_decoder:
        start = said.bos_token_id if said.decoder_start_token_id is None else said.decoder_start_token_id
    return int(end), int(end if start is None else start)
