"""Rollouts: the policy answers questions, rewards score the answers, and the scored answers are what it learns from."""

from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from posttrain.advantages import Columns, Outcomes
from posttrain.data import Sequence
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.sources.answering import Answering
from posttrain.sources.demonstrating import as_demonstration, share_right
from posttrain.sources.order import Order
from posttrain.sources.rollout import (
    Group,
    Question,
    Rollout,
    RolloutSettings,
    by_group,
    chosen,
    is_dead,
    packed,
    unpacked,
)
from posttrain.sources.temperature import ScheduledTemperature, Temperature, mean_entropy
from posttrain.sources.weighing import KLWeight, RunningMoments, add, mean_advantage, weighed


@dataclass
class _Round:
    """The answers to a round's questions: of groups that tell something apart, of groups that do not, and all that
    were drawn, those without a reward too; `shown`: demonstrations in the place of answers."""

    live: list[Group] = field(default_factory=list)
    dead: list[Group] = field(default_factory=list)
    seen: list[Rollout] = field(default_factory=list)
    shown: list[Sequence] = field(default_factory=list)


class Rollouts:
    """Each round asks the next questions, in an order that is a function of the seed; groups stay on one rank.

    Answers are drawn with a stream of their own (seed, step, question, draw), so that they are the same on any number
    of ranks. `temperature`: None is that of the settings. `record` gets every rollout of a round, scored or not, once.
    """

    def __init__(
        self,
        questions: List[Question],
        settings: RolloutSettings,
        answering: Answering,
        *,
        advantage: Callable[[Outcomes], Columns],
        seed: int,
        temperature: Temperature | None = None,
        record: Callable[[List[Rollout], int], None] = lambda rollouts, step: None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.questions, self.settings, self.answering = questions, settings, answering
        self.advantage, self.record, self.rank, self.ranks = advantage, record, rank, ranks
        self.temperature = temperature or ScheduledTemperature(settings.sampling.temperature)
        self._order = Order(len(questions), seed)
        self._asked = 0
        self._barren = 0
        self._kl_weight = KLWeight(settings.kl_in_reward, settings.kl_target, settings.kl_horizon)
        self._moments = RunningMoments()
        self._rounds: list[list[list[Sequence]]] = []
        self._kept: list[list[Sequence]] = []
        self._waiting: list[Sequence] = []

    def next(self, step: Step) -> list[Sequence]:
        """This rank's share of a step: of the oldest round, where enough younger ones wait behind it."""
        while len(self._rounds) <= self.settings.lag:
            self._rounds.append(self._collected(step) or self._parts(self._round(step), step))
        part = self._rounds[0].pop(0)
        if not self._rounds[0]:
            self._rounds.pop(0)
        return part

    def another(self, step: Step) -> list[Sequence]:
        """Refused: a second batch would be a second round of questions."""
        raise UserError("this objective reads a second batch of demonstrations, and rollouts have none")

    def state(self) -> dict[str, Any]:
        """How many questions were asked, and what of the rounds is still to be learned from."""
        return {
            "asked": self._asked,
            "barren": self._barren,
            "kl_weight": self._kl_weight.value,
            "moments": self._moments.state,
            "beginning": self.answering.beginning.state() if self.answering.beginning is not None else {},
            "temperature": self.temperature.state(),
            "rounds": [[_packed(part) for part in parts] for parts in self._rounds],
            "kept": [_packed(group) for group in self._kept],
            "waiting": _packed(self._waiting),
        }

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Go on from there: with the same number of ranks each takes its own, else groups are dealt out anew."""
        first = states[0]
        self._asked, self._barren, self._kl_weight.value = first["asked"], first["barren"], first["kl_weight"]
        self._moments.state = first["moments"]
        if self.answering.beginning is not None:
            self.answering.beginning.restore(first["beginning"])
        self.temperature.restore(first["temperature"])
        same = len(states) == self.ranks
        shares = [states[self.rank]] if same else states
        self._rounds = [
            [self._dealt([row for share in part for row in share], same) for part in zip(*parts, strict=True)]
            for parts in zip(*(state["rounds"] for state in shares), strict=True)
        ]
        self._kept = [[unpacked(row) for row in group] for group in first["kept"]]
        self._waiting = self._dealt([row for state in shares for row in state["waiting"]], same)

    def _dealt(self, rows: list[dict[str, Any]], same: bool) -> list[Sequence]:
        groups = by_group([unpacked(row) for row in rows])
        mine = groups if same else groups[self.rank :: self.ranks]
        return [sequence for group in mine for sequence in group]

    def _round(self, step: Step) -> list[Sequence]:
        """This rank's sequences of a new round, of which some rank has a target; else the next questions are asked."""
        while True:
            waiting = len(self._waiting)
            sequences = self._answered(step)
            taught = self._teaches(sequences, step) or any(step.gather(len(self._waiting) > waiting))
            self._barren = 0 if taught else self._barren + 1
            if self._barren >= self.settings.patience:
                raise UserError(self._why_barren(step))
            if any(step.gather(any(sequence.targets for sequence in sequences))):
                return sequences

    def _teaches(self, sequences: list[Sequence], step: Step) -> bool:
        """Is there anything on any rank that moves the policy?"""
        if self.settings.compared:
            return any(step.gather(any(s.columns.get("advantage", s.target)[s.target].any() for s in sequences)))
        return any(step.gather(any(sequence.targets for sequence in sequences)))

    def _answered(self, step: Step) -> list[Sequence]:
        """This rank's sequences of the next questions' answers, with their advantages."""
        found = self._drawn(step)
        self._check_errors(found.seen, step)
        _report(step, found.seen, [*found.live, *found.dead])
        self.temperature.watch(step)
        some = sum(step.gather(len(found.live) + len(found.shown)))
        # with nothing to tell apart it is a step that teaches nothing, and says so
        groups = found.live if some else found.dead
        rollouts = [rollout for group in groups for rollout in chosen(group, self.settings.choose)]
        sequences = weighed(rollouts, step, self.settings, self.advantage, self._kl_weight, self._moments)
        worth = {id(r.attempt): mean_advantage(s) for r, s in zip(rollouts, sequences, strict=True)}
        for value in worth.values():
            add(step, "advantage_size", abs(value), 1)
        self.record([replace(r, advantage=worth.get(id(r.attempt), 0.0)) for r in found.seen], step.index)
        return [*(self._replayed(sequences, step) if self.settings.replay else sequences), *found.shown]

    def _drawn(self, step: Step) -> _Round:
        """This rank's answers to the next questions, and to others in the place of those that tell nothing apart."""
        temperature = self.temperature.at(step, lambda tried, count: self._entropy(tried, count, step))
        found = _Round()
        for _ in range(1 + self.settings.refills):
            lacking = self.settings.prompts - sum(step.gather(len(found.live) + len(found.shown)))
            if lacking <= 0:
                break
            for group in self._ask(lacking, step, temperature):
                found.seen += group
                usable = [r for r in group[: self.settings.learned] if r.score.error is None]
                if self._demonstrated(usable, self._waiting if self.settings.collect else found.shown, step):
                    continue
                (found.dead if self.settings.refills and is_dead(usable) else found.live).append(usable)
        return found

    def _demonstrated(self, group: Group, shown: list[Sequence], step: Step) -> bool:
        """Is a question too hard, so that its demonstration is `shown`, and takes the place of its answers?"""
        if self.settings.demonstrate is None or not group:
            return False
        question = self.questions[self._order[group[0].place]]
        taken = share_right(group) <= self.settings.demonstrate and len(question.demonstration) > 0
        add(step, "demonstrated", float(taken), 1)
        if taken:
            shown.append(as_demonstration(question, group[0].place))
        return taken and not self.settings.collect

    def _collected(self, step: Step) -> list[list[Sequence]]:
        """The one part of a round of all demonstrations that wait, where they are enough."""
        if not self.settings.collect or sum(step.gather(len(self._waiting))) < self.settings.collect:
            return []
        found, self._waiting = self._waiting, []
        return [found]

    def _entropy(self, temperature: float, count: int, step: Step) -> float:
        """H_T of the answers to the first `count` questions, one each."""
        places = range(min(count, len(self.questions)))[self.rank :: self.ranks]
        questions = [self.questions[self._order[place]] for place in places]
        sampling = replace(self.settings.sampling, temperature=temperature)
        with step.lap("time/temperature"):
            return mean_entropy(questions, self.answering.generate, sampling, step)

    def _ask(self, count: int, step: Step, temperature: float) -> list[Group]:
        """The groups of this rank's share of the next `count` questions."""
        places = range(self._asked, self._asked + count)
        self._asked += count
        own = places[self.rank :: self.ranks]
        return self.answering.groups([self.questions[self._order[place]] for place in own], own, step, temperature)

    def _check_errors(self, seen: list[Rollout], step: Step) -> None:
        errors = [rollout.score.error for rollout in seen if rollout.score.error is not None]
        shares = step.gather((len(errors), len(seen), errors[:1]))
        failed, total = sum(share[0] for share in shares), sum(share[1] for share in shares)
        if failed > self.settings.max_errors * total:
            self.record(seen, step.index)
            first = next(share[2][0] for share in shares if share[2])
            raise UserError(
                f"{failed} of {total} answers of step {step.index + 1} got no reward, more than max_errors = "
                f"{self.settings.max_errors:g} allows; the first: {first}"
            )

    def _why_barren(self, step: Step) -> str:
        total, count = step.report.get("reward", (0.0, 0.0))
        mean = f"the last answers' mean reward is {total / count:.3g}" if count else "no answer had a reward"
        return (
            f"nothing could be learned from the last {self._barren} rounds (rollouts.patience): the answers to each "
            f"question were all worth the same, or none was chosen; {mean}. Give questions that are answered right "
            "sometimes (easier or harder ones), a reward with partial credit, a higher temperature, more answers (n), "
            "or more max_new_tokens if answers are cut off"
        )

    def _replayed(self, sequences: list[Sequence], step: Step) -> list[Sequence]:
        """Groups without any advantage give way to the youngest kept ones; those with are kept.

        Every rank keeps the same groups, and learns from those that come in the place of its own.
        """
        own = {group[0].group: group for group in by_group(sequences)}
        live = {name: group for name, group in own.items() if any(s.columns["advantage"].any() for s in group)}
        shares = step.gather((live, [name for name in own if name not in live]))
        dead = sorted(name for _, names in shares for name in names)
        everywhere = {name: group for groups, _ in shares for name, group in groups.items()}
        again = dict(zip(dead, self._kept[-len(dead) :] if dead else [], strict=False))
        self._kept = [*self._kept, *(everywhere[name] for name in sorted(everywhere))][-self.settings.replay :]
        return [sequence for name, group in own.items() for sequence in again.get(name, group)]

    def _parts(self, sequences: list[Sequence], step: Step) -> list[list[Sequence]]:
        """The optimiser steps of a round: groups in a new order each epoch, dealt out to the mini-batches.

        The order is that of all ranks' groups, of which each rank takes its own. Where fewer groups are left than there
        are mini-batches, so many steps: none is empty on every rank.
        """
        own = {group[0].group: group for group in by_group(sequences)}
        names = sorted(name for share in step.gather(list(own)) for name in share)
        count = max(1, min(self.settings.mini_batches, len(names)))
        parts: list[list[Sequence]] = []
        for epoch in range(self.settings.epochs):
            order = np.random.default_rng([step.seed, epoch]).permutation(len(names))
            shuffled = [names[index] for index in order]
            for part in range(count):
                parts.append([s for name in shuffled[part::count] if name in own for s in own[name]])
        return parts


def _packed(sequences: List[Sequence]) -> list[dict[str, Any]]:
    return [packed(sequence) for sequence in sequences]


def _report(step: Step, seen: list[Rollout], groups: list[Group]) -> None:
    """What a round was like, for the log."""
    for rollout in seen:
        attempt, score = rollout.attempt, rollout.score
        add(step, "errors", float(score.error is not None), 1)
        drawn = int(attempt.length > 0)  # a whole demonstration is not
        add(step, "length", attempt.length, drawn)
        add(step, "truncated", float(attempt.finish_reason == "length"), drawn)
        add(step, "sampled_entropy", -float(attempt.logprobs.sum()), attempt.length)
        if score.error is None:
            add(step, "reward", score.value, 1)
            if rollout.size:
                add(step, "reward/begun" if attempt.begun else "reward/unbegun", score.value, 1)
                add(step, "begun", attempt.begun / rollout.size, 1)
            add(step, "length/rewarded" if score.value > 0 else "length/unrewarded", attempt.length, drawn)
            for name, value in score.parts.items():
                add(step, f"reward/{name}", value, 1)
    for group in groups:
        add(step, "dead_groups", float(is_dead(group)), 1)
