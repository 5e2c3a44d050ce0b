"""Pairs that a model has judged itself: is the chosen answer the better one?"""

import re
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from posttrain.curation.curation import Drawing, Models, Reply, curations
from posttrain.data import Sample, user
from posttrain.errors import UserError

PROMPT = """Here are a question and two answers to it.

Question: {question}

Answer 1: {first}

Answer 2: {second}

Rate each answer from 1 to 10: is it relevant to the question, and is its reasoning coherent?
Reply with the two ratings alone, like this: Answer 1: 5, Answer 2: 5"""

_PLACES = ("{question}", "{first}", "{second}")
_RATINGS = re.compile(r"Answer 1\W*(\d+(?:\.\d+)?)\D*?Answer 2\W*(\d+(?:\.\d+)?)", re.IGNORECASE)

Ratings = tuple[float, float]
"""Of the chosen and of the rejected answer."""


@curations.register("self_judge")
def self_judge(
    samples: list[Sample],
    seed: int,
    models: Models,
    *,
    prompt: str = PROMPT,
    both_orders: bool = True,
    max_new_tokens: Annotated[int, Field(ge=1)] = 32,
) -> list[Sample]:
    """Keep pairs whose chosen answer the stage's models rate higher than the rejected one, strictly.

    They are asked greedily; `prompt` has places for `{question}`, `{first}` and `{second}`. `both_orders`: once more
    with the answers the other way round, for judges prefer what stands first. All verdicts have to agree, and a reply
    without two ratings is none. Meta keeps all `ratings`, the chosen answer's first. Behind `paired_answers`.

    Self-filtering by relevance and coherence (arXiv 2405.04086), where the model that wrote the chosen answers judges;
    wording, ratings and strictness are reconstructed. Small models cannot judge: see `by` of `paired_answers`.
    """
    if missing := [place for place in _PLACES if place not in prompt]:
        raise UserError(f"curation 'self_judge', option 'prompt': it has no place for {' and '.join(missing)}")
    if alone := [sample.id for sample in samples if not sample.rejected]:
        raise UserError(
            f"curation 'self_judge': sample {alone[0]} has no rejected answer to judge beside its chosen one: it comes "
            "behind 'paired_answers'"
        )
    drawing = Drawing(1, 0.0, max_new_tokens, scored=False)
    asked = [(model, swap) for model in models.values() for swap in ((False, True) if both_orders else (False,))]
    found = [
        [_ratings(reply, swap) for (reply,) in model.draw([_asked(pair, prompt, swap) for pair in samples], drawing)]
        for model, swap in asked
    ]
    judged = []
    for pair, ratings in zip(samples, zip(*found, strict=True), strict=True):
        given = [each for each in ratings if each is not None]
        if len(given) == len(asked) and all(chosen > rejected for chosen, rejected in given):
            judged.append(replace(pair, meta={**pair.meta, "ratings": [list(each) for each in given]}))
    return judged


def _asked(pair: Sample, prompt: str, swap: bool) -> Sample:
    answers = (pair.response_text, str(pair.rejected[0].get("content") or ""))
    texts = dict(zip(_PLACES, (pair.prompt_text, *(answers[::-1] if swap else answers)), strict=True))
    filled = re.sub("|".join(map(re.escape, _PLACES)), lambda place: texts[place[0]], prompt)
    return Sample((user(filled),))


def _ratings(reply: Reply, swapped: bool) -> Ratings | None:
    """None where there are not two."""
    found = _RATINGS.search(reply.text)
    if found is None:
        return None
    first, second = float(found[1]), float(found[2])
    return (second, first) if swapped else (first, second)
