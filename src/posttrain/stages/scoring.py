"""Mean scores of sequences under a policy: how likely demonstrations are, how far answers are from a reference."""

from collections.abc import Sequence as List

import numpy as np
import numpy.typing as npt
import torch

from posttrain.data import Origin, Sequence
from posttrain.data.batch import collate, micro_batches
from posttrain.data.scores import Need
from posttrain.policy import Policy


@torch.no_grad()
def mean_scores(
    policy: Policy, sequences: List[Sequence], needs: tuple[Need, ...], token_budget: int
) -> dict[str, float]:
    """`logprobs` and every need by name: means over the target tokens of some sequences (nats a token)."""
    totals, count = dict.fromkeys(("logprobs", *(need.name for need in needs)), 0.0), 0
    for part in micro_batches(sequences, token_budget, layout=policy.layout):
        batch = collate([sequences[row] for row in part], layout=policy.layout).to(policy.device)
        scores = policy.scores(batch, needs)
        for name in totals:
            totals[name] += float((scores.logprobs if name == "logprobs" else scores[name]).double().sum())
        count += len(scores.logprobs)
    return {name: total / max(1, count) for name, total in totals.items()}


def behind_prompt(prompt: npt.NDArray[np.int32], answer: List[int], sample_id: str) -> Sequence:
    """A drawn answer as a sequence: its tokens are the targets."""
    tokens = np.concatenate([prompt, np.asarray(answer, np.int32)])
    target = np.arange(len(tokens)) >= len(prompt)
    origin = np.where(target, Origin.ROLLOUT, Origin.PROMPT).astype(np.uint8)
    return Sequence(tokens, target, origin, sample_id)
