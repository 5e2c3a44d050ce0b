"""A model's architecture without its weights: what a plan and an inspection need to know of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.adaptation import adapters
from posttrain.errors import UserError
from posttrain.generation.readiness import plain_model
from posttrain.generation.slots import StepMasks
from posttrain.policy import load_tokenizer, model_path
from posttrain.policy.loading import context_length
from posttrain.recipe import Model
from posttrain.recipe.strict import Piece
from posttrain.stages.context import Context


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


def check_one_vocabulary(context: Context, name: str, reference: str) -> None:
    """Raises `UserError` where `reference` reads other tokens than the model `name` that it is compared with."""
    own, other = (load_tokenizer(context.origin(model).path).get_vocab() for model in (name, reference))
    if own == other:
        return
    differ = sum(own.get(token) != number for token, number in other.items())
    raise UserError(
        f"reference '{reference}' has another vocabulary than '{name}' ({len(other):,} and {len(own):,} tokens, of "
        f"which {differ:,} differ): its scores of the same ids would be of other words; choose one with the same "
        "tokenizer"
    )


def check_engine(model: Any) -> None:
    """Raises `UserError` for an architecture that the in-process engine cannot draw answers with."""
    config = plain_model(model).config.get_text_config(decoder=True)
    StepMasks(config, torch.float32)


def moved_parameters(shape: Shape, adapter: Piece | None) -> int:
    """How many parameters a training moves: all, or those of the adapter, which is put on (and stays on) `shape`.

    Raises `UserError` for options that do not fit the model. An adapter that has to see the weights counts as 0 here.
    """
    if adapter is None:
        return shape.parameters
    kind, options = adapters.options(adapter)
    try:
        model = adapters[kind](shape.model, **options)
    except (NotImplementedError, RuntimeError):  # what torch raises where the values of meta tensors are asked for
        return 0
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _base_of_adapter(path: str) -> str:
    if not (Path(path) / "adapter_config.json").is_file():
        return path
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    if not base:
        raise UserError(f"adapter folder '{path}' does not say which base model it belongs to")
    return str(base)
