"""Wrong right answers: label noise that stays for the whole run."""

from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from posttrain.curation.curation import curations
from posttrain.data import Sample
from posttrain.errors import UserError

TRUE_ANSWER = "true_answer"
"""Where a sample's meta keeps the answer that a wrong one took the place of."""
FREQUENT_WRONG = "frequent_wrong"
"""Where `right_share` keeps the wrong answer that a model gives most often."""
_NOISE = 0x4E4F  # a train stage's order is drawn from the same seed, and noise must not come first in it
_SLIPS = (-10, -2, -1, 1, 2, 10)


@curations.register("noisy_answers")
def noisy_answers(
    samples: list[Sample],
    seed: int,
    *,
    share: Annotated[float, Field(ge=0, le=1)],
    wrong: Literal["shifted", "frequent"] = "shifted",
) -> list[Sample]:
    """Give a `share` γ of the questions a wrong answer to be compared with; `meta.true_answer` keeps the right one.

    ⌊γ N⌋ of N questions, whatever is demonstrated for them. Those of a smaller γ are among those of a larger one with
    the same seed, and a question's wrong answer is the same for every γ: arms differ in how much is wrong alone (the
    authors of arXiv 2604.18574 draw the wrong answers anew). `wrong`: a number that a slip would give (`shifted`: by 1,
    2 or 10, or of the other sign), or the one that the model itself gives most often (`frequent`, behind a step
    `right_share`; shifted where it gave none). Validation data must not go through this.
    """
    questions = list({sample.prompt_id: sample for sample in samples}.values())
    drawn = np.random.default_rng([seed, _NOISE]).permutation(len(questions))[: int(share * len(questions) + 1e-9)]
    if wrong == "frequent" and not any(FREQUENT_WRONG in sample.meta for sample in samples):
        raise UserError(
            "curation 'noisy_answers', wrong: frequent: no sample has a frequent wrong answer in its meta; put a step "
            "'right_share' before this one, whose model is wrong now and then"
        )
    noise = {questions[place].prompt_id: _wrong(questions[place], seed, wrong) for place in drawn.tolist()}
    return [_relabelled(sample, noise[sample.prompt_id]) if sample.prompt_id in noise else sample for sample in samples]


def _relabelled(sample: Sample, answer: str) -> Sample:
    return replace(sample, answer=answer, meta={**sample.meta, TRUE_ANSWER: sample.answer})


def _wrong(sample: Sample, seed: int, wrong: str) -> str:
    if wrong == "frequent" and FREQUENT_WRONG in sample.meta:
        return str(sample.meta[FREQUENT_WRONG])
    try:
        right = Decimal((sample.answer or "").replace(",", ""))
    except InvalidOperation:
        raise UserError(
            f"curation 'noisy_answers': the answer of sample {sample.id} is {sample.answer!r}, which is no number to "
            "shift; take wrong: frequent"
        ) from None
    others = [right + slip for slip in _SLIPS] + ([-right] if right else [])
    rng = np.random.default_rng([seed, int(sample.prompt_id, 16)])
    return str(others[rng.integers(len(others))])
