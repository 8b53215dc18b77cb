"""LoRA weights on the LLM or the encoder, through peft; written as fp16 safetensors + JSON."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inversedmixup.errors import InputError, first_line, out_of_memory
from inversedmixup.models.randomness import own_randomness
from inversedmixup.models.sources import without_commit


@contextlib.contextmanager
def _without_peft_warnings() -> Iterator[None]:
    """Keep from users what is of no use to them.

    On every load peft asks transformers for something under an old name, and of GPT-2's layers it says that their
    weights lie the other way round, and what it does about it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", ".*fan_in_fan_out", UserWarning)
        yield


def add_lora(model: nn.Module, rank: int, *, seed: int, layers: list[int] | None = None) -> Any:  # noqa: ANN401
    """Put trainable LoRA weights on ``model`` in place; returns the peft model around it.

    They go where peft puts them for the architecture (query and value projections, Hu et al. 2021), or on every
    linear layer of an architecture that peft does not know. On the default LLM the former costs 4 % of a training
    step, the latter 29 % (docs/log.md).

    Args:
        model: what gets them.
        rank: their rank.
        seed: decides how they begin.
        layers: numbers of the layers that get them; all if not given.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, layers_to_transform=layers)
    with own_randomness(seed), _without_peft_warnings():
        try:
            lora = get_peft_model(model, config)
        except ValueError:
            config.target_modules = "all-linear"
            # the fused kernels of state spaces take this weight itself, past any LoRA, so peft refuses it
            spaces = [name for name, part in model.named_modules() if hasattr(part, "A_log") and hasattr(part, "D")]
            config.exclude_modules = [f"{name}.out_proj" for name in spaces] or None
            lora = get_peft_model(model, config)
    return lora.eval()  # eval: the base model's dropout would draw from the global random stream


def save_lora(lora: Any, folder: Path, base: str, adapter: str = "default") -> None:  # noqa: ANN401
    """Write a peft model's LoRA weights; ``base`` names the model that they belong to."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    # "auto" would ask the hub about the LLM's vocabulary, which no LoRA weights touch
    weights = get_peft_model_state_dict(lora, adapter_name=adapter, save_embedding_layers=False)
    halves = {name: tensor.detach().cpu().to(torch.float16).contiguous() for name, tensor in weights.items()}
    (folder / "adapter_model.safetensors").write_bytes(save(halves))
    config = lora.peft_config[adapter]
    config.inference_mode, config.base_model_name_or_path = True, without_commit(base)
    config.save_pretrained(str(folder))


def copy_lora(lora: Any, folder: Path) -> None:  # noqa: ANN401
    """Set the trainable LoRA weights of a peft model to those that :func:`save_lora` wrote."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    _check_there(folder)
    stored = load_file(folder / "adapter_model.safetensors")
    set_peft_model_state_dict(lora, {name: weight.float() for name, weight in stored.items()})


def load_lora(model: nn.Module, folder: Path) -> Any:  # noqa: ANN401
    """Put the LoRA weights that :func:`save_lora` wrote on ``model``, in place and frozen; returns the peft model.

    Raises:
        InputError: if they are not there, or are those of a model with other layers.
    """
    from peft import PeftModel

    _check_there(folder)
    with _fitting(model, folder) as device:
        return PeftModel.from_pretrained(model, str(folder), torch_device=device).eval()


def load_more_lora(lora: Any, folder: Path, adapter: str) -> None:  # noqa: ANN401
    """Put a second set of LoRA weights that :func:`save_lora` wrote on a peft model, frozen and not in use.

    Raises:
        InputError: as :func:`load_lora` does.
    """
    _check_there(folder)
    with _fitting(lora.get_base_model(), folder) as device:
        lora.load_adapter(str(folder), adapter_name=adapter, torch_device=device)


@contextlib.contextmanager
def _fitting(model: nn.Module, folder: Path) -> Iterator[str]:
    """Where weights are to be read to: peft would take a GPU if there is one, wherever the model is."""
    try:
        with own_randomness(), _without_peft_warnings():  # peft draws what it then replaces
            yield str(next(model.parameters()).device)
    except (RuntimeError, ValueError) as error:  # layers of another size; none of these names
        if out_of_memory(error):
            raise
        raise InputError(
            f"{folder}: its LoRA weights do not fit the model at hand, {type(model).__name__} "
            f"({first_line(error)}); use the model that they were trained with"
        ) from error


def _check_there(folder: Path) -> None:
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder}: no LoRA weights there; the pair is incomplete, copy it again")
