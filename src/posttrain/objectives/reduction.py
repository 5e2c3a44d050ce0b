"""How per-token losses become one number, with the denominator of the whole optimiser step.

`coefficients` runs once a step, before the first forward, over the sequences of all micro-batches and all ranks. A
micro-batch then contributes `Σ coefficient · loss`: nothing is left to average, so the gradient cannot depend on how
the step was cut.
"""

from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from posttrain.data import Sequence
from posttrain.data.step import Gather, alone
from posttrain.errors import UserError

Level = Literal["token", "sequence", "group"]
Measure = npt.NDArray[np.float64]
"""`[T]`: how much each token counts; 0 where it does not. Usually the target mask of the term."""


@dataclass(frozen=True)
class Reduction:
    """One of four means. With m the measure of a token (1 at a target of the term, else 0, or a weight):

    - `tokens`: Σ m ℓ / Σ m over the step.
    - `sequences`: mean over sequences of their own Σ m ℓ / Σ m; sequences without any measure do not count.
    - `groups`: the same over groups (the rollouts of one prompt).
    - `constant`: Σ m ℓ / (`length` · number of sequences with any measure), whatever their lengths (Dr.GRPO).

    A loss of one value a sequence is reduced as if each sequence that has any measure were one token of measure 1. A
    loss of one value a group is averaged over the groups that have any measure (`constant`: and divided by `length`).
    """

    kind: Literal["tokens", "sequences", "groups", "constant"] = "tokens"
    length: float | None = None

    def __post_init__(self) -> None:
        if (self.kind == "constant") != (self.length is not None):
            raise UserError(f"reduction '{self.kind}': 'length' belongs to reduction 'constant', and only to it")
        if self.length is not None and not 0 < self.length < float("inf"):
            raise UserError(f"reduction 'constant': the length must be a positive number, found {self.length}")

    def check_level(self, level: Level) -> None:
        """Raises `UserError` where this reduction has no meaning for losses of a level."""
        if self.kind == "tokens" and level != "token":
            raise UserError(f"reduction 'tokens' has no meaning for a loss with one value a {level}; use 'sequences'")

    def coefficients(
        self, sequences: List[Sequence], measures: List[Measure], level: Level = "token", gather: Gather = alone
    ) -> list[Measure]:
        """One array for each sequence: `[T]` for a token loss, `[1]` for a loss over sequences or groups.

        `sequences` and `measures` are this rank's share of the step; denominators are counted over all ranks. The
        groups of a loss over groups must not be cut between ranks.
        """
        self.check_level(level)
        sums = [float(measure.sum()) for measure in measures]
        if level == "group":
            return self._of_groups(sequences, sums, gather)
        if level == "sequence":
            sums = [float(value > 0) for value in sums]
            measures = [np.array([value]) for value in sums]
        if self.kind == "tokens":
            total = float(sum(gather(sum(sums))))
            return [measure / total if total else measure for measure in measures]
        if self.kind == "constant":
            fixed = sum(gather(sum(value > 0 for value in sums))) * float(self.length or 1)
            return [measure / fixed if fixed else measure for measure in measures]
        if self.kind == "sequences":
            count = sum(gather(sum(value > 0 for value in sums)))
            own = sums
        else:
            totals = _group_totals(sequences, sums, gather)
            count = sum(value > 0 for value in totals.values())
            own = [totals[sequence.group] if sequence.group else s for sequence, s in zip(sequences, sums, strict=True)]
            count += sum(gather(sum(s > 0 for q, s in zip(sequences, sums, strict=True) if not q.group)))
        return [m / (value * count) if value else m for m, value in zip(measures, own, strict=True)]

    def _of_groups(self, sequences: List[Sequence], sums: list[float], gather: Gather) -> list[Measure]:
        keys = [sequence.group or f"\0{row}" for row, sequence in enumerate(sequences)]
        count = sum(gather(len({key for key, value in zip(keys, sums, strict=True) if value > 0})))
        scale = 1 / ((self.length or 1) * count) if count else 0.0
        return [np.array([scale if value > 0 else 0.0]) for value in sums]


TOKEN_MEAN = Reduction("tokens")


def _group_totals(sequences: List[Sequence], sums: list[float], gather: Gather) -> dict[str, float]:
    local: dict[str, float] = {}
    for sequence, value in zip(sequences, sums, strict=True):
        if sequence.group:
            local[sequence.group] = local.get(sequence.group, 0.0) + value
    totals: dict[str, float] = {}
    for share in gather(local):
        for key, value in share.items():
            totals[key] = totals.get(key, 0.0) + value
    return totals
