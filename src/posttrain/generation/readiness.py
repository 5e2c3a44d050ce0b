"""Is a model fit for the in-process engine? Getting it ready, and putting everything back."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from posttrain.errors import UserError
from posttrain.generation.engine import Completion, Prompt


def compare(model: PreTrainedModel, prompt: Prompt, completion: Completion) -> None:
    """Raises `UserError` when the log-probs of `completion` are not those of a plain forward pass of `model`."""
    start = len(prompt.tokens)
    drawn = completion.tokens[:32]
    tokens = torch.from_numpy(np.concatenate([prompt.tokens, drawn]).astype(np.int64)).to(model.device)
    logits = model(input_ids=tokens[None], use_cache=False, logits_to_keep=len(drawn) + 1).logits[0, :-1]
    expected = logits.float().log_softmax(-1).gather(-1, tokens[start:, None])[:, 0].cpu().numpy()
    gap = float(np.abs(expected - completion.logprobs[:32]).mean())
    if not gap <= (1e-2 if model.dtype == torch.float32 else 0.25):
        raise UserError(
            f"the in-process engine does not fit '{model.config.model_type}' models: its log-probs are off by "
            f"{gap:.3f} on average; serve the model and use the server engine"
        )


def plain_model(model: Any) -> PreTrainedModel:
    """The transformers model inside a PEFT or compile wrapper (adapters sit in its layers), or `model` itself."""
    model = getattr(model, "_orig_mod", model)
    if hasattr(model, "get_base_model"):
        if model.active_peft_config.is_prompt_learning:
            raise UserError("the in-process engine cannot run adapters that put virtual tokens before the prompt")
        model = model.get_base_model()
    told_positions = "position_ids" in inspect.signature(type(model).forward).parameters
    if getattr(model, "_is_stateful", False) or model.config.is_encoder_decoder or not told_positions:
        raise UserError(
            f"the in-process engine cannot run '{model.config.model_type}' models: it wants a decoder that keeps "
            "keys and values of past tokens and is told their positions; serve the model and use the server engine"
        )
    return model


def context_length(model: PreTrainedModel) -> int:
    """How many tokens a prompt and its answer may have together."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 2**31


def check_prompt(index: int, prompt: Prompt, context: int) -> None:
    """Raises `UserError` when prompt number `index` is empty or leaves no room for an answer."""
    length = len(prompt.tokens)
    if not length:
        raise UserError(f"prompt {index} has no tokens; a prompt needs at least one")
    if length >= context:
        raise UserError(
            f"prompt {index} has {length} tokens and leaves no room for an answer in the model's context of {context}; "
            "shorten it or leave it out"
        )


@contextmanager
def ready(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode and an attention kernel that takes a mask for each row; everything is put back afterwards."""
    training = [module for module in model.modules() if module.training]
    attention = model.config._attn_implementation
    switch = attention not in ("sdpa", "eager")
    model.eval()
    if switch:
        model.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            yield
    finally:
        if switch:
            model.set_attn_implementation(attention)
        for module in training:
            module.training = True
