"""Whole dialogues between a model and its task's environment, for the stages that evaluate them."""

from collections.abc import Callable
from collections.abc import Sequence as List
from functools import partial
from typing import Any

from posttrain.data import Sample
from posttrain.data.rendering import Rendering
from posttrain.generation import Completion, Engine, Prompt, Sampling
from posttrain.generation.dialogue import converse
from posttrain.recipe import Asked, Evaluate
from posttrain.stages.context import Context

Conversation = Callable[[Engine, List[Prompt], int, Sampling], List[Completion]]
"""`(engine, prompts, n, sampling)` -> `n` dialogues about each prompt."""

_END_OF_THOUGHT = "</think>"


def conversation(
    context: Context, stage: Asked, samples: List[Sample], tokenizer: Any, rendering: Rendering
) -> Conversation | None:
    """How the questions of a stage are talked about with their tasks' environments; None where it asks for one turn."""
    if not isinstance(stage, Evaluate) or stage.turns == 1:
        return None

    def talk(engine: Engine, prompts: List[Prompt], n: int, sampling: Sampling) -> List[Completion]:
        return converse(
            engine.generate,
            prompts,
            n,
            sampling,
            samples=samples,
            environment=context.environment,
            tokenizer=tokenizer,
            rendering=rendering,
            turns=stage.turns,
            forced=stage.forced,
            seen=partial(behind, end=_ids(tokenizer)) if stage.drop_thinking else list,
        )

    return talk


def behind(tokens: List[int], end: list[int]) -> List[int]:
    """The tokens that follow the last `end`; all of them where there is none."""
    width = len(end)
    places = (place for place in range(len(tokens), width - 1, -1) if list(tokens[place - width : place]) == end)
    return tokens[next(places, 0) :]


def _ids(tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(_END_OF_THOUGHT, add_special_tokens=False)["input_ids"]
    return ids
