"""How likely demonstrations are under a policy."""

import torch

from posttrain.data import Sequence
from posttrain.data.batch import collate, micro_batches
from posttrain.policy import Policy


@torch.no_grad()
def mean_logprob(policy: Policy, sequences: list[Sequence], token_budget: int) -> float:
    """Mean log-probability of the target tokens of some sequences (nats per token)."""
    total, count = 0.0, 0
    for part in micro_batches(sequences, token_budget, layout=policy.layout):
        batch = collate([sequences[row] for row in part], layout=policy.layout).to(policy.device)
        logprobs = policy.scores(batch).logprobs
        total += float(logprobs.double().sum())
        count += len(logprobs)
    return total / max(1, count)
