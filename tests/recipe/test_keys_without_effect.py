"""Keys that nothing reads, and values that cannot be drawn or trained with, are refused by the recipe itself."""

from typing import Any

import pytest

from posttrain.errors import UserError
from posttrain.recipe import Recipe, check_recipe, read_recipe, shipped_recipes


def recipe_of(data: Any = "a.jsonl", **stage: Any) -> Recipe:
    return check_recipe(
        {"name": "t", "data": {"own": data}, "stages": {"s": {"kind": "train", "data": "own", **stage}}}
    )


CHAINS = {"task": "chains", "count": 3}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"path": "a.jsonl", "style": "terse"}, "'style' has no effect on data of a 'path'"),
        ({"path": "a.jsonl", "difficulty": "harder"}, "'difficulty' has no effect on data of a 'path'"),
        ({**CHAINS, "verify": "exact"}, "'verify' has no effect on data of a 'task'"),
        ({**CHAINS, "split": "train"}, "'split' has no effect on data of a 'task'"),
        ({"mix": [CHAINS], "count": 2}, "'count' has no effect on data of a 'mix'"),
        ({"mix": [CHAINS], "columns": {"a": "prompt"}}, "'columns' has no effect on data of a 'mix'"),
        ({"stage": "s", "shape": "alpaca"}, "'shape' has no effect on data of a 'stage'"),
    ],
)
def test_a_key_that_this_kind_of_data_does_not_read_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"'data\.own'.*{said}: leave it out"):
        recipe_of(data)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"decay": 0.5}, "'decay' has no effect with schedule: cosine"),
        ({"schedule": "constant", "floor": 0.1}, "'floor' has no effect with schedule: constant"),
        ({"optimizer": "adafactor", "betas": [0.8, 0.9]}, "'betas' has no effect with optimizer: adafactor"),
        ({"template": "none", "template_options": {"a": 1}}, "'template_options' has no effect with template: none"),
        ({"append_eos": False}, "'append_eos' has no effect with template: chat"),
        ({"betas": [1.5, 0.9]}, r"'stages\.s\.betas\.0' has to be below 1, found 1\.5"),
        ({"kind": "evaluate", "stop": [""]}, "'stop' has an empty string"),
        ({"kind": "evaluate", "top_p": 0.9}, "'top_p' has no effect at temperature 0"),
    ],
)
def test_a_key_that_another_value_makes_void_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        recipe_of(**fields)


def test_keys_that_are_read_are_taken() -> None:
    recipe_of({"path": "a.jsonl", "verify": "exact", "count": 3, "repeat": 2})
    recipe_of({**CHAINS, "style": "terse", "difficulty": "harder", "max_refused": 0.5})
    recipe_of(schedule="wsd", decay=0.5, floor=0.1, optimizer="sgd", betas=[0.5, 0.9])
    recipe_of(template="none", append_eos=False)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_with_all_defaults_written_out_is_taken(name: str) -> None:
    recipe = read_recipe(name)
    assert check_recipe(recipe.model_dump(mode="json")) == recipe
