"""Scores of many sequences, cut into micro-batches: without a graph, and in the order in which they were given."""

from collections.abc import Iterator
from collections.abc import Sequence as List

import torch

from posttrain.data import Sequence
from posttrain.data.batch import collate, micro_batches
from posttrain.data.scores import Need, TokenScores
from posttrain.policy.policy import Policy


@torch.no_grad()
def scored(
    policy: Policy, sequences: List[Sequence], needs: tuple[Need, ...], token_budget: int
) -> Iterator[tuple[int, TokenScores]]:
    """(index, scores of its target tokens) of every sequence, as micro-batches of `token_budget` tokens get done."""
    for part in micro_batches(sequences, token_budget, layout=policy.layout):
        chosen = [sequences[row] for row in part]
        batch = collate(chosen, pad_id=policy.tokenizer.pad_token_id or 0, layout=policy.layout)
        scores = policy.scores(batch.to(policy.device), needs)
        yield from zip(part, by_sequence(scores, [sequence.targets for sequence in chosen]), strict=True)


def by_sequence(scores: TokenScores, targets: List[int]) -> list[TokenScores]:
    """The scores of a batch, cut into those of its sequences, which have so many target tokens each."""
    sizes = list(targets)
    parts = {name: torch.split(values, sizes) for name, values in scores.extra.items()}
    return [
        TokenScores(logprobs, {name: values[row] for name, values in parts.items()})
        for row, logprobs in enumerate(torch.split(scores.logprobs, sizes))
    ]
