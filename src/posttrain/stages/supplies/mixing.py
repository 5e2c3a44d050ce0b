"""A train stage that learns from its own answers and, in the same steps, from demonstrations."""

from dataclasses import replace
from typing import Any

from posttrain.data import Origin, Sequence
from posttrain.data.rendering import Rendering
from posttrain.errors import UserError
from posttrain.objectives import Objective, build_objective
from posttrain.objectives.objective import Term
from posttrain.policy import Policy
from posttrain.recipe import Train
from posttrain.schedules import Schedule, build_schedule, value_at
from posttrain.sources import Source
from posttrain.sources.mixture import Mixture
from posttrain.stages.context import Context
from posttrain.stages.supplies.demonstrations import DemonstrationSupply
from posttrain.stages.supplies.rollouts import RolloutSupply
from posttrain.stages.supplies.supply import Numbers


class MixedSupply:
    """Rollouts, which say how long the stage is, and a batch of demonstrations in each of their steps."""

    def __init__(
        self, context: Context, name: str, stage: Train, objective: Objective, tokenizer: Any, rendering: Rendering
    ) -> None:
        assert stage.rollouts is not None
        assert stage.demonstrations is not None
        _check(objective)
        self.imitation = _imitation(stage)
        self.rollouts = RolloutSupply(context, name, stage, stage.rollouts, objective, tokenizer, rendering)
        self.steps, self.steps_per_epoch = self.rollouts.steps, self.rollouts.steps_per_epoch
        beside = {
            "data": stage.demonstrations.data,
            "batch_size": stage.demonstrations.batch_size,
            "steps": stage.steps or self.steps,
        }
        self.demonstrations = DemonstrationSupply(
            context, name, stage.model_copy(update=beside), objective, tokenizer, rendering
        )

    def numbers(self) -> tuple[Numbers, tuple[str, ...]]:
        """Those of the rollouts, and how many demonstrations come beside them; see `Supply.numbers`."""
        found, notes = self.rollouts.numbers()
        theirs, their_notes = self.demonstrations.numbers()
        beside = {"demonstrations": theirs["samples"], "demonstrations_per_step": theirs["samples_per_step"]}
        return found | beside | {"demonstration_epochs": theirs["epochs"]}, (*notes, *their_notes)

    def cache_reference(self, reference: Policy) -> None:
        """Refused, as for rollouts."""
        self.rollouts.cache_reference(reference)

    def source(self, policy: Policy) -> Source:
        """See `Supply.source`."""
        imitation = self.imitation
        weights = None if imitation is None else [_rest(imitation), imitation]
        return Mixture([self.rollouts.source(policy), self.demonstrations.source(policy)], weights)

    def probe(self, count: int) -> list[Sequence]:
        """The first demonstrations."""
        return self.demonstrations.probe(count)

    def summary(self) -> dict[str, Any]:
        """Questions and demonstrations."""
        return self.rollouts.summary() | {"demonstrations": self.demonstrations.summary()["samples"]}


def objective_of(stage: Train) -> Objective:
    """The objective of a train stage, where its `imitation` weighs the terms.

    Raises `UserError` for a term that counts demonstrations and own answers alike, and for a weight below 0 or above 1.
    """
    objective = build_objective(stage.objective)
    imitation = _imitation(stage)
    if imitation is None:
        return objective
    _check(objective)
    return Objective(*(_weighed(term, imitation) for term in objective.terms))


def _weighed(term: Term, imitation: float | Schedule) -> Term:
    origins = term.origins or frozenset()
    own, given = Origin.ROLLOUT in origins, bool(origins - {Origin.ROLLOUT})
    if own and given:
        raise UserError(
            f"'imitation' weighs demonstrations against own answers, and the term '{term.name}' counts both: give it "
            "'origins': [rollout] or [demonstration]"
        )
    return replace(term, weight=_product(term.weight, imitation if given else _rest(imitation)))


def _imitation(stage: Train) -> float | Schedule | None:
    """What demonstrations weigh, in [0, 1]; None: nothing is said of it."""
    if stage.imitation is None:
        return None
    given = build_schedule(stage.imitation, "imitation")
    if not callable(given):
        return _within(given)
    return lambda step: _within(given(step))


def _within(weight: float) -> float:
    if not 0 <= weight <= 1:
        raise UserError(f"imitation must be from 0 (own answers alone) to 1 (demonstrations alone), found {weight:g}")
    return weight


def _rest(weight: float | Schedule) -> float | Schedule:
    return (lambda step: 1 - weight(step)) if callable(weight) else 1 - weight


def _product(one: float | Schedule, other: float | Schedule) -> float | Schedule:
    if callable(one) or callable(other):
        return lambda step: value_at(one, step) * value_at(other, step)
    return one * other


def _check(objective: Objective) -> None:
    open_to_all = [term.name for term in objective.terms if term.origins is None]
    if open_to_all:
        raise UserError(
            f"the step holds the model's own answers and demonstrations, and the term '{open_to_all[0]}' does not say "
            "which it counts: give every term 'origins': [rollout], [demonstration], or both"
        )
