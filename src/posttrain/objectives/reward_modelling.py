"""Reward models: one number for a whole answer, in the place of the next token.

A train stage whose objective is one of these makes a reward model of the weights that it starts from: transformers'
sequence classifier of the architecture with one output, whose head is 0 at first. It is saved as such: a folder that
`AutoModelForSequenceClassification` opens, and that reward `learned` and the `rerank` of an evaluation ask.

r is the number when the last token of an answer has been read; w the chosen, l the rejected answer of a pair.
"""

from collections.abc import Sequence as List
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from posttrain.data import Sequence
from posttrain.data.batch import Batch
from posttrain.data.scores import REWARDS, TokenScores
from posttrain.data.step import Step
from posttrain.data.whole_answer import whole_answer
from posttrain.objectives.objective import TermLoss, objective
from posttrain.objectives.preference import PAIR_MEAN, Pairs, check_pairs
from posttrain.objectives.reduction import Reduction

NonNegative = Annotated[float, Field(ge=0)]


def _whole(sequences: List[Sequence], step: Step) -> List[Sequence]:
    return [whole_answer(sequence) for sequence in sequences]


@objective(
    "bradley_terry",
    needs=(REWARDS,),
    reduction=PAIR_MEAN,
    level="group",
    scalars=("chosen",),
    prepare=_whole,
    check=check_pairs,
)
def bradley_terry(
    scores: TokenScores, batch: Batch, *, margin: NonNegative = 0.0, centre: NonNegative = 0.0
) -> TermLoss:
    """A reward model of preference pairs (Bradley and Terry 1952; InstructGPT, arXiv 2203.02155, equation 1).

    ℓ = -log σ(r_w - r_l - m) + c (r_w + r_l)²  `[G]`,  m = `margin` (Llama 2, arXiv 2307.09288), c = `centre` (arXiv
    2312.09244; TRL suggests 0.01), without which rewards are known up to a constant only.

    Metrics `[G]`: `reward_accuracy` (the share of pairs with r_w > r_l), `reward_margin`, `chosen_reward`,
    `rejected_reward`.
    """
    pairs, rewards = Pairs.of(batch), _of_answers(scores, batch)
    loss = -F.logsigmoid(pairs.difference(rewards) - margin)
    if centre:
        loss = loss + centre * (rewards[pairs.chosen] + rewards[pairs.rejected]).square()
    return loss, pairs.rewards(rewards)


@objective(
    "outcome",
    needs=(REWARDS,),
    reduction=Reduction("sequences"),
    level="sequence",
    scalars=("chosen",),
    prepare=_whole,
)
def outcome(scores: TokenScores, batch: Batch) -> TermLoss:
    """A verifier that is learned: is an answer right? (Cobbe et al., arXiv 2110.14168; the reranker of ReFT.)

    ℓ = -log σ(r) where the scalar `chosen` is 1 (right), -log σ(-r) where it is 0 (wrong)  `[S]`. r is what the two
    logits of ReFT's classifier differ by. Data: answers with labels (curation `label`), or both sides of pairs.

    Metrics `[S]`: `reward_accuracy` (r > 0 for a right answer, r < 0 for a wrong one), `chosen_reward` and
    `rejected_reward` (r of right and of wrong answers).
    """
    rewards, right = _of_answers(scores, batch), batch.scalar("chosen") > 0
    signed = rewards.where(right, -rewards)
    found = rewards.detach()
    nothing = float("nan")
    return -F.logsigmoid(signed), {
        "reward_accuracy": (signed > 0).float(),
        "chosen_reward": found.where(right, nothing),
        "rejected_reward": found.where(~right, nothing),
    }


def _of_answers(scores: TokenScores, batch: Batch) -> Tensor:
    """`[S]`: each sequence has one target."""
    return batch.sum_by_sequence(scores["rewards"])
