"""A model's own answers to questions, for the functions of a curate stage: drawn part by part, each part kept."""

import json
from collections.abc import Callable

from posttrain.curation import Drawing
from posttrain.data import Sample
from posttrain.data.rendering import Rendering
from posttrain.errors import UserError
from posttrain.evaluation import Answer, Verify, check_errors
from posttrain.policy import Policy
from posttrain.recipe import Decoding
from posttrain.stages.asking import can_be_scored, counting, draw
from posttrain.stages.context import Context, digest
from posttrain.stages.files import write_atomically
from posttrain.terminal import Bar

PART = 256
"""Questions whose answers are drawn and kept together: at most so many are asked again after a run was cut off."""


def drawn_answers(
    context: Context,
    stage: str,
    model: str,
    load: Callable[[], Policy],
    rendering: Rendering,
    samples: list[Sample],
    drawing: Drawing,
) -> list[Answer]:
    """`drawing.n` answers to each sample, in order; all go to `samples/<stage>.jsonl`.

    `load` gives the policy of the recipe's `model`, where a part is not there yet. Raises `UserError` where too many
    answers cannot be scored.
    """
    decoding = Decoding(n=drawing.n, temperature=drawing.temperature, max_new_tokens=drawing.max_new_tokens)
    asked = digest(
        [context.model_fingerprint(model), context.recipe.seed, decoding.model_dump(), drawing.scored, str(rendering)]
    )
    policy: Policy | None = None
    answers: list[Answer] = []
    with context.terminal.bar(f"asking {model}", len(samples) * drawing.n * drawing.max_new_tokens, "tokens") as bar:
        for first in range(0, len(samples), PART):
            part = samples[first : first + PART]
            name = f"checkpoints/{stage}/{digest([asked, first, [sample.id for sample in part]])}.jsonl"
            if not (context.folder / name).is_file():
                policy = policy or load()
                verify = context.verify if drawing.scored else None
                _draw_part(context, name, policy, part, decoding, rendering, verify, first, bar)
            with (context.folder / name).open(encoding="utf-8") as lines:
                answers += [Answer.from_json(json.loads(line)) for line in lines]
    context.journal.answers(stage, [answer.to_json() for answer in answers])
    if drawing.scored:
        check_errors(answers, stage)
    return answers


def check_answers(context: Context, data: str, samples: list[Sample]) -> None:
    """Raises `UserError` for questions without anything to score an answer by."""
    if not can_be_scored(context, data, samples):
        raise UserError(f"data '{data}' has no 'answer' to tell right answers by: give one in a column 'answer'")


def _draw_part(
    context: Context,
    name: str,
    policy: Policy,
    samples: list[Sample],
    decoding: Decoding,
    rendering: Rendering,
    verify: Verify | None,
    first: int,
    bar: Bar,
) -> None:
    found = draw(
        context,
        policy,
        samples,
        decoding,
        rendering,
        verify,
        lambda answer: None,
        first=first,
        progress=counting(context, bar),
    )
    write_atomically(
        context, name, "".join(json.dumps(answer.to_json(), ensure_ascii=False) + "\n" for answer in found)
    )
