"""Of a given prefix only the tokens that the policy is least sure of are learned from."""

from collections.abc import Sequence as List
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from posttrain.data import Origin, Sequence
from posttrain.data.scores import ENTROPY_METRIC
from posttrain.data.step import Step
from posttrain.sources.transforms import transform


@transform("uncertain_prefix")
def uncertain_prefix(
    sequences: List[Sequence], step: Step, *, share: Annotated[float, Field(ge=0, le=1)] = 0.2
) -> list[Sequence]:
    """Advantage 0 for the demonstration's tokens, but for the `share` of the step's with the highest entropy.

    Entropy-constrained clipping of Prefix-RFT (arXiv 2507.01679): of P given tokens of all ranks the lowest
    floor(P (1 - `share`)) lose their advantage. They stay in the loss's denominator. Costs a forward pass of the
    answers that begin with a prefix.
    """
    given = [sequence for sequence in sequences if (sequence.origin == Origin.DEMONSTRATION).any()]
    asked = [replace(s, target=s.origin == Origin.DEMONSTRATION) for s in given]
    found = [scores[ENTROPY_METRIC.name].cpu().numpy() for scores in step.score(asked, (ENTROPY_METRIC,))]
    everywhere = np.sort(np.concatenate([*(np.asarray(each) for rank in step.gather(found) for each in rank), []]))
    lost = int(len(everywhere) * (1 - share) + 1e-9)
    edge = everywhere[lost - 1] if lost else -np.inf
    changed = {id(s): _without(s, entropy <= edge) for s, entropy in zip(given, found, strict=True)}
    return [changed.get(id(sequence), sequence) for sequence in sequences]


def _without(sequence: Sequence, lost: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Sequence:
    advantage = sequence.columns["advantage"].copy()
    advantage[np.flatnonzero(sequence.origin == Origin.DEMONSTRATION)[lost]] = 0.0
    return replace(sequence, columns={**sequence.columns, "advantage": advantage})
