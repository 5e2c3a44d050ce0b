"""Scoring what a model says: every answer kept, every number with what it rests on.

Left out: asking the model and writing files (whoever runs a stage does that), and tables.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from posttrain.data import Message, Sample
from posttrain.errors import UserError
from posttrain.evaluation.metrics import (
    answer_entropy,
    best_at_k,
    distinct_answers,
    draw_counts,
    has_valid_format,
    majority_at_k,
    pass_at_k,
)
from posttrain.evaluation.parts import check_parts, part_metrics
from posttrain.evaluation.result import Answer, EvaluationResult, Problem
from posttrain.evaluation.statistics import share_interval
from posttrain.generation import Completion, Sampling
from posttrain.generation.dialogue import Dialogue
from posttrain.rewards import Score, Verify, is_right


def summarise(
    answers: Sequence[Answer],
    *,
    n: int,
    sampling: Sampling,
    name: str = "",
    max_errors: float = 0.1,
    right_at: float = 1.0,
    level: float = 0.95,
    passes: Mapping[str, float] | None = None,
) -> EvaluationResult:
    """The numbers of scored answers, of which each problem has `n`; an answer is right from value `right_at` on.

    - `problems`, `answers`, `errors`: how many. An answer with an error is left out of what follows.
    - `accuracy`, `accuracy_low`, `accuracy_high`: mean over problems of the share of right draws, and its interval.
    - `average@n`: the same of values; differs from the accuracy where a verifier gives part marks.
    - `pass@k`, `majority@k` for k = 1, 2, 4 ... n: over problems with at least k scored draws.
    - `answer_entropy` (nats), `distinct_answers`: for n > 1. These and majority@k need `info["extracted"]`.
    - `format_validity`: share of answers of the asked-for form.
    - `faithful`, `faithful_right`: share of all answers, and of the right ones, that follow from the steps before them,
      where the verifier gives the part `faithful`.
    - `mean_length` (tokens), `truncated` (share that the length limit cut off): over all answers; `mean_length_right`
      and `mean_length_wrong`: over those.
    - every other part that the verifier gives, by its name: its mean over the answers that have it.
    - for the parts that `passes` names, with the value from which an answer passes: see `part_metrics`.

    Raises `UserError` where the share of errors is over `max_errors`, and for unknown parts.
    """
    scored = check_errors(answers, name, max_errors)
    check_parts(scored, passes or {})
    groups: dict[str, list[Answer]] = {}
    for answer in scored:
        groups.setdefault(answer.sample_id, []).append(answer)
    problems = tuple(_problem(group, right_at) for group in groups.values())
    rng = np.random.default_rng(sampling.seed)
    shares = np.array([p.right / p.draws for p in problems])
    accuracy = share_interval(shares, rng, level=level)
    metrics: dict[str, float] = {
        **_part_means(scored),
        "problems": len(problems),
        "answers": len(answers),
        "errors": len(answers) - len(scored),
        "accuracy": accuracy.estimate,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        f"average@{n}": float(np.mean([p.value for p in problems])),
        **_by_draws(problems, list(groups.values()), n, right_at, rng),
        **part_metrics(list(groups.values()), passes or {}, n, right_at=right_at),
        "format_validity": float(np.mean([has_valid_format(a.parts, a.info, _is_right(a, right_at)) for a in scored])),
        **_faithful(scored, right_at),
        "mean_length": float(np.mean([a.tokens for a in answers])),
        **_lengths(scored, right_at),
        "truncated": float(np.mean([a.finish_reason == "length" for a in answers])),
    }
    return EvaluationResult(name, n, sampling, metrics, problems, level, tuple(answers))


def reranked(answers: Sequence[Answer], rewards: Sequence[float], *, n: int, right_at: float = 1.0) -> dict[str, float]:
    """`reranked@k` for k = 1, 2, 4 ... n: how right the answer is that a reward model likes best of k draws.

    `rewards`: one for each answer. Answers without a score are left out; problems with fewer than k others, too.
    """
    groups: dict[str, list[tuple[float, bool]]] = {}
    for answer, reward in zip(answers, rewards, strict=True):
        if answer.error is None:
            groups.setdefault(answer.sample_id, []).append((reward, _is_right(answer, right_at)))
    found = {}
    for k in draw_counts(n):
        each = [best_at_k([r for r, _ in group], [right for _, right in group], k) for group in groups.values()]
        found[f"reranked@{k}"] = _known_mean(each)
    return {name: value for name, value in found.items() if not math.isnan(value)}


def answer_of(
    sample: Sample, completion: Completion, verify: Verify | None, *, step: int | None = None, forced: str = ""
) -> Answer:
    """A drawn answer, scored by `verify`; without it there is no value. Its text begins with what was `forced`.

    Of a dialogue the last turn is scored, the text shows all of them, and the model's own tokens are counted. An
    exception of `verify` becomes the answer's error, with its cause.
    """
    text = forced + completion.text
    score = Score(0.0) if verify is None else _score(sample, text, verify)
    return Answer(
        sample_id=sample.id,
        task=sample.task,
        prompt=sample.prompt_text,
        expected=sample.answer,
        text=_transcript(completion.turns) if isinstance(completion, Dialogue) else text,
        value=None if verify is None or score.error is not None else float(score.value),
        parts=dict(score.parts),
        info=dict(score.info),
        error=score.error,
        finish_reason=completion.finish_reason,
        tokens=len(completion.tokens) if completion.drawn is None else int(completion.drawn.sum()),
        logprob=float(completion.logprobs.sum(dtype=np.float64)),
        draw=completion.sample,
        step=step,
        token_ids=tuple(int(token) for token in completion.tokens),
    )


def _transcript(turns: Sequence[Message]) -> str:
    """The turns of a dialogue, those of others with their role."""
    roles = {"assistant": ""}
    return "\n".join(roles.get(turn["role"], f"[{turn['role']}] ") + str(turn["content"]) for turn in turns)


def _score(sample: Sample, text: str, verify: Verify) -> Score:
    """The verifier's score; where it raises or gives no finite number, an error that says so."""
    try:
        score = verify(sample, text)
        if score.error is None and not math.isfinite(score.value):
            return Score(0.0, score.parts, score.info, error=f"the verifier gave the value {score.value}")
    except Exception as cause:  # whatever it is, it is no 0
        return Score(0.0, error=f"{type(cause).__name__}: {cause}")
    return score


def check_errors(answers: Sequence[Answer], name: str = "", max_errors: float = 0.1) -> list[Answer]:
    """The answers that have a score. Raises `UserError` where the share of errors is over `max_errors`, or 1."""
    scored = [answer for answer in answers if answer.error is None]
    failed = len(answers) - len(scored)
    if failed and (failed > max_errors * len(answers) or not scored):
        first = next(answer for answer in answers if answer.error is not None)
        raise UserError(
            f"evaluation '{name}': {failed} of {len(answers)} answers could not be scored (max_errors allows a share "
            f"of {max_errors:g}, and not all). The first, of sample {first.sample_id}: {first.error}"
        )
    if not scored:
        raise UserError(f"evaluation '{name}' has no answers to summarise")
    return scored


def _value(answer: Answer) -> float:
    assert answer.value is not None  # only scored answers come here
    return answer.value


def _is_right(answer: Answer, right_at: float) -> bool:
    return is_right(_value(answer), right_at)


def _problem(group: Sequence[Answer], right_at: float) -> Problem:
    right = sum(_is_right(answer, right_at) for answer in group)
    value = float(np.mean([_value(answer) for answer in group]))
    return Problem(group[0].sample_id, group[0].task, len(group), right, value)


def _by_draws(
    problems: Sequence[Problem], groups: Sequence[Sequence[Answer]], n: int, right_at: float, rng: np.random.Generator
) -> dict[str, float]:
    """What several draws say: pass@k, majority@k, variety."""
    draws, right = [p.draws for p in problems], [p.right for p in problems]
    answers = [[answer.canonical for answer in group] for group in groups]
    rights = [[_is_right(answer, right_at) for answer in group] for group in groups]
    votes = any("extracted" in answer.info for group in groups for answer in group)
    found: dict[str, float] = {}
    for k in draw_counts(n):
        found[f"pass@{k}"] = _known_mean(pass_at_k(draws, right, k))
        if votes:
            each = [majority_at_k(said, marks, k, rng) for said, marks in zip(answers, rights, strict=True)]
            found[f"majority@{k}"] = _known_mean(each)
    if votes and n > 1:
        found["answer_entropy"] = float(np.mean([answer_entropy(said) for said in answers]))
        found["distinct_answers"] = float(np.mean([distinct_answers(said) for said in answers]))
    return {key: value for key, value in found.items() if not math.isnan(value)}


def _part_means(answers: Sequence[Answer]) -> dict[str, float]:
    """Parts by name, but for what `accuracy` and `format_validity` say already. A part may be there of some answers
    alone: a recall has a value where there was something to find."""
    values: dict[str, list[float]] = {}
    for answer in answers:
        for name, value in answer.parts.items():
            if name not in ("correct", "format"):
                values.setdefault(name, []).append(value)
    return {name: float(np.mean(found)) for name, found in values.items()}


def _lengths(answers: Sequence[Answer], right_at: float) -> dict[str, float]:
    """Of right and of wrong answers; nothing where there are none."""
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for answer in answers:
        sizes[_is_right(answer, right_at)].append(answer.tokens)
    names = {"mean_length_right": sizes[True], "mean_length_wrong": sizes[False]}
    return {name: float(np.mean(found)) for name, found in names.items() if found}


def _faithful(answers: Sequence[Answer], right_at: float) -> dict[str, float]:
    """How many answers follow from their steps; nothing where no verifier says so."""
    said = [(answer.parts["faithful"], _is_right(answer, right_at)) for answer in answers if "faithful" in answer.parts]
    found = {"faithful": [value for value, _ in said], "faithful_right": [value for value, right in said if right]}
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def _known_mean(values: npt.ArrayLike) -> float:
    array = np.asarray(values, dtype=np.float64)
    known = array[~np.isnan(array)]
    return float(known.mean()) if len(known) else math.nan
