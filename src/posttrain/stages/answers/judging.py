"""Reward models in recipes: which stages make them, who may ask them, and what they say of answers."""

from collections.abc import Sequence as List

import numpy as np
import numpy.typing as npt

from posttrain.data import Sequence
from posttrain.data.scores import REWARDS
from posttrain.data.whole_answer import whole_answer
from posttrain.errors import UserError
from posttrain.objectives import Objective, build_objective
from posttrain.policy import model_path
from posttrain.policy.loading import is_reward_folder
from posttrain.policy.scoring import scored
from posttrain.recipe import Train
from posttrain.stages.context import Context
from posttrain.stages.models import load_policy


def teaches_rewards(objective: Objective) -> bool:
    """Does a stage with it make a reward model?"""
    return any(need == REWARDS for term in objective.terms for need in term.needs)


def is_judge(context: Context, name: str) -> bool:
    """Is the model of this name a reward model?"""
    stage = context.recipe.stages.get(name)
    if isinstance(stage, Train):
        return teaches_rewards(build_objective(stage.objective))
    return stage is None and is_reward_folder(model_path(context.model(name).path, with_weights=False))


def check_judge(context: Context, name: str) -> None:
    """Raises `UserError` for a model that is no reward model, though it is asked as one."""
    context.model(name)
    if not is_judge(context, name):
        raise UserError(
            f"model '{name}' is asked for rewards, but is a language model: name a train stage with the objective "
            "'bradley_terry' or 'outcome', or the folder of a sequence classifier with one output"
        )


def check_speaker(context: Context, name: str) -> None:
    """Raises `UserError` for a reward model that is asked for answers."""
    if is_judge(context, name):
        raise UserError(f"model '{name}' is a reward model, which cannot answer: ask the one that it judges")


def check_reward_training(context: Context, stage: Train, objective: Objective) -> None:
    """Raises `UserError` where a train stage makes half a reward model, or trains one as a language model."""
    if not teaches_rewards(objective):
        if is_judge(context, stage.init_from):
            raise UserError(
                f"'{stage.init_from}' is a reward model: it learns by 'bradley_terry' or 'outcome', and by nothing else"
            )
        return
    for term in objective.terms:
        if REWARDS not in term.needs:
            raise UserError(
                f"objective '{term.name}' needs the next token, which a reward model does not have: train it by "
                "'bradley_terry' or 'outcome' alone"
            )
    for key in ("rollouts", "watch", "critic", "reference"):
        if getattr(stage, key) is not None:
            raise UserError(f"'{key}' has no meaning for a stage that makes a reward model: leave it out")


def rewards_of(context: Context, name: str, sequences: List[Sequence]) -> npt.NDArray[np.float64]:
    """`[S]`: what the reward model of this name says of answers."""
    judge = load_policy(context, name)
    whole = [whole_answer(sequence) for sequence in sequences]
    found = np.zeros(len(whole))
    for index, scores in scored(judge, whole, (REWARDS,), context.evaluation_tokens):
        found[index] = float(scores["rewards"])
    return found
