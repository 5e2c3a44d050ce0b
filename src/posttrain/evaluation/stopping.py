"""Could the model have stopped? How often the token that ends thinking was at hand while another was drawn."""

from collections.abc import Collection
from collections.abc import Sequence as List
from dataclasses import dataclass

import torch

from posttrain.data import Sequence
from posttrain.data.scores import Chunk, Need
from posttrain.policy import Policy
from posttrain.policy.scoring import scored


@dataclass(frozen=True)
class PassedOver:
    """Of `positions` where thinking went on, the `share` at which the stop token was among the k likeliest; and of
    those where a line ended, of which there are `line_ends`. A share is None where there are no such positions."""

    positions: int
    share: float | None
    line_ends: int
    share_at_line_ends: float | None


def passed_over(
    policy: Policy,
    answers: List[Sequence],
    stop: int,
    *,
    k: int = 5,
    line_ends: Collection[int] = (),
    token_budget: int = 1024,
) -> PassedOver:
    """How often the token `stop` was among the `k` likeliest (of the untempered policy) and was not drawn.

    `answers`: prompts with drawn tokens as their targets. A position counts from the first drawn token to the first
    stop, which is left out. It ends a line where the token that was drawn is in `line_ends`. (arXiv 2505.07961 finds
    the stop among the top 5 at about 87.5 % of "relevant" positions; which these are it does not say where we could
    read it.)
    """
    need = _among_the_best(stop, k)
    near: list[torch.Tensor] = []
    drawn: list[torch.Tensor] = []
    for index, scores in scored(policy, answers, (need,), token_budget):
        tokens = torch.from_numpy(answers[index].tokens[answers[index].target])
        before_stop = (tokens == stop).cumsum(0) == 0
        near.append(scores[need.name].cpu()[before_stop])
        drawn.append(tokens[before_stop])
    at_hand, tokens = torch.cat(near), torch.cat(drawn)
    ends = torch.isin(tokens, torch.tensor(sorted(line_ends), dtype=tokens.dtype))
    return PassedOver(len(tokens), _mean(at_hand), int(ends.sum()), _mean(at_hand[ends]))


def _among_the_best(token: int, k: int) -> Need:
    def near(chunk: Chunk) -> torch.Tensor:
        return ((chunk.logits > chunk.logits[:, token, None]).sum(-1) < k).float()

    return Need("among_the_best", near, differentiable=False)


def _mean(values: torch.Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None
