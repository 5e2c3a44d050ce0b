"""What weight each token's log-likelihood gets."""

from posttrain.objectives import (
    covariance,
    distillation,
    gain_weighted,
    hybrid,
    intuitive,
    kahneman_tversky,
    likelihood,
    one_token_rollout,
    poft,
    policy_gradient,
    preference,
    regularised,
    reward_modelling,
    reweighted,
    undesirable,
)
from posttrain.objectives.building import build_objective
from posttrain.objectives.objective import Loss, Objective, Term, objective, objectives
from posttrain.objectives.reduction import Reduction

__all__ = [
    "Loss",
    "Objective",
    "Reduction",
    "Term",
    "build_objective",
    "covariance",
    "distillation",
    "gain_weighted",
    "hybrid",
    "intuitive",
    "kahneman_tversky",
    "likelihood",
    "objective",
    "objectives",
    "one_token_rollout",
    "poft",
    "policy_gradient",
    "preference",
    "regularised",
    "reward_modelling",
    "reweighted",
    "undesirable",
]
