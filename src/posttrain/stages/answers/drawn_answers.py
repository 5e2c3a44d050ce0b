"""A model's own answers to questions, for the functions of a curate stage."""

from functools import partial

from posttrain.curation import Drawing
from posttrain.data import Sample
from posttrain.data.rendering import Rendering
from posttrain.errors import UserError
from posttrain.evaluation import Answer, check_errors
from posttrain.policy import Policy
from posttrain.recipe import Decoding
from posttrain.stages.answers.asking import can_be_scored, counting, draw
from posttrain.stages.answers.kept_answers import KeptAnswers
from posttrain.stages.context import Context


def drawn_answers(
    context: Context,
    stage: str,
    model: str,
    policy: Policy,
    rendering: Rendering,
    samples: list[Sample],
    drawing: Drawing,
) -> list[Answer]:
    """`drawing.n` answers of `policy`, the recipe's `model`, to each sample, in order; all go to
    `samples/<stage>.jsonl`.

    Raises `UserError` where too many answers cannot be scored.
    """
    decoding = Decoding(n=drawing.n, temperature=drawing.temperature, max_new_tokens=drawing.max_new_tokens)
    kept = KeptAnswers(context, stage)
    with context.terminal.bar(f"asking {model}", len(samples) * drawing.n * drawing.max_new_tokens, "tokens") as bar:
        progress = counting(context, bar)
        answers = draw(
            context,
            policy,
            samples,
            decoding,
            rendering,
            context.verify if drawing.scored else None,
            lambda answer: None,
            keep=partial(kept.engine, context.model_fingerprint(model), progress),
            progress=progress,
        )
    context.journal.answers(stage, [answer.to_json() for answer in answers])
    if drawing.scored:
        check_errors(answers, stage)
    return answers


def check_answers(context: Context, data: str, samples: list[Sample]) -> None:
    """Raises `UserError` for questions without anything to score an answer by."""
    if not can_be_scored(context, data, samples):
        raise UserError(f"data '{data}' has no 'answer' to tell right answers by: give one in a column 'answer'")
