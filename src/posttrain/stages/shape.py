"""A model's architecture without its weights: what a plan and an inspection need to know of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.errors import UserError
from posttrain.policy import model_path
from posttrain.policy.loading import context_length
from posttrain.recipe import Model


@dataclass(frozen=True)
class Shape:
    """An architecture on the meta device. `parameters`: how many; `context`: how many tokens it can read."""

    model: Any
    parameters: int
    context: int

    @classmethod
    def of(cls, model: Model) -> "Shape":
        """The architecture that `model` names; of an adapter folder, its base's. Raises `UserError` when unknown."""
        path = _base_of_adapter(model_path(model.path, with_weights=False))
        try:
            config = AutoConfig.from_pretrained(path)
            with torch.device("meta"):
                shell = AutoModelForCausalLM.from_config(config, attn_implementation=model.attention)
        except (OSError, ValueError, KeyError, ImportError) as error:
            said = " ".join(str(error).split())
            raise UserError(f"model '{model.path}' cannot be built from its config.json: {said[:250]}") from error
        return cls(shell, sum(p.numel() for p in shell.parameters()), context_length(shell))


def _base_of_adapter(path: str) -> str:
    if not (Path(path) / "adapter_config.json").is_file():
        return path
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    if not base:
        raise UserError(f"adapter folder '{path}' does not say which base model it belongs to")
    return str(base)
