"""Plans that are carried out, and written anew where that comes to no answer."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from posttrain.data import Sample, assistant
from posttrain.evaluation import Answer
from posttrain.evaluation.plans import next_plan
from posttrain.recipe import Evaluate, Plans
from posttrain.rewards import Verify
from posttrain.stages.encoded import Forced

Asking = Callable[[Evaluate, list[Sample], Forced, Verify | None], list[Answer]]
"""Draws answers as a stage says; they begin with what is forced, and are scored where a verifier is given."""


@dataclass(frozen=True)
class Planned:
    """A problem with its `plans`, the `votes` of those that are carried out (place -> weight), and `tokens`, how many
    were drawn for all of that."""

    sample: Sample
    plans: tuple[str, ...]
    votes: dict[int, float]
    tokens: int


@dataclass(frozen=True)
class Execution:
    """A `plan` that was carried out and the `answer` that this came to. `revised`: what was written in its place."""

    plan: str
    answer: Answer
    revised: Answer | None = None

    @property
    def tokens(self) -> int:
        """How many were drawn for it."""
        return self.answer.tokens + (0 if self.revised is None else self.revised.tokens)

    def to_json(self) -> dict[str, Any]:
        """For `samples/`; one that a revision followed is written out."""
        found = {"plan": self.plan, "answer": self.answer.extracted, "tokens": self.answer.tokens}
        if self.revised is None:
            return found
        revised = {"text": self.revised.text, "tokens": self.revised.tokens}
        return {**found, "text": self.answer.text, "revised": revised}


Place = tuple[int, int]
"""A problem's number, and the place of one of its plans that vote."""
Executions = dict[Place, list[Execution]]
"""The plans that were carried out in a place, one after the other; the last one's answer votes."""


def carry_out(planned: list[Planned], stage: Evaluate, asking: Asking, verify: Verify) -> Executions:
    """The executions of all plans that vote; what came to no answer is followed by others, as `revise` says.

    That goes by rounds: in each the plans of all problems are written anew side by side, and then carried out.
    """
    rules = stage.plans
    assert rules is not None
    plans = {(number, place): one.plans[place] for number, one in enumerate(planned) for place in one.votes}
    found: Executions = {place: [] for place in plans}
    for left in range(0 if rules.revise is None else rules.revise.rounds, -1, -1):
        tasks = {place: _with_plan(planned[place[0]].sample, plan) for place, plan in plans.items()}
        answers = _asked(tasks, lambda task: begun(rules, task.response_text), stage, asking, verify)
        for place, plan in plans.items():
            found[place].append(Execution(plan, answers[place]))
        failed = [place for place in plans if answers[place].extracted is None]
        if not left or not failed:
            break
        plans = _anew(planned, failed, found, stage, asking)
    return found


def begun(rules: Plans, plan: str) -> str:
    """What an execution of the plan is made to begin with."""
    return f"{rules.opened}{plan}{rules.end}{rules.execute}"


def plan_in(answer: Answer, rules: Plans) -> str:
    """The drawn plan. One that was cut off has no end: it gets one where it is carried out."""
    return answer.text.removeprefix(rules.opened).partition(rules.end)[0]


def exploring(stage: Evaluate, **more: Any) -> Evaluate:
    """The stage as it draws plans; `more` is said of how."""
    rules = stage.plans
    assert rules is not None
    drawn = {"top_p": rules.top_p, "max_new_tokens": rules.max_new_tokens, "stop": [rules.end]}
    return stage.model_copy(update={**drawn, **more})


def asked_for(sample: Sample, ask: str, **parts: str) -> Sample:
    """The sample with another question in the place of its own, which `{question}` in `ask` stands for."""
    *before, last = sample.prompt
    known = {**parts, "question": str(last["content"])}
    text = re.sub(r"\{(\w+)\}", lambda place: known.get(place[1], place[0]), ask)
    return replace(sample, prompt=(*before, {**last, "content": text}))


def _anew(
    planned: list[Planned], failed: list[Place], found: Executions, stage: Evaluate, asking: Asking
) -> dict[Place, str]:
    """The plans to be carried out in the places of those that failed. Where nothing is left to try, there is none."""
    rules = stage.plans
    assert rules is not None
    assert rules.revise is not None
    revise, tasks = rules.revise, {}
    for place in failed:
        last = found[place][-1]
        excerpt = last.answer.text.removeprefix(begun(rules, last.plan))[-revise.excerpt :]
        tasks[place] = asked_for(planned[place[0]].sample, revise.ask, plan=last.plan, execution=excerpt)
    writing = exploring(stage, n=1, temperature=revise.temperature)
    written = _asked(tasks, lambda task: rules.opened, writing, asking, None)
    carried_out: dict[int, set[str]] = defaultdict(set)
    for (number, _), executions in found.items():
        carried_out[number].update(one.plan for one in executions)
    anew = {}
    for place in failed:
        number, last = place[0], found[place][-1]
        found[place][-1] = replace(last, revised=written[place])
        revised = plan_in(written[place], rules)
        plan = next_plan(revised, last.plan, planned[number].plans, carried_out[number], revise.alike)
        if plan is not None:
            anew[place] = plan
            carried_out[number].add(plan)
    return anew


def _asked(
    tasks: dict[Place, Sample],
    begin: Callable[[Sample], str],
    stage: Evaluate,
    asking: Asking,
    verify: Verify | None,
) -> dict[Place, Answer]:
    """The answers to samples that may be there twice: those are asked once."""
    asked = {task.id: task for task in tasks.values()}
    forced = {name: begin(task) for name, task in asked.items()}
    answers = {answer.sample_id: answer for answer in asking(stage, list(asked.values()), forced, verify)}
    return {place: answers[task.id] for place, task in tasks.items()}


def _with_plan(sample: Sample, plan: str) -> Sample:
    """The problem with a plan in the place of its response: a sample of its own, though others ask the same."""
    return replace(sample, response=(assistant(plan),))
