"""The model: loading and saving, per-token scores in vocabulary chunks, references."""

from posttrain.policy.loading import ModelOptions, hub_commit, load_model, load_tokenizer, model_path
from posttrain.policy.policy import Policy, Reference

__all__ = ["ModelOptions", "Policy", "Reference", "hub_commit", "load_model", "load_tokenizer", "model_path"]
