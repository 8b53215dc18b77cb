"""M_ψ: the LLM. Loss on a text given its soft tokens, decoding from soft tokens, log-likelihood of a text.

Everything goes through transformers' public API, so any decoder-only model that transformers loads will do.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.errors import InputError
from inversedmixup.loading import first_line, quiet_loading
from inversedmixup.models.lora import add_lora, load_lora, save_lora
from inversedmixup.models.sources import resolve

SOFT = "{soft}"
# A row's hidden states must not depend on how many rows share its batch, else a near-tie could turn into another
# token. BLAS kernels are row-invariant for row counts that fill their register tiles (measured for MKL/AVX2:
# multiples of 4 are, 1, 2, 3, 5 and 7 are not), so decoding always runs on a multiple of this many rows.
ROW_TILE = 16
EMPTY_FLUENCY = -99.0  # finite, so that it is valid JSON


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_p: smallest set of tokens with this much probability is kept.
        top_k: no more than this many tokens are kept; drawing needs no sort of the whole vocabulary.
        max_tokens: longest text, in tokens.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 64
    max_tokens: int = 48


GREEDY = Sampling(temperature=0.0)


class SoftTokenLLM:
    """A decoder-only LLM that reads soft tokens.

    Attributes:
        model: the ``PreTrainedModel``, or a peft model around it when LoRA is used.
        dim: D, size of the input embeddings.
        norm: mean length of the token embeddings; adaptors match it.
        prompt: text around the soft tokens, with ``{soft}`` where they go; ``{soft}`` alone is no prompt.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, prompt: str = SOFT) -> None:  # noqa: ANN401
        self.model, self.tokenizer, self.name = model, tokenizer, name
        table = self.causal.get_input_embeddings().weight
        self.dim = int(table.shape[1])
        self.norm = float(table.detach().float().norm(dim=1).mean())
        if tokenizer.eos_token_id is None:
            raise InputError(f"LLM {name!r} has no end-of-text token: sentences could not end; choose another LLM")
        self.eos = int(tokenizer.eos_token_id)
        self.start = int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.eos)
        self.set_prompt(prompt)

    @classmethod
    def from_pretrained(
        cls, name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, prompt: str = SOFT
    ) -> SoftTokenLLM:
        """Load a decoder-only LLM (safetensors only) with frozen weights.

        Raises:
            InputError: if it cannot be loaded or is not decoder-only.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        try:
            folder = resolve(name)
            with quiet_loading():
                if AutoConfig.from_pretrained(folder).is_encoder_decoder:
                    raise InputError(f"LLM {name!r} is an encoder-decoder; choose a decoder-only (causal) model")
                tokenizer = AutoTokenizer.from_pretrained(folder)
                model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        except InputError:
            raise
        except Exception as error:  # the loaders raise a dozen types for "not there" and "not a model"
            raise InputError(f"LLM {name!r} cannot be loaded: {first_line(error)}") from error
        model.requires_grad_(False)
        return cls(model.to(device).eval(), tokenizer, name, prompt)

    @property
    def causal(self) -> Any:  # noqa: ANN401 (a PreTrainedModel)
        """The LLM itself; peft hides it one level down."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

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
        self._before, self._after = (self._ids(part) for part in (before, after))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def targets(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Token ids of each text, ended by end-of-text; a longer text is cut at ``max_tokens`` and left open."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[*ids, self.eos][:max_tokens] for ids in encoded]

    # ---- LoRA ------------------------------------------------------------------------------------------------

    def add_lora(self, rank: int, *, seed: int) -> None:
        """Put trainable LoRA weights of this rank on the LLM."""
        self.model = add_lora(self.model, rank, seed=seed)

    def load_lora(self, folder: Path) -> None:
        """Read LoRA weights that :meth:`save_lora` wrote, and freeze them."""
        self.model = load_lora(self.model, folder)

    def save_lora(self, folder: Path) -> None:
        """Write the LoRA weights."""
        save_lora(self.model, folder, self.name)

    @property
    def has_lora(self) -> bool:
        """Whether LoRA weights sit on the LLM."""
        return hasattr(self.model, "peft_config")

    @contextlib.contextmanager
    def plain(self) -> Iterator[None]:
        """The LLM as it came, without LoRA: for fluency and judging."""
        with self.model.disable_adapter() if self.has_lora else contextlib.nullcontext():
            yield

    def compile_layers(self) -> None:
        """Compile the repeated decoder layer rather than the whole model (the layers share their code)."""
        stacks = [m for m in self.causal.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
        for layer in max(stacks, key=len):
            layer.compile()

    # ---- loss ------------------------------------------------------------------------------------------------

    def _embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.causal.get_input_embeddings()(ids)
        return out

    def _prefix(self, soft: Tensor) -> Tensor:
        """Embeddings [n, p, D] of the prompt around soft tokens [n, k, D]."""
        parts = [soft.to(next(self.model.parameters()).dtype)]
        if self._before:
            parts.insert(0, self._embed(torch.tensor(self._before, device=soft.device)).expand(len(soft), -1, -1))
        if self._after:
            parts.append(self._embed(torch.tensor(self._after, device=soft.device)).expand(len(soft), -1, -1))
        return torch.cat(parts, dim=1)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits in fp32 of hidden states [m, D]; pass only the positions that are needed."""
        out: Tensor = self.causal.get_output_embeddings()(hidden.contiguous()).float()
        return out

    def _pad(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids [n, longest] padded at the end, and the mask of what is real."""
        longest = max(len(ids) for ids in sequences)
        padded = torch.full((len(sequences), longest), self.eos)
        for row, ids in enumerate(sequences):
            padded[row, : len(ids)] = torch.tensor(ids)
        mask = torch.arange(longest)[None] < torch.tensor([len(ids) for ids in sequences])[:, None]
        return padded.to(self.device), mask.to(self.device)

    def loss(self, soft: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
        """L_GEN: mean negative log-likelihood per target token, in nats (paper, stage 1).

        Args:
            soft: soft tokens [n, k, D], with gradients.
            targets: n token-id lists, as :meth:`targets` makes them.
        """
        ids, mask = self._pad(targets)
        prefix = self._prefix(soft)
        inputs = torch.cat([prefix, self._embed(ids[:, :-1])], dim=1)
        hidden = self.causal.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        # select the target positions first: projecting a strided [:, a:b] view copies the vocabulary matrix per row
        predictive = hidden[:, prefix.shape[1] - 1 :][mask]
        return nn.functional.cross_entropy(self._logits(predictive), ids[mask])

    # ---- decoding --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, soft: Tensor, sampling: Sampling = GREEDY, uniforms: np.ndarray | None = None) -> list[str]:
        """Texts written from soft tokens [n, k, D], one per row.

        Args:
            soft: soft tokens.
            sampling: how tokens are drawn.
            uniforms: [n, max_tokens] numbers in [0, 1): each row's own random stream, so that its text does not
                depend on which rows share its batch. Not needed for greedy decoding.
        """
        if sampling.temperature > 0 and uniforms is None:
            raise ValueError("sampling needs one row of uniforms per text")
        written = np.full((len(soft), sampling.max_tokens), self.eos)
        live = torch.arange(len(soft))  # which text each leading row of the cache is writing
        going = torch.ones(len(soft), dtype=torch.bool)
        out = self.causal(inputs_embeds=self._prefix(_fill_tile(soft)), use_cache=True, logits_to_keep=1)
        for step in range(sampling.max_tokens):
            scores = out.logits[: len(live), -1].float().cpu()
            drawn = pick(scores, sampling, None if uniforms is None else uniforms[live, step])
            written[live[going], step] = drawn[going]
            going &= drawn != self.eos
            if not going.any():
                break
            cache, tile = out.past_key_values, _fill_tile(going.nonzero()[:, 0])
            if len(tile) < len(out.logits):  # finished rows leave in whole tiles, so no step is spent on them
                cache.batch_select_indices(tile.to(self.device))
                live, drawn, going = live[going], drawn[going], going[going]
            tokens = torch.full((min(len(tile), len(out.logits)), 1), self.eos)
            tokens[: len(drawn), 0] = drawn
            out = self.causal(input_ids=tokens.to(self.device), past_key_values=cache, use_cache=True)
        return [self._text(ids) for ids in written.tolist()]

    def _text(self, ids: list[int]) -> str:
        ended = ids[: ids.index(self.eos)] if self.eos in ids else ids
        return " ".join(str(self.tokenizer.decode(ended, skip_special_tokens=True)).split())

    @torch.no_grad()
    def log_likelihood(self, texts: Sequence[str], *, batch_size: int = 32, max_tokens: int = 128) -> np.ndarray:
        """Mean token log-likelihood [n] of each text under the plain LLM, in nats; no soft tokens.

        An empty text scores :data:`EMPTY_FLUENCY`.
        """
        encoded = [self._ids(text)[:max_tokens] for text in texts]
        scores = np.full(len(texts), EMPTY_FLUENCY)
        order = [i for i in np.argsort([len(ids) for ids in encoded], kind="stable") if encoded[i]]
        with self.plain():
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                ids, mask = self._pad([[self.start, *encoded[i]] for i in rows])
                hidden = self.causal.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
                real = mask[:, 1:]
                taken = nn.functional.cross_entropy(self._logits(hidden[real]), ids[:, 1:][real], reduction="none")
                sums = torch.zeros(real.shape, device=taken.device).masked_scatter(real, -taken).sum(1)
                scores[rows] = (sums / real.sum(1)).cpu().numpy()
        return scores


def _fill_tile(rows: Tensor) -> Tensor:
    """Rows repeated at the end up to the next multiple of :data:`ROW_TILE`."""
    missing = -len(rows) % ROW_TILE
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


def pick(logits: Tensor, sampling: Sampling, uniforms: np.ndarray | None) -> Tensor:
    """The next token [n] from logits [n, V]: greedy, or by inverting the nucleus' distribution at ``uniforms`` [n]."""
    if sampling.temperature <= 0 or uniforms is None:
        return logits.argmax(-1)
    top, tokens = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1)
    probs = (top.double() / sampling.temperature).softmax(-1)
    ahead = probs.cumsum(-1) - probs
    probs = probs.masked_fill(ahead >= sampling.top_p, 0.0)
    edges = probs.cumsum(-1)
    at = torch.from_numpy(np.ascontiguousarray(uniforms, dtype=np.float64))[:, None] * edges[:, -1:]
    chosen = (edges <= at).sum(-1).clamp(max=tokens.shape[-1] - 1)
    # a uniform that lands exactly on an edge of a removed token must not pick it
    last_kept = (probs > 0).sum(-1) - 1
    return tokens.gather(1, torch.minimum(chosen, last_kept)[:, None])[:, 0]
