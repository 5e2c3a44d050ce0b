"""Answers by way of plans, for the evaluate stage: plans are drawn, some are carried out, these elect one answer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from posttrain.data import Sample, assistant
from posttrain.errors import UserError
from posttrain.evaluation import Answer, Verify
from posttrain.evaluation.plans import cluster_plans, embedding, nearest_text, weighted_vote
from posttrain.policy import Policy
from posttrain.recipe import Evaluate, Plans
from posttrain.stages.asking import ask, plan_questions
from posttrain.stages.context import Context


@dataclass(frozen=True)
class Planned:
    """A problem with its `plans`, the `votes` of those that are carried out (place -> weight), and `tokens`, how many
    were drawn for all of that."""

    sample: Sample
    plans: tuple[str, ...]
    votes: dict[int, float]
    tokens: int

    def to_carry_out(self, place: int) -> Sample:
        """The problem with a plan in the place of its response: a sample of its own, though others ask the same."""
        return replace(self.sample, response=(assistant(self.plans[place]),))


def plan_plans(
    context: Context, stage: Evaluate, samples: list[Sample] | None
) -> tuple[dict[str, int | float | str], tuple[str, ...]]:
    """Check that plans and their executions fit behind every prompt; see `plan_questions`.

    Raises `UserError` where plans are to be given and a response has none.
    """
    rules = stage.plans
    assert rules is not None
    longest, forced = stage.max_new_tokens, dict[str, str]()
    for sample in samples or ():
        plan = _given(sample, rules).plans[0] if rules.select == "given" else ""
        forced[sample.id] = _begun(rules, plan)
    if rules.select != "given":
        longest += rules.max_new_tokens
    return plan_questions(context, stage.model_copy(update={"max_new_tokens": longest}), samples, forced=forced)


def ask_by_plans(
    context: Context,
    name: str,
    stage: Evaluate,
    samples: list[Sample],
    policy: Policy | None,
    verify: Verify,
    record: Callable[[Answer], None],
) -> list[Answer]:
    """One answer to each sample, that which the executions of its plans elect; see `recipe.Plans`.

    `Answer.tokens` counts all that was drawn for it: plans, judge and executions. A plan that was drawn several times
    is carried out once. `info` says how many were drawn (`plans`) and which were carried out, with their votes and what
    came out (`executions`). (arXiv 2509.23946; its loop of revised plans is left out.)
    """
    rules = stage.plans
    assert rules is not None
    planned = [_given(sample, rules) for sample in samples] if rules.select == "given" else None
    if planned is None:
        planned = _drawn(context, name, stage, rules, samples, policy)
    tasks = {(number, place): one.to_carry_out(place) for number, one in enumerate(planned) for place in one.votes}
    begun = {one.id: _begun(rules, one.response_text) for one in tasks.values()}
    asked = list({one.id: one for one in tasks.values()}.values())
    found = {
        answer.sample_id: answer
        for answer in ask(context, name, stage, asked, policy, verify, lambda answer: None, forced=begun)
    }
    answers = []
    for number, one in enumerate(planned):
        executed = {place: found[tasks[number, place].id] for place in one.votes}
        answers.append(_elected(one, executed))
        record(answers[-1])
    return answers


def plan_metrics(answers: list[Answer], rules: Plans, accuracy: float) -> dict[str, float]:
    """What answers by way of plans cost: `decoded_tokens` and `executions` for one problem.

    Where plans were drawn also `token_share`, the tokens as a share of those of k plans with an execution each, as long
    as these are on average, and `majority@k`: the accuracy, by the name that a vote of k whole answers has.
    """
    decoded = sum(answer.tokens for answer in answers)
    executions = [one for answer in answers for one in answer.info["executions"]]
    found = {"decoded_tokens": decoded / len(answers), "executions": len(executions) / len(answers)}
    if rules.select == "given":
        return found
    planning = sum(answer.info["plan_tokens"] for answer in answers)
    mean = sum(one["tokens"] for one in executions) / len(executions)
    whole = planning + len(answers) * rules.k * mean
    return {**found, "token_share": decoded / whole, f"majority@{rules.k}": accuracy}


def _begun(rules: Plans, plan: str) -> str:
    """What an execution of the plan is made to begin with."""
    return f"{rules.opened}{plan}{rules.end}{rules.execute}"


def _given(sample: Sample, rules: Plans) -> Planned:
    """With the plan that the sample's own response begins with."""
    plan, ended, _ = sample.response_text.removeprefix(rules.opened).partition(rules.end)
    if not ended:
        raise UserError(
            f"plans.select is 'given', but the response of sample {sample.id} has no '{rules.end}' that ends a plan: "
            f"{sample.response_text[:60]!r}"
        )
    return Planned(sample, (plan,), {0: 1.0}, 0)


def _drawn(
    context: Context, name: str, stage: Evaluate, rules: Plans, samples: list[Sample], policy: Policy | None
) -> list[Planned]:
    exploring = stage.model_copy(
        update={
            "n": rules.k,
            "temperature": rules.temperature,
            "top_p": rules.top_p,
            "max_new_tokens": rules.max_new_tokens,
            "stop": [rules.end],
        }
    )
    drawn: dict[str, list[Answer]] = {sample.id: [] for sample in samples}
    for answer in ask(context, name, exploring, samples, policy, None, lambda answer: None, forced=rules.opened):
        drawn[answer.sample_id].append(answer)
    planned = []
    for sample in samples:
        # one that was cut off has no end: it gets one where it is carried out
        plans = tuple(a.text.removeprefix(rules.opened).partition(rules.end)[0] for a in drawn[sample.id])
        planned.append(Planned(sample, plans, {}, sum(answer.tokens for answer in drawn[sample.id])))
    if rules.select == "judge":
        return _judged(context, name, exploring, rules, planned, policy)
    return [replace(one, votes=_votes(one, rules, context.recipe.seed)) for one in planned]


def _votes(planned: Planned, rules: Plans, seed: int) -> dict[int, float]:
    plans = planned.plans
    if rules.select == "random":
        return {Random(f"{seed} {planned.sample.id}").randrange(len(plans)): 1.0}
    if rules.select == "clusters":
        return dict(cluster_plans(plans, rules.clusters, seed, embedding(rules.embedding)))
    return {plans.index(plan): float(plans.count(plan)) for plan in plans}


def _judged(
    context: Context, name: str, stage: Evaluate, rules: Plans, planned: list[Planned], policy: Policy | None
) -> list[Planned]:
    """Each problem with the plan that the model repeats when it is asked for the best."""
    asked = []
    for one in planned:
        *before, last = one.sample.prompt
        text = rules.judge.replace("{question}", str(last["content"])).replace("{plans}", "\n\n".join(one.plans))
        asked.append(replace(one.sample, prompt=(*before, {**last, "content": text})))
    judging = stage.model_copy(update={"n": 1, "temperature": 0.0, "top_p": 1.0})
    said = {a.sample_id: a for a in ask(context, name, judging, asked, policy, None, lambda answer: None)}
    chosen = []
    for one, question in zip(planned, asked, strict=True):
        answer = said[question.id]
        best = nearest_text(answer.text.partition(rules.end)[0], one.plans)
        chosen.append(replace(one, votes={best: 1.0}, tokens=one.tokens + answer.tokens))
    return chosen


def _elected(planned: Planned, executed: dict[int, Answer]) -> Answer:
    """The first execution with the answer that most votes are for; where none has an answer, the first of all."""
    places = sorted(executed)
    said = [executed[place].canonical if executed[place].error is None else None for place in places]
    winner = weighted_vote(said, [planned.votes[place] for place in places])
    chosen = executed[places[said.index(winner) if winner is not None else 0]]
    executions = [
        {
            "plan": planned.plans[place],
            "votes": planned.votes[place],
            "answer": executed[place].extracted,
            "tokens": executed[place].tokens,
        }
        for place in places
    ]
    info = {"plans": len(planned.plans), "plan_tokens": planned.tokens, "executions": executions}
    tokens = planned.tokens + sum(answer.tokens for answer in executed.values())
    return replace(chosen, sample_id=planned.sample.id, tokens=tokens, info={**chosen.info, **info})
