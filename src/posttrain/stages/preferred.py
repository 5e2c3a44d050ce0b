"""How often a reward model likes the better answer of a pair best."""

from posttrain.data import Sample, Sequence
from posttrain.data.rendering import render_pairs
from posttrain.data.turns import Refusal
from posttrain.errors import UserError
from posttrain.policy import load_tokenizer
from posttrain.recipe import Evaluate
from posttrain.stages.answers.asking import asked_as
from posttrain.stages.answers.judging import rewards_of
from posttrain.stages.context import Context
from posttrain.stages.plan import Plan
from posttrain.stages.shape import Shape

ALONG_ANSWERS = ("reference", "passed_over", "rerank", "plans", "server")


def plan_preferred(context: Context, stage: Evaluate, samples: list[Sample] | None) -> Plan:
    """Render every pair. `samples` None: a stage writes them yet. Raises `UserError` for other data than pairs, and for
    what is measured along drawn answers."""
    for key in ALONG_ANSWERS:
        if getattr(stage, key) is not None:
            raise UserError(f"'{key}' is measured along answers, and '{stage.model}' is a reward model: leave it out")
    if samples is None:
        return Plan({})
    pairs, refused = _rendered(context, stage, samples)
    return Plan({"pairs": len(pairs), "refused": refused})


def preferred(context: Context, stage: Evaluate, samples: list[Sample]) -> dict[str, float]:
    """`reward_accuracy`: the share of pairs whose chosen answer has the higher reward; `reward_margin`: the mean of how
    much higher. Raises `UserError` where there are no pairs."""
    pairs, refused = _rendered(context, stage, samples)
    rewards = rewards_of(context, stage.model, [side for pair in pairs for side in pair])
    margins = rewards[::2] - rewards[1::2]
    found = {"reward_accuracy": float((margins > 0).mean()), "reward_margin": float(margins.mean())}
    return {"pairs": len(pairs), "refused": refused, **found}


def _rendered(context: Context, stage: Evaluate, samples: list[Sample]) -> tuple[list[tuple[Sequence, Sequence]], int]:
    """Chosen and rejected answer of every pair, and how many pairs were refused."""
    origin = context.origin(stage.model)
    found = render_pairs(samples, load_tokenizer(origin.path), asked_as(stage, Shape.of(origin).context))
    pairs = [(item[0].sequence, item[1].sequence) for item in found if not isinstance(item, Refusal)]
    refused = [item for item in found if isinstance(item, Refusal)]
    if not pairs:
        raise UserError(
            f"data '{stage.data}': a reward model is measured on preference pairs, and there are none "
            f"({refused[0].reason}: {refused[0].detail})"
        )
    return pairs, len(refused)
