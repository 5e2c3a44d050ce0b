"""Is what was saved what was trained? The folder is loaded again and compared on a few rows."""

from pathlib import Path

import torch
from torch import Tensor

from posttrain.data import Sequence
from posttrain.data.batch import collate
from posttrain.data.scores import REWARDS
from posttrain.data.whole_answer import whole_answer
from posttrain.errors import UserError
from posttrain.generation import Prompt, Sampling
from posttrain.generation.local import LocalEngine
from posttrain.policy import ModelOptions, Policy
from posttrain.policy.loading import Dtype, bare_model
from posttrain.stages.shape import check_engine
from posttrain.training.ranks import Ranks
from posttrain.training.sharding import is_sharded

ROWS = 4
LARGEST = 2 * 10**9
"""Parameters; a larger model is not loaded a second time beside itself."""


class SavedModelDiffersError(Exception):
    """The saved folder does not answer like the model that was trained."""


@torch.no_grad()
def check_saved(policy: Policy, folder: Path, rows: list[Sequence], ranks: Ranks) -> dict[str, float]:
    """Mean absolute difference of log-probs (rewards) on some rows (`ROWS` are enough), trained and reloaded model.

    Every rank must call this (sharded weights need all of them); the first one loads and compares. Raises
    `SavedModelDiffersError` when the difference is above what rounding explains, or when greedy answers differ although
    the log-probs are the same to 1e-5. Answers of sharded models, and of those that the engine does not know, are not
    compared; nothing is where the second model does not fit into memory.
    """
    if sum(p.numel() for p in policy.model.parameters()) > LARGEST:
        return {}
    policy.model.eval()
    trained = _said(policy, rows)
    try:
        return ranks.on_main(lambda: _compare(policy, folder, rows, trained))
    except torch.OutOfMemoryError:  # the training is done and saved: no reason to fail
        return {}


def _compare(policy: Policy, folder: Path, rows: list[Sequence], trained: Tensor) -> dict[str, float]:
    dtype = next(policy.model.parameters()).dtype
    half: Dtype = "mixed" if policy.autocast else "bfloat16"
    exact = dtype == torch.float32 and not policy.autocast
    attention = bare_model(policy.model).config._attn_implementation  # the same kernel rounds alike
    options = ModelOptions(dtype="float32" if exact else half, attention=attention)
    saved = Policy.load(str(folder), options, policy.device)
    again = _said(saved, rows)
    difference = float((trained - again).abs().mean())
    limit = 1e-3 if exact else 0.1
    if not difference <= limit:
        raise SavedModelDiffersError(
            f"the model saved in '{folder}' gives other log-probs than the trained one (difference {difference:.3g}, "
            f"allowed {limit:g}): do not use that folder; the last checkpoint holds the trained weights"
        )
    if is_sharded(policy) or policy.is_reward or not _can_answer(policy):
        return {"reload_difference": difference}
    prompts = [Prompt(row.tokens[: int(row.target.argmax())]) for row in rows]
    sampling = Sampling(max_new_tokens=16, temperature=0.0)
    answers, repeated = (LocalEngine(p.model, p.tokenizer).generate(prompts, 1, sampling) for p in (policy, saved))
    same = sum(a.text == b.text for a, b in zip(answers, repeated, strict=True))
    if same < len(rows) and difference < 1e-5:
        raise SavedModelDiffersError(f"the model saved in '{folder}' gives other greedy answers than the trained one")
    return {"reload_difference": difference, "reload_same_answers": same / len(rows)}


def _said(policy: Policy, rows: list[Sequence]) -> Tensor:
    """Log-probs of the rows' targets, or the rewards of the rows."""
    rows = [whole_answer(row) for row in rows] if policy.is_reward else rows
    scores = policy.scores(
        collate(rows, layout=policy.layout).to(policy.device), (REWARDS,) if policy.is_reward else ()
    )
    return scores["rewards"] if policy.is_reward else scores.logprobs


def _can_answer(policy: Policy) -> bool:
    try:
        check_engine(policy.model)
    except UserError:
        return False
    return True
