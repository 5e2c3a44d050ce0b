"""Can anything be learned from rollouts as a recipe has them? Asked before any is drawn."""

from posttrain.advantages import READ_TOKENS
from posttrain.data import Origin
from posttrain.errors import UserError
from posttrain.objectives import Objective, Term
from posttrain.recipe import RolloutSource, Train
from posttrain.recipe.strict import name_of
from posttrain.rewards import reward_models
from posttrain.sources.beginnings import Beginning, check_rounds
from posttrain.stages.answers.judging import check_judge
from posttrain.stages.context import Context
from posttrain.stages.shape import check_one_vocabulary


def reads_advantage(objective: Objective) -> bool:
    """Does any of its terms compare answers?"""
    return any("advantage" in term.columns for term in objective.terms)


def check_rollouts(
    context: Context, stage: Train, rules: RolloutSource, objective: Objective, beginning: Beginning | None
) -> None:
    """Raises `UserError` for what cannot learn: groups of one, losses that do not read rollouts, models that cannot be
    asked."""
    _check_comparison(rules, objective)
    _check_kl(stage, rules, objective)
    if beginning is not None:
        check_rounds(beginning, rules.n)
        if beginning.apart and rules.choose == "pairs":
            raise UserError(
                "this 'begin' compares answers behind the same prefix alone, and choose: pairs would "
                "set others beside one another: take another 'begin', or a loss that needs no pairs"
            )
        _check_hints(beginning, objective)
    if rules.demonstrate is not None:
        _check_demonstrated(objective)
    for model in reward_models(rules.reward):
        check_one_vocabulary(context, stage.init_from, model)
    for model in reward_models(rules.reward, judges=True):
        check_judge(context, model)


def _check_comparison(rules: RolloutSource, objective: Objective) -> None:
    name, reads = name_of(rules.advantage), reads_advantage(objective)
    compares = name in ("group", "leave_one_out")
    if compares and reads and (rules.learned or rules.n) < 2:
        raise UserError(
            f"advantage '{name}' compares the answers to a question: 'n' must be 2 or more, and so must "
            f"'learned', found {rules.learned or rules.n}"
        )
    if compares and reads and rules.choose in ("right", "best"):
        raise UserError(
            f"advantage '{name}' compares answers, and choose: {rules.choose} leaves none to compare with: set "
            "advantage to 'reward', or choose to 'all'"
        )
    against_model = any(need.reference and need.differentiable for term in objective.terms for need in term.needs)
    if not reads and rules.choose == "all" and not against_model:
        raise UserError(
            "rollouts are learned from through the column 'advantage', and no term of the objective reads it: "
            "add 'grpo', 'ppo', 'reinforce' ..., or choose which answers to imitate: choose: right, best or pairs"
        )
    if rules.choose == "all" and (blind := [term.name for term in objective.terms if _imitates_all(term)]):
        raise UserError(
            f"the term '{blind[0]}' imitates every answer alike, wrong ones too: take it out, give it 'origins' "
            "without rollout, or choose which answers to imitate: choose: right or best"
        )
    if objective.needs_pairs != (rules.choose == "pairs"):
        raise UserError("a loss of preference pairs learns from rollouts with choose: pairs, and only such a loss does")


def _imitates_all(term: Term) -> bool:
    """Does it read nothing of an answer but its tokens?"""
    own = term.origins is None or Origin.ROLLOUT in term.origins
    return own and not (term.columns or term.needs or term.scalars or term.where or term.weight_column)


def _check_kl(stage: Train, rules: RolloutSource, objective: Objective) -> None:
    name = name_of(rules.advantage)
    if rules.kl_in_reward and name not in READ_TOKENS:
        raise UserError(
            f"kl_in_reward is a reward of each token, which advantage '{name}' does not read: take "
            f"{' or '.join(READ_TOKENS)}, or add the term 'kl' to the objective"
        )
    if rules.kl_in_reward and stage.reference is None and not objective.needs_reference:
        raise UserError("kl_in_reward needs a reference: name the model in 'reference' ('base', an earlier stage ...)")


def _check_demonstrated(objective: Objective) -> None:
    if all(term.origins is not None for term in objective.terms) and any(
        Origin.DEMONSTRATION in (term.origins or ()) for term in objective.terms
    ):
        return
    raise UserError(
        "'demonstrate' puts demonstrations in the place of answers: give every term 'origins', [rollout] or "
        "[demonstration], and add one that counts demonstrations, for example {name: nll, origins: [demonstration]}"
    )


def _check_hints(beginning: Beginning, objective: Objective) -> None:
    open_to_all = [term.name for term in objective.terms if term.origins is None]
    if beginning.origin == Origin.HINT and open_to_all:
        raise UserError(
            f"answers begin with hints, and the term '{open_to_all[0]}' does not say whether it learns from them: "
            "give every term 'origins': [rollout], [hint], or both"
        )
