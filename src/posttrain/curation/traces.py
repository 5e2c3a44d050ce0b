"""Reasoning traces that a model has written: which of them are fit to be imitated.

They read what a generate stage (with `keep: all`) writes into a sample's meta: `value` (1 is right, less is wrong, None
is unknown) and `final_answer`, what the verifier found.
"""

import re
from collections import Counter
from typing import Annotated, Literal

from pydantic import Field

from posttrain.curation.curation import FINAL_ANSWER, curations
from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.rewards import is_right

_WORD = re.compile(r"\w+|[^\w\s]")


@curations.register("without_loops")
def without_loops(
    samples: list[Sample],
    seed: int,
    *,
    words: Annotated[int, Field(ge=1)] = 10,
    most: Annotated[int, Field(ge=1)] = 2,
) -> list[Sample]:
    """Drop responses in which any run of so many `words` comes more than `most` times: looping traces teach looping.

    Numbers and punctuation marks are words. Before right and wrong traces are told apart, so that both lose theirs.
    """
    return [sample for sample in samples if most_repeated(sample.response_text, words) <= most]


def most_repeated(text: str, words: int) -> int:
    """How often the n-gram of so many words comes that comes most often (places may overlap); 0 in a shorter text."""
    found = _WORD.findall(text)
    counts = Counter(tuple(found[start : start + words]) for start in range(len(found) - words + 1))
    return max(counts.values(), default=0)


@curations.register("with_answer")
def with_answer(samples: list[Sample], seed: int) -> list[Sample]:
    """Drop responses without a final answer that the verifier can read, right or wrong."""
    if not any(FINAL_ANSWER in sample.meta for sample in samples):
        raise _drawn_elsewhere("with_answer")
    return [sample for sample in samples if sample.meta.get(FINAL_ANSWER) is not None]


@curations.register("verified")
def verified(samples: list[Sample], seed: int, *, keep: Literal["right", "wrong"]) -> list[Sample]:
    """Keep traces whose final answer is right, or those whose is not: one that has none to read is wrong, too.

    W2SR-P and W2SR-N (arXiv 2505.20072): the two parts are disjoint, and together they are all. That a trace without an
    answer is wrong is reconstructed; `with_answer` before this step drops it. What could not be scored is neither.
    """
    scored = [sample for sample in samples if sample.meta.get("value") is not None]
    if not scored:
        raise _drawn_elsewhere("verified")
    return [sample for sample in scored if is_right(float(sample.meta["value"])) == (keep == "right")]


def _drawn_elsewhere(curation: str) -> UserError:
    return UserError(
        f"curation '{curation}': no sample says what its answer is worth: give it answers that a generate stage with "
        "'keep: all' has drawn, to questions with right answers"
    )
