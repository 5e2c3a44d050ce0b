"""A step's sequences as micro-batches."""

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass

import numpy as np

from posttrain.data import Sequence
from posttrain.data.batch import Batch, collate, cut_sharing, micro_batches
from posttrain.data.prefixes import Prefixes
from posttrain.objectives.reduction import Measure
from posttrain.policy import Policy
from posttrain.training.ranks import Ranks
from posttrain.training.sharding import is_sharded


@dataclass(frozen=True)
class Part:
    """A micro-batch: its places in the step, its sequences, their coefficients.

    One that does not count is only there to keep sharded ranks in step. `prefixes`: what its sequences go on from;
    `last`: no other micro-batch goes on from them afterwards.
    """

    indices: list[int]
    sequences: list[Sequence]
    rows: list[Mapping[str, Measure]]
    counts: bool = True
    prefixes: Prefixes | None = None
    last: bool = False

    def batch(self, policy: Policy) -> Batch:
        """Its tensors, as the policy's model wants them."""
        return collate(self.sequences, pad_id=_pad_id(policy), layout=policy.layout, prefixes=self.prefixes)

    def finish(self) -> None:
        """Behind its backward pass: where it is the last one, the prefixes' own."""
        if self.last and self.prefixes is not None:
            self.prefixes.finish()


def cut(
    policy: Policy,
    sequences: List[Sequence],
    rows: List[Mapping[str, Measure]],
    token_budget: int,
    *,
    keep_groups: bool = False,
    share: bool = True,
) -> list[Part]:
    """Micro-batches within the token budget. `share`: prefixes of groups are read once, where the model allows it."""
    whole: list[tuple[Prefixes | None, list[list[int]]]]
    if share and policy.layout == "padded" and not is_sharded(policy) and policy.reads_prefixes:
        whole = cut_sharing(sequences, token_budget, pad_id=_pad_id(policy), keep_groups=keep_groups)
    else:
        whole = [(None, micro_batches(sequences, token_budget, layout=policy.layout, keep_groups=keep_groups))]
    return [
        Part(part, [sequences[i] for i in part], [rows[i] for i in part], prefixes=prefixes, last=part is parts[-1])
        for prefixes, parts in whole
        for part in parts
    ]


def fillers(parts: List[Part], ranks: Ranks) -> list[Part]:
    """Micro-batches of weight 0 for a rank that has fewer than others.

    Sharded ranks exchange weights in every pass, so all must run as many. The shortest one is repeated; a rank without
    any borrows another's.
    """
    counts = ranks.gather(len(parts))
    shortest = parts[-1] if parts else None
    if 0 in counts:
        shortest = next(part for part in ranks.gather(shortest) if part is not None)
    assert shortest is not None
    nothing = [{key: np.zeros_like(value) for key, value in row.items()} for row in shortest.rows]
    return [Part([], shortest.sequences, list(nothing), counts=False)] * (max(counts) - len(parts))


def _pad_id(policy: Policy) -> int:
    return policy.tokenizer.pad_token_id or 0
