"""Preference pairs without right answers: a better model's answer beside a worse one's to the same question.

Self-reinforcement (arXiv 2405.04086): the fine-tuned model's answers are preferred to those of the model it was before.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from posttrain.curation.curation import FINAL_ANSWER, Drawing, Models, curations
from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.rewards import is_right

_OF_ONE_ANSWER = ("value", "draw", "source_id", FINAL_ANSWER)


@curations.register("paired_answers")
def paired_answers(
    samples: list[Sample], seed: int, *, chosen: str, rejected: str, by: str | None = None
) -> list[Sample]:
    """The answers of generate stage `chosen`, each beside one of stage `rejected` to the same question.

    The first answers of both to a question are a pair, then their second ones; the same stage twice: its first, third
    ... answers against its second, fourth ... ones. Pairs of equal texts are dropped, and those whose chosen answer is
    empty. `by`: a scalar of the answers, which has to be greater for the chosen one: `reference_score` (how likely the
    stage's model finds a token) or `agreement`, which steps before this one give. Meta keeps the `scores` of both,
    chosen first, and where it is known what they are worth, `values`: `pair_precision` reads them, and nothing else.
    """
    strong, weak = _answers(samples, chosen), _answers(samples, rejected)
    if chosen == rejected:
        strong = {question: answers[0::2] for question, answers in strong.items()}
        weak = {question: answers[1::2] for question, answers in weak.items()}
    pairs = [
        pair for question, answers in strong.items() for pair in zip(answers, weak.get(question, ()), strict=False)
    ]
    return [_pair(better, worse, by) for better, worse in pairs if _is_kept(better, worse, by)]


def _answers(samples: list[Sample], stage: str) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.meta.get("stage") == stage:
            found.setdefault(sample.prompt_id, []).append(sample)
    if not found:
        stages = sorted({str(sample.meta.get("stage")) for sample in samples})
        raise UserError(
            f"curation 'paired_answers': no answer is of stage '{stage}'; the data have {', '.join(stages)}"
        )
    return found


def _is_kept(chosen: Sample, rejected: Sample, by: str | None) -> bool:
    text, other = chosen.response_text.strip(), rejected.response_text.strip()
    better = by is None or _score(chosen, by) > _score(rejected, by)
    return bool(text) and text != other and better


def _score(sample: Sample, by: str) -> float:
    if by not in sample.scalars:
        raise UserError(
            f"curation 'paired_answers': sample {sample.id} has no scalar '{by}': of the steps before this one, "
            "'reference_scores' gives 'reference_score', and 'self_consistency' gives 'agreement'"
        )
    return sample.scalars[by]


def _pair(chosen: Sample, rejected: Sample, by: str | None) -> Sample:
    meta: dict[str, Any] = {key: value for key, value in chosen.meta.items() if key not in _OF_ONE_ANSWER}
    meta["values"] = [chosen.meta.get("value"), rejected.meta.get("value")]
    if by is not None:
        meta["scores"] = [_score(chosen, by), _score(rejected, by)]
    scalars = {name: value for name, value in chosen.scalars.items() if name != by}
    return replace(chosen, rejected=rejected.response, meta=meta, scalars=scalars)


@curations.register("self_consistency")
def self_consistency(
    samples: list[Sample],
    seed: int,
    models: Models,
    *,
    n: Annotated[int, Field(ge=1)] = 5,
    temperature: Annotated[float, Field(gt=0)] = 0.7,
    max_new_tokens: Annotated[int, Field(ge=1)] = 256,
    scalar: str = "agreement",
) -> list[Sample]:
    """Give every answer the share of `n` new answers of the stage's models that come to the same, as a scalar.

    A stand-in for a judge where the model is too small to be one; no right answer is read. An answer without a final
    answer that can be read agrees with nothing. Raises `UserError` where the data are no answers of a generate stage.
    """
    if not any(FINAL_ANSWER in sample.meta for sample in samples):
        raise UserError(
            f"curation 'self_consistency': no sample has a '{FINAL_ANSWER}' in its meta, so that all would agree with "
            "nothing: give it answers that a generate stage has drawn"
        )
    questions = {sample.prompt_id: replace(sample, response=(), rejected=(), meta={}) for sample in samples}
    drawing = Drawing(n, temperature, max_new_tokens, scored=False)
    drawn = [model.draw(list(questions.values()), drawing) for model in models.values()]
    counts = {
        question: Counter(reply.answer for replies in each for reply in replies)
        for question, each in zip(questions, zip(*drawn, strict=True), strict=True)
    }
    return [
        replace(sample, scalars={**sample.scalars, scalar: _agreement(sample.meta, counts[sample.prompt_id])})
        for sample in samples
    ]


def _agreement(meta: Mapping[str, Any], counts: Counter[str | None]) -> float:
    answer = meta.get(FINAL_ANSWER)
    return counts[answer] / counts.total() if answer is not None else 0.0


def pair_numbers(pairs: list[Sample]) -> dict[str, float]:
    """What is known of pairs: `length_gap` (characters, chosen minus rejected) and `pair_precision`; {} without any."""
    found = [pair for pair in pairs if pair.rejected]
    if not found:
        return {}
    gaps = [len(pair.response_text) - len(str(pair.rejected[0].get("content") or "")) for pair in found]
    precision = pair_precision(found)
    return {"length_gap": float(np.mean(gaps))} | ({} if precision is None else {"pair_precision": precision})


def pair_precision(pairs: list[Sample]) -> float | None:
    """The share of pairs whose chosen answer is right and whose rejected one is wrong; None where that is not known.

    By `meta.values`, with which the right answers measure pairs that were made without them.
    """
    known = [pair.meta["values"] for pair in pairs if None not in pair.meta.get("values", [None])]
    told = [is_right(chosen) and not is_right(rejected) for chosen, rejected in known]
    return float(np.mean(told)) if told else None
