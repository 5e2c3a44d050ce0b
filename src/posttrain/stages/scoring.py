"""Mean scores of sequences under a policy: how likely demonstrations are, how far answers are from a reference."""

from collections.abc import Sequence as List

import numpy as np
import numpy.typing as npt
import torch

from posttrain.data import Origin, Sequence
from posttrain.data.scores import Need
from posttrain.policy import Policy
from posttrain.policy.scoring import scored


def mean_scores(
    policy: Policy, sequences: List[Sequence], needs: tuple[Need, ...], token_budget: int
) -> dict[str, float]:
    """`logprobs` and every need by name: means over the target tokens of some sequences (nats a token)."""
    names = ("logprobs", *(need.name for need in needs))
    sums = []
    for _, scores in scored(policy, sequences, needs, token_budget):
        found = [scores.logprobs, *(scores[need.name] for need in needs)]
        sums.append(torch.stack([values.double().sum() for values in found]))
    count = sum(sequence.targets for sequence in sequences)
    return dict(zip(names, (torch.stack(sums).sum(0) / max(1, count)).tolist(), strict=True))


def behind_prompt(prompt: npt.NDArray[np.int32], answer: List[int] | npt.NDArray[np.int32], sample_id: str) -> Sequence:
    """A drawn answer as a sequence: its tokens are the targets."""
    tokens = np.concatenate([prompt, np.asarray(answer, np.int32)])
    target = np.arange(len(tokens)) >= len(prompt)
    origin = np.where(target, Origin.ROLLOUT, Origin.PROMPT).astype(np.uint8)
    return Sequence(tokens, target, origin, sample_id)
