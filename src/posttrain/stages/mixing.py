"""A train stage that learns from its own answers and, in the same steps, from demonstrations."""

from typing import Any

from posttrain.data import Sequence
from posttrain.data.rendering import Rendering
from posttrain.errors import UserError
from posttrain.objectives import Objective
from posttrain.policy import Policy
from posttrain.recipe import Train
from posttrain.sources import Source
from posttrain.sources.mixture import Mixture
from posttrain.stages.context import Context
from posttrain.stages.rolling import RolloutSupply
from posttrain.stages.supply import DemonstrationSupply, Numbers


class MixedSupply:
    """Rollouts, which say how long the stage is, and a batch of demonstrations in each of their steps."""

    def __init__(
        self, context: Context, name: str, stage: Train, objective: Objective, tokenizer: Any, rendering: Rendering
    ) -> None:
        assert stage.rollouts is not None
        assert stage.demonstrations is not None
        _check(objective)
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
        return Mixture([self.rollouts.source(policy), self.demonstrations.source(policy)])

    def probe(self, count: int) -> list[Sequence]:
        """The first demonstrations."""
        return self.demonstrations.probe(count)

    def summary(self) -> dict[str, Any]:
        """Questions and demonstrations."""
        return self.rollouts.summary() | {"demonstrations": self.demonstrations.summary()["samples"]}


def _check(objective: Objective) -> None:
    open_to_all = [term.name for term in objective.terms if term.origins is None]
    if open_to_all:
        raise UserError(
            f"the step holds the model's own answers and demonstrations, and the term '{open_to_all[0]}' does not say "
            "which it counts: give every term 'origins': [rollout], [demonstration], or both"
        )
