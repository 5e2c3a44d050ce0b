"""From a name to a model and its tokenizer, and what must be known about the model to train it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from posttrain.errors import UserError
from posttrain.policy.head import Head

_CLASSIFIER, _SCORE = "ForSequenceClassification", "score"
"""How transformers calls its reward models, and their head."""

Dtype = Literal["float32", "bfloat16", "mixed"]


@dataclass(frozen=True)
class ModelOptions:
    """How a model is held. `dtype`: of weights and computation; "mixed" keeps float32 weights and computes in bfloat16
    under autocast. `attention`: transformers' `attn_implementation`. `weights`: "random" takes only the architecture
    and the tokenizer of the folder (pretraining from scratch, with `seed`). `reward`: a reward model is made of a
    language model: one number in the place of its next token. What is a reward model already stays one."""

    dtype: Dtype = "float32"
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    compile: bool = False
    weights: Literal["pretrained", "random"] = "pretrained"
    seed: int = 0
    reward: bool = False


def model_path(name: str, *, with_weights: bool = True) -> str:
    """The folder of a shipped model ("tiny"), the folder that `name` is, or `name` itself as a hub name.

    Raises `UserError` for a folder that is not a model (or, `with_weights`, has none), and for a name that is neither a
    folder nor `owner/name`.
    """
    shipped = Path(str(files("posttrain"))) / "assets" / name
    folder = shipped if "/" not in name and (shipped / "config.json").is_file() else Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder, with_weights)
        return str(folder)
    parts = name.split("/")
    is_local = name.startswith((".", "~")) or Path(parts[0]).is_dir()  # "runs/typo" is no name to ask the hub for
    if len(parts) == 2 and all(parts) and not is_local:
        return name
    raise UserError(f"model '{name}': no such folder; give a model folder, a hub name 'owner/name', or 'tiny'")


def hub_commit(name: str) -> str | None:
    """The commit of a hub model's snapshot that is on this machine; None where none was fetched."""
    try:
        return Path(snapshot_download(name, local_files_only=True)).name
    except (OSError, ValueError):
        return None


def _check_folder(folder: Path, with_weights: bool) -> None:
    if not _is_adapter(folder) and not (folder / "config.json").is_file():
        raise UserError(f"model folder '{folder}' has no config.json; it needs what save_pretrained writes")
    patterns = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "adapter_model.bin")
    if with_weights and not any(any(folder.glob(pattern)) for pattern in patterns):
        raise UserError(f"model folder '{folder}' has no weights (*.safetensors or pytorch_model*.bin)")


def _is_adapter(path: str | Path) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model; a missing pad token becomes the unknown token, else the end-of-turn token."""
    path = model_path(name, with_weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"model '{name}': its tokenizer cannot be loaded: {_shortened(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_model(name: str, options: ModelOptions, device: torch.device | None = None) -> nn.Module:
    """The causal language model (or reward model) of a folder or hub name, in eval mode. A PEFT adapter folder is
    loaded on its base, to be trained on.

    Raises `UserError` when it cannot be loaded, or when its files lack some of its weights.
    """
    is_random = options.weights == "random"
    path = model_path(name, with_weights=not is_random)
    if _is_adapter(path) and not is_random:
        return _load_adapter(name, path, options, device)
    if Path(path).is_dir():
        path = str(Path(path).resolve())  # an adapter's folder will name it, and may be opened from elsewhere
    load = _random_model if is_random else _pretrained_model
    try:
        model = _reward_model(path, options) if options.reward or is_reward_folder(path) else load(path, options)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model '{name}' cannot be loaded: {_shortened(error)}") from error
    if device is not None:
        model.to(device)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.eval()  # type: ignore[no-any-return]


def _settings(options: ModelOptions) -> dict[str, Any]:
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    return {"dtype": dtype, "attn_implementation": options.attention}


def _random_model(path: str, options: ModelOptions) -> Any:
    config = AutoConfig.from_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        return AutoModelForCausalLM.from_config(config, **_settings(options))


def _pretrained_model(path: str, options: ModelOptions) -> Any:
    model, found = AutoModelForCausalLM.from_pretrained(
        path, **_settings(options), output_loading_info=True, ignore_mismatched_sizes=True
    )
    bad = sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    if bad:  # transformers would make them up at random, with no more than a warning
        raise ValueError(f"{len(bad)} weights are missing or not of the size that config.json says, such as '{bad[0]}'")
    return model


def is_reward_folder(path: str) -> bool:
    """Does its config.json say that it is a reward model: a sequence classifier with one number?"""
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError):
        return False
    kinds = getattr(config, "architectures", None) or [""]
    return str(kinds[0]).endswith(_CLASSIFIER) and config.num_labels == 1


def is_reward_model(model: Any) -> bool:
    """Has it a reward head in the place of a language model's?"""
    return type(bare_model(model)).__name__.endswith(_CLASSIFIER)


def _reward_model(path: str, options: ModelOptions) -> Any:
    """transformers' own classifier of the architecture; a head that is new is 0, so that nothing is drawn at random."""
    if options.weights == "random":
        raise UserError("a reward model is made of a trained model: weights: random gives none")
    model, found = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=1, **_settings(options), output_loading_info=True, ignore_mismatched_sizes=True
    )
    bad = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])} - {f"{_SCORE}.weight"})
    if bad or not isinstance(getattr(model, _SCORE, None), nn.Linear):
        raise ValueError(f"{type(model).__name__} has no head '{_SCORE}', or its folder lacks weights {bad[:3]}")
    if found["missing_keys"]:
        nn.init.zeros_(model.score.weight)
    return model


def _load_adapter(name: str, path: str, options: ModelOptions, device: torch.device | None) -> nn.Module:
    from peft import PeftConfig, PeftModel  # takes seconds to import

    try:
        config = PeftConfig.from_pretrained(path)
        options = replace(options, reward=options.reward or config.task_type == "SEQ_CLS")
        base = load_model(str(config.base_model_name_or_path), options, device)
        model: nn.Module = PeftModel.from_pretrained(base, path, is_trainable=True)
    except (OSError, ValueError, RuntimeError, SafetensorError, UserError) as error:
        raise UserError(f"adapter '{name}' cannot be loaded: {_shortened(error)}") from error
    return model.eval()


def _shortened(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


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
    tokens = probe_tokens(model)
    with evaluating(model):
        expected = model(input_ids=tokens, use_cache=False).logits.float()
        found = head.logits(inner.base_model(input_ids=tokens, use_cache=False).last_hidden_state)
    is_exact = next(model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(tokens.device.type)
    tolerance = 1e-3 if is_exact else 0.1
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=tolerance, rtol=tolerance):
        raise UserError(
            f"{type(inner).__name__} transforms its logits in a way that posttrain does not know; "
            "its per-token scores would be wrong, so it is refused"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout inside; after it every module is in the mode it was in (under fresh adapters they differ)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def probe_tokens(model: Any) -> Tensor:
    """`[1, 8]` tokens to look at what a model gives."""
    vocabulary = int(bare_model(model).config.get_text_config().vocab_size)
    return torch.arange(8, device=next(model.parameters()).device)[None] % vocabulary
