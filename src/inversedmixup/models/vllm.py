"""vLLM as the engine that writes the texts, through its prompt embeddings (`pip install vllm`).

vLLM holds the LLM with its LoRA weights merged in. Its random streams are its own: a text depends on its row's seed
alone, but is not the text that the transformers engine would draw.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from inversedmixup.errors import InputError
from inversedmixup.models.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from inversedmixup.models.llm import SoftTokenLLM


class VllmDecoder:
    """A :class:`~inversedmixup.models.sampling.Decoder` around a vLLM engine.

    Args:
        llm: the LLM whose weights the engine holds; it embeds the prompt and turns token ids into text.
        engine: a ``vllm.LLM`` made with ``enable_prompt_embeds=True``.
        params: ``vllm.SamplingParams``.
    """

    def __init__(self, llm: SoftTokenLLM, engine: Any, params: Any) -> None:  # noqa: ANN401 (vllm is optional)
        self.llm, self.engine, self.params = llm, engine, params

    @classmethod
    def from_llm(cls, llm: SoftTokenLLM, **engine_options: Any) -> VllmDecoder:
        """Start an engine with the weights of ``llm``; ``engine_options`` go to ``vllm.LLM``.

        Raises:
            InputError: if vLLM is not installed, or cannot serve this LLM.
        """
        try:
            from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
        except ImportError:
            raise InputError("engine vllm: it is not installed; pip install vllm") from None
        if llm.encoder_decoder:
            raise InputError(f"engine vllm: LLM {llm.name!r} is an encoder-decoder; use --engine transformers")
        with tempfile.TemporaryDirectory(prefix="inversedmixup-vllm-") as folder:
            llm.save_merged(folder)
            engine = LLM(model=folder, enable_prompt_embeds=True, **engine_options)
        return cls(llm, engine, SamplingParams)

    def decode(
        self, soft: Tensor, sampling: Sampling = GREEDY, uniforms: np.ndarray | None = None, *,
        candidates: int = 1, batch_size: int | None = None, lift: Tensor | None = None,
    ) -> list[str]:  # fmt: skip
        """Texts from soft tokens; vLLM batches them as it sees fit, whatever ``batch_size`` says.

        Raises:
            InputError: if a word head is to have its say, which vLLM has no place for.
        """
        if lift is not None:
            raise InputError("engine vllm: it cannot weigh words; give --word-weight 0, or use --engine transformers")
        prompts, params = self.requests(soft, sampling, uniforms, candidates)
        outputs = self.engine.generate(prompts, params, use_tqdm=False)
        return [self.llm.text(list(output.outputs[0].token_ids)) for output in outputs]

    def requests(
        self, soft: Tensor, sampling: Sampling, uniforms: np.ndarray | None, candidates: int
    ) -> tuple[list[dict[str, Tensor]], list[Any]]:
        """One request a text: the embeddings [p, D] of the whole prompt, and its sampling parameters."""
        if sampling.temperature > 0 and uniforms is None:
            raise ValueError("sampling needs one row of uniforms per text")
        prompts = [{"prompt_embeds": row} for row in self.llm.whole_prefix(soft) for _ in range(candidates)]
        return prompts, list(self._params(sampling, uniforms, len(prompts)))

    def _params(self, sampling: Sampling, uniforms: np.ndarray | None, rows: int) -> Iterator[Any]:
        common = {
            "max_tokens": sampling.max_tokens, "stop_token_ids": [self.llm.eos], "detokenize": False,
        }  # fmt: skip
        for row in range(rows):
            if sampling.temperature <= 0 or uniforms is None:
                yield self.params(temperature=0.0, **common)
            else:
                seed = int(uniforms[row, 0] * 2**31)  # the row's own stream seeds the engine's
                yield self.params(
                    temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, seed=seed, **common
                )
