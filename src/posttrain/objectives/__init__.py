"""What weight each token's log-likelihood gets."""

from posttrain.objectives import distillation, likelihood, one_token_rollout, poft, regularised, reweighted
from posttrain.objectives.objective import Loss, Objective, Term, build_objective, objective, objectives
from posttrain.objectives.reduction import Reduction

__all__ = [
    "Loss",
    "Objective",
    "Reduction",
    "Term",
    "build_objective",
    "distillation",
    "likelihood",
    "objective",
    "objectives",
    "one_token_rollout",
    "poft",
    "regularised",
    "reweighted",
]
