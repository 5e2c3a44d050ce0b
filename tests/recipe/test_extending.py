"""Recipes that extend other recipes."""

from pathlib import Path

import pytest

from posttrain.errors import UserError
from posttrain.recipe import read_recipe

BASE = """
description: the base
paper: 7
seed: 3
data: {train: {task: chains, count: 60}, test: {task: chains, count: 10}}
stages:
  sft: {kind: train, lr: 0.1, watch: {data: test, every: 5}}
  test: {kind: evaluate, model: sft}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_mappings_are_merged_key_by_key_and_all_else_is_replaced(folder: Path) -> None:
    own = "extends: base.yaml\ndata: {train: {count: 5}}\nstages: {sft: {watch: {every: 9}, objective: dft}}"
    recipe = read_recipe(written(folder, "own.yaml", own))
    sft = recipe.stages["sft"]
    assert sft.kind == "train"
    assert sft.watch is not None
    assert (sft.lr, sft.objective, sft.watch.data, sft.watch.every) == (0.1, "dft", "test", 9)
    assert (recipe.data["train"].task, recipe.data["train"].count, recipe.data["test"].count) == ("chains", 5, 10)
    assert recipe.seed == 3


def test_the_name_the_description_and_the_paper_are_a_recipe_s_own(folder: Path) -> None:
    recipe = read_recipe(written(folder, "own.yaml", "extends: base.yaml"))
    assert (recipe.name, recipe.description, recipe.paper) == ("own", "", None)


def test_overrides_come_on_top(folder: Path) -> None:
    recipe = read_recipe(written(folder, "own.yaml", "extends: base.yaml\nseed: 4"), ["lr=0.5", "seed=5"])
    assert (recipe.stages["sft"].lr, recipe.seed) == (0.5, 5)  # type: ignore[union-attr]


def test_a_new_stage_stands_before_the_one_that_it_was_written_before(folder: Path) -> None:
    own = "extends: base.yaml\nstages: {draw: {kind: generate}, sft: {data: draw}, later: {kind: evaluate, model: sft}}"
    assert list(read_recipe(written(folder, "own.yaml", own)).stages) == ["draw", "sft", "test", "later"]


def test_a_path_is_looked_for_beside_the_recipe_and_in_several_steps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(folder, "sub/middle.yaml", "extends: ../base.yaml\nseed: 8")
    path = written(folder, "own.yaml", "extends: sub/middle.yaml")
    monkeypatch.chdir("/")
    assert (read_recipe(path).seed, list(read_recipe(path).stages)) == (8, ["sft", "test"])


def test_a_shipped_recipe_is_extended_by_its_name(folder: Path) -> None:
    recipe = read_recipe(written(folder, "own.yaml", "extends: sft\nseed: 11"))
    assert (recipe.seed, list(recipe.stages)) == (11, list(read_recipe("sft").stages))


@pytest.mark.parametrize("second", ["a.yaml", "../sub/a.yaml"])
def test_a_circle_is_refused(folder: Path, second: str) -> None:
    written(folder, "sub/b.yaml", f"extends: {second}\nstages: {{}}")
    with pytest.raises(UserError, match="extend one another in a circle"):
        read_recipe(written(folder, "sub/a.yaml", "extends: ../sub/b.yaml\nstages: {}"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("bse.yaml", "'bse.yaml' does not exist"),
        ("sftt", "did you mean 'sft'"),
        ("[sft]", "name or path of one recipe"),
    ],
)
def test_what_cannot_be_extended_is_said(folder: Path, value: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_recipe(written(folder, "own.yaml", f"extends: {value}\nstages: {{}}"))
