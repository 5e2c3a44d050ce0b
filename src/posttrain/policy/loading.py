"""From a name to a model and its tokenizer, and what must be known about the model to train it."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import UserError
from posttrain.policy.head import Head

Dtype = Literal["float32", "bfloat16", "mixed"]


@dataclass(frozen=True)
class ModelOptions:
    """How a model is held. `dtype`: of weights and computation; "mixed" keeps float32 weights and computes in bfloat16
    under autocast. `attention`: transformers' `attn_implementation`. `weights`: "random" takes only the architecture
    and the tokenizer of the folder (pretraining from scratch, with `seed`)."""

    dtype: Dtype = "float32"
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    compile: bool = False
    weights: Literal["pretrained", "random"] = "pretrained"
    seed: int = 0


def model_path(name: str) -> str:
    """The folder of a shipped model ("tiny"), the folder that `name` is, or `name` itself as a hub name.

    Raises `UserError` for a folder that is not a model, and for a name that is neither a folder nor `owner/name`.
    """
    shipped = Path(str(files("posttrain"))) / "assets" / name
    folder = shipped if "/" not in name and (shipped / "config.json").is_file() else Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    parts = name.split("/")
    if len(parts) == 2 and all(parts) and not name.startswith((".", "~")):
        return name
    raise UserError(f"model '{name}': no such folder; give a model folder, a hub name 'owner/name', or 'tiny'")


def _check_folder(folder: Path) -> None:
    is_adapter = (folder / "adapter_config.json").is_file()
    if not is_adapter and not (folder / "config.json").is_file():
        raise UserError(f"model folder '{folder}' has no config.json; it needs what save_pretrained writes")
    patterns = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "adapter_model.bin")
    if not any(any(folder.glob(pattern)) for pattern in patterns):
        raise UserError(f"model folder '{folder}' has no weights (*.safetensors or pytorch_model*.bin)")


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model; a missing pad token becomes a token that is not an end-of-turn token where possible."""
    path = model_path(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"model '{name}': its tokenizer cannot be loaded: {_first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(name: str, options: ModelOptions, device: torch.device | None = None) -> nn.Module:
    """The causal language model of a folder or hub name, in eval mode. A PEFT adapter folder is loaded on its base."""
    path = model_path(name)
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    try:
        if options.weights == "random":
            config = AutoConfig.from_pretrained(path)
            with torch.random.fork_rng():
                torch.manual_seed(options.seed)
                model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=options.attention)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=options.attention)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model '{name}' cannot be loaded: {_first_line(error)}") from error
    if device is not None:
        model.to(device)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.eval()
    return model  # type: ignore[no-any-return]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def bare_model(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, adapters still in place; any other model is returned as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def context_length(model: Any) -> int:
    """How many tokens the model can read; 2**30 when its configuration does not say."""
    config = bare_model(model).config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2**30)


def find_head(model: Any) -> Head:
    """The output projection and what the architecture does to its logits.

    Raises `UserError` when hidden states and this head do not give the model's own logits: such an architecture must
    not be trained by guessing.
    """
    inner = bare_model(model)
    projection = inner.get_output_embeddings()
    if projection is None or inner.base_model is inner:
        raise UserError(f"{type(inner).__name__} has no language-model head; give a causal language model")
    config = inner.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    head = Head(projection, scale, getattr(config, "final_logit_softcapping", None))
    _check_head(model, inner, head)
    return head


@torch.no_grad()
def _check_head(model: Any, inner: Any, head: Head) -> None:
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    tokens = torch.arange(8, device=device)[None] % inner.config.get_text_config().vocab_size
    expected = model(input_ids=tokens, use_cache=False).logits.float()
    found = head.logits(inner.base_model(input_ids=tokens, use_cache=False).last_hidden_state)
    model.train(was_training)
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=tolerance, rtol=tolerance):
        raise UserError(
            f"{type(inner).__name__} transforms its logits in a way that posttrain does not know; "
            "its per-token scores would be wrong, so it is refused"
        )
