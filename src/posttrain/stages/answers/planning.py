"""Answers by way of plans, for the evaluate stage: plans are drawn, some are carried out, these elect one answer."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.evaluation import Answer
from posttrain.evaluation.plans import cluster_plans, embedding, nearest_text, weighted_vote
from posttrain.policy import Policy
from posttrain.recipe import Evaluate, Plans
from posttrain.rewards import Verify
from posttrain.stages.answers.asking import ask, plan_questions
from posttrain.stages.answers.carrying_out import (
    Asking,
    Execution,
    Planned,
    asked_for,
    begun,
    carry_out,
    exploring,
    plan_in,
)
from posttrain.stages.answers.kept_answers import KeptAnswers
from posttrain.stages.context import Context
from posttrain.stages.encoded import Forced

Checked = tuple[dict[str, int | float | str], tuple[str, ...]]
"""Numbers for a stage's plan, and what the user should know."""


def plan_plans(context: Context, stage: Evaluate, samples: list[Sample] | None) -> Checked:
    """Check that plans and their executions fit behind every prompt, and what judges or revises them; see
    `plan_questions`.

    Raises `UserError` where plans are to be given and a response has none.
    """
    rules = stage.plans
    assert rules is not None
    longest, forced = stage.max_new_tokens, dict[str, str]()
    for sample in samples or ():
        plan = _given(sample, rules).plans[0] if rules.select == "given" else ""
        forced[sample.id] = begun(rules, plan)
    if rules.select != "given":
        longest += rules.max_new_tokens
    found = _fits(context, stage, samples, longest, forced)
    if rules.select == "judge":
        _fits(context, stage, _asked(samples, rules.judge, plans=""), (rules.k + 1) * rules.max_new_tokens)
    if rules.revise is not None:
        shown = min(rules.revise.excerpt, stage.max_new_tokens) + rules.max_new_tokens
        asked = _asked(samples, rules.revise.ask, plan="", execution="")
        _fits(context, stage, asked, shown + rules.max_new_tokens, rules.opened)
    return found


def ask_by_plans(
    context: Context,
    kept: KeptAnswers,
    stage: Evaluate,
    samples: list[Sample],
    policy: Policy | None,
    verify: Verify,
    record: Callable[[Answer], None],
) -> list[Answer]:
    """One answer to each sample, that which the executions of its plans elect; see `recipe.Plans`.

    `Answer.tokens` counts all that was drawn for it: plans, judge, executions and revisions. A plan that was drawn
    several times is carried out once. `info` says how many were drawn (`plans`, and with the judge's `plan_tokens`) and
    which were carried out, in every round, with their votes and what came out (`executions`). (arXiv 2509.23946)
    """
    rules = stage.plans
    assert rules is not None

    def asking(rules: Evaluate, asked: list[Sample], forced: Forced, score: Verify | None) -> list[Answer]:
        return ask(context, kept, rules, asked, policy, score, lambda answer: None, forced=forced)

    if rules.select == "given":
        planned = [_given(sample, rules) for sample in samples]
    else:
        planned = _drawn(stage, rules, samples, asking, context.recipe.seed)
    executed = carry_out(planned, stage, asking, verify)
    answers = []
    for number, one in enumerate(planned):
        answers.append(_elected(one, {place: executed[number, place] for place in one.votes}))
        record(answers[-1])
    return answers


def plan_metrics(answers: list[Answer], rules: Plans, accuracy: float) -> dict[str, float]:
    """What answers by way of plans cost: `decoded_tokens` and `executions` for one problem.

    With `revise` also `revisions`, how many plans were written anew. Where plans were drawn also `token_share`, the
    tokens as a share of those of k plans with an execution each, as long as these are on average, and `majority@k`: the
    accuracy, by the name that a vote of k whole answers has.
    """
    decoded = sum(answer.tokens for answer in answers)
    executions = [one for answer in answers for one in answer.info["executions"]]
    found = {"decoded_tokens": decoded / len(answers), "executions": len(executions) / len(answers)}
    if rules.revise is not None:
        found["revisions"] = sum("revised" in one for one in executions) / len(answers)
    if rules.select == "given":
        return found
    planning = sum(answer.info["plan_tokens"] for answer in answers)
    mean = sum(one["tokens"] for one in executions) / len(executions)
    whole = planning + len(answers) * rules.k * mean
    return {**found, "token_share": decoded / whole, f"majority@{rules.k}": accuracy}


def _given(sample: Sample, rules: Plans) -> Planned:
    """With the plan that the sample's own response begins with."""
    plan, ended, _ = sample.response_text.removeprefix(rules.opened).partition(rules.end)
    if not ended:
        raise UserError(
            f"plans.select is 'given', but the response of sample {sample.id} has no '{rules.end}' that ends a plan: "
            f"{sample.response_text[:60]!r}"
        )
    return Planned(sample, (plan,), {0: 1.0}, 0)


def _fits(context: Context, stage: Evaluate, samples: list[Sample] | None, room: int, forced: Forced = "") -> Checked:
    return plan_questions(context, stage.model_copy(update={"max_new_tokens": room}), samples, forced=forced)


def _asked(samples: list[Sample] | None, ask: str, **parts: str) -> list[Sample] | None:
    return None if samples is None else [asked_for(sample, ask, **parts) for sample in samples]


def _drawn(stage: Evaluate, rules: Plans, samples: list[Sample], asking: Asking, seed: int) -> list[Planned]:
    drawn: dict[str, list[Answer]] = {sample.id: [] for sample in samples}
    for answer in asking(exploring(stage, n=rules.k, temperature=rules.temperature), samples, rules.opened, None):
        drawn[answer.sample_id].append(answer)
    planned = []
    for sample in samples:
        plans = tuple(plan_in(answer, rules) for answer in drawn[sample.id])
        planned.append(Planned(sample, plans, {}, sum(answer.tokens for answer in drawn[sample.id])))
    if rules.select == "judge":
        return _judged(planned, stage, rules, asking)
    return [replace(one, votes=_votes(one, rules, seed)) for one in planned]


def _votes(planned: Planned, rules: Plans, seed: int) -> dict[int, float]:
    plans = planned.plans
    if rules.select == "random":
        return {Random(f"{seed} {planned.sample.id}").randrange(len(plans)): 1.0}
    if rules.select == "clusters":
        return dict(cluster_plans(plans, rules.clusters, seed, embedding(rules.embedding)))
    return {plans.index(plan): float(plans.count(plan)) for plan in plans}


def _judged(planned: list[Planned], stage: Evaluate, rules: Plans, asking: Asking) -> list[Planned]:
    """Each problem with the plan that the model repeats when it is asked for the best."""
    asked = [asked_for(one.sample, rules.judge, plans="\n\n".join(one.plans)) for one in planned]
    judging = exploring(stage, n=1, temperature=0.0, top_p=1.0)
    said = {answer.sample_id: answer for answer in asking(judging, asked, "", None)}
    chosen = []
    for one, question in zip(planned, asked, strict=True):
        answer = said[question.id]
        best = nearest_text(answer.text.partition(rules.end)[0], one.plans)
        chosen.append(replace(one, votes={best: 1.0}, tokens=one.tokens + answer.tokens))
    return chosen


def _elected(planned: Planned, executed: Mapping[int, list[Execution]]) -> Answer:
    """The first execution with the answer that most votes are for; where none has an answer, the first of all."""
    places = sorted(executed)
    last = [executed[place][-1].answer for place in places]
    said = [answer.canonical if answer.error is None else None for answer in last]
    winner = weighted_vote(said, [planned.votes[place] for place in places])
    chosen = last[said.index(winner) if winner is not None else 0]
    executions: list[dict[str, Any]] = [
        {**execution.to_json(), "votes": planned.votes[place]} for place in places for execution in executed[place]
    ]
    info = {"plans": len(planned.plans), "plan_tokens": planned.tokens, "executions": executions}
    tokens = planned.tokens + sum(execution.tokens for each in executed.values() for execution in each)
    return replace(chosen, sample_id=planned.sample.id, tokens=tokens, info={**chosen.info, **info})
