"""Which demonstrated tokens of a step the policy is least sure of."""

from collections.abc import Sequence as List
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from posttrain.data.scores import ENTROPY_METRIC
from posttrain.data.sequence import Origin, Sequence
from posttrain.data.step import Step


def rank_among(ordered: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of the N values in `ordered` (ascending) the share that is larger: 0 for the largest, then 1/N, 2/N ...

    Equal ones have the same rank, so a rank below `share` holds for ceil(N · `share`) of them, or more where the last
    one has equals.
    """
    return np.asarray((len(ordered) - np.searchsorted(ordered, values, side="right")) / max(1, len(ordered)))


def uncertainty_ranks(sequences: List[Sequence], step: Step) -> list[npt.NDArray[np.float32]]:
    """For each sequence `[T]`: its tokens' rank by entropy among the demonstrated targets of all ranks, 0 the highest.

    1 for a token that is none of them. Every rank must call it; costs a forward pass of the sequences that have any.
    """
    demonstrated = [s.target & (s.origin == Origin.DEMONSTRATION) for s in sequences]
    asked = [replace(s, target=mask) for s, mask in zip(sequences, demonstrated, strict=True) if mask.any()]
    entropies = [scores[ENTROPY_METRIC.name].double().cpu().numpy() for scores in step.score(asked, (ENTROPY_METRIC,))]
    everywhere = np.sort(np.concatenate([*(each for rank in step.gather(entropies) for each in rank), []]))
    own, ranks = iter(entropies), []
    for mask in demonstrated:
        rank = np.ones(len(mask), np.float32)
        if mask.any():
            rank[mask] = rank_among(everywhere, next(own))
        ranks.append(rank)
    return ranks
