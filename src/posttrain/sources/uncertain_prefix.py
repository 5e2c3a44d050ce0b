"""Of a given prefix only the tokens that the policy is least sure of are learned from."""

from collections.abc import Sequence as List
from dataclasses import replace
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from posttrain.data import Origin, Sequence
from posttrain.data.step import Step
from posttrain.data.uncertainty import uncertainty_ranks
from posttrain.sources.transforms import transform


@transform("uncertain_prefix")
def uncertain_prefix(
    sequences: List[Sequence], step: Step, *, share: Annotated[float, Field(ge=0, le=1)] = 0.2
) -> list[Sequence]:
    """Advantage 0 for the demonstration's tokens, but for the `share` of the step's with the highest entropy.

    Entropy-constrained clipping of Prefix-RFT (arXiv 2507.01679): of P given tokens of all ranks the lowest
    floor(P (1 - `share`)) lose their advantage. They stay in the loss's denominator. Costs a forward pass of the
    answers that begin with a prefix. A whole demonstration beside the rollouts has no advantage and is left as it is.
    """
    compared = [s for s in sequences if "advantage" in s.columns]
    found = iter(uncertainty_ranks(compared, step))
    return [_without(s, next(found) >= share) if "advantage" in s.columns else s for s in sequences]


def _without(sequence: Sequence, sure: npt.NDArray[np.bool_]) -> Sequence:
    lost = sure & (sequence.origin == Origin.DEMONSTRATION)
    if not lost.any():
        return sequence
    advantage = np.where(lost, np.float32(0), sequence.columns["advantage"])
    return replace(sequence, columns={**sequence.columns, "advantage": advantage})
