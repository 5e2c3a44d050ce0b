"""Comparison files, and how they and the command line become arms."""

from pathlib import Path
from typing import Any

import pytest
from forked import small, write_recipe

from posttrain.cli_comparison import _spec
from posttrain.comparison import arms
from posttrain.comparison.claims import find_claim, shipped_claims
from posttrain.comparison.runs import check_claims
from posttrain.comparison.spec import Comparison, check_comparison, read_comparison
from posttrain.comparison.views import ran, with_views
from posttrain.errors import UserError
from posttrain.run import plan
from posttrain.terminal import Terminal

PLAIN: dict[str, Any] = {"name": "x", "recipe": "sft", "arms": {"sft": None, "dft": {"set": {"objective": "dft"}}}}
CLAIM = {"text": "t", "metric": "test.accuracy", "of": "dft", "at_least": 0.0}


def read(tmp_path: Path, text: str) -> Comparison:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_comparison(path)


def test_a_number_of_seeds_stands_for_the_first_ones() -> None:
    assert check_comparison({**PLAIN, "seeds": 4}).seeds == [0, 1, 2, 3]
    assert check_comparison({**PLAIN, "seeds": [7, 3]}).seeds == [7, 3]


def test_a_misspelt_key_is_named_with_its_line_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml:3: unknown key 'arms\.a\.sett': did you mean 'set'\?"):
        read(tmp_path, "recipe: sft\narms:\n  a: {sett: {lr: 1}}\n")
    with pytest.raises(UserError, match=r"mine\.yaml:3: unknown key 'budget\.step': did you mean 'steps'\?"):
        read(tmp_path, "recipe: sft\narms: {a: {}}\nbudget: {step: 3}\n")


def test_recipes_beside_the_file_are_found(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    spec = read(tmp_path, "arms: {a: {recipe: small.yaml}, b: {recipe: sft}}\n")
    assert (spec.name, spec.arms["a"].recipe, spec.arms["b"].recipe) == ("mine", str(recipe), "sft")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arms": {"base": {}}}, "an arm cannot be called 'base'"),
        ({"arms": {"a/b": {}}}, "an arm cannot be called 'a/b'"),
        ({"recipe": None}, "arm 'sft' has no recipe"),
        ({"budget": {"steps": 3, "tokens": 9}}, "give one of steps, tokens, seconds; found steps, tokens"),
        ({"tune": {"lr": [1e-3]}}, "tune needs tune_on"),
        ({"tune": {"lr": []}, "tune_on": "a.b"}, "'lr' has no values"),
        ({"tune_on": "accuracy"}, "not of the form STAGE.METRIC"),
        ({"seeds": [1, 1]}, "seeds are there twice"),
        ({"seeds": []}, "seeds"),
        ({"claims": [{**CLAIM, "of": "dftt"}]}, "did you mean 'dft'"),
        ({"claims": [{**CLAIM, "at_most": 1.0}]}, "either at_least or at_most"),
        ({"claims": [{**CLAIM, "metric": "accuracy"}]}, "not of the form STAGE.METRIC"),
        ({"claims": [{**CLAIM, "minus": None, "over": "dft"}]}, "'over' is the upper end of a gap"),
        ({"claims": [{**CLAIM, "minus": "sft", "over": "sft"}]}, "'over' is the upper end of a gap"),
        ({"claims": [{**CLAIM, "minus": "sft", "over": "gone"}]}, "about arm 'gone', which is none"),
        ({"name": "a b"}, "name"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_comparison({**PLAIN, **change})


def test_arms_take_the_changes_of_all_and_then_their_own() -> None:
    spec = check_comparison({**PLAIN, "set": {"lr": 1e-4, "batch_size": 8, "objective": "nll"}})
    stage = arms.arm_recipe(spec, "dft", {"lr": 0.01}).stages["train"]
    assert (stage.lr, stage.batch_size, stage.objective) == (0.01, 8, "dft")


def test_evaluations_of_the_start_are_left_to_the_start() -> None:
    recipe = arms.arm_recipe(check_comparison(PLAIN), "sft")
    assert list(recipe.stages) == ["train", "test", "longer", "kept"]
    start = arms.base_recipe(recipe)
    assert start is not None
    assert {name: stage.model for name, stage in start.stages.items()} == dict.fromkeys(
        ("test", "longer", "kept"), "base"
    )


@pytest.mark.parametrize(
    "recipe", ["reft", "srppo", "reward-model", str(find_claim("48-reft").parent / "recipes" / "self-rewarding.yaml")]
)
def test_the_start_is_asked_without_what_only_training_makes(recipe: str) -> None:
    arm = arms.arm_recipe(check_comparison({**PLAIN, "arms": {"one": {"recipe": recipe}}}), "one")
    start = arms.base_recipe(arm)
    assert start is not None
    assert plan(start, Terminal(quiet=True))


def test_a_wrong_change_names_the_arm() -> None:
    spec = check_comparison({**PLAIN, "arms": {"sft": {"set": {"lrr": 1}}}})
    with pytest.raises(UserError, match="arm 'sft': override 'lrr': unknown key 'lrr': did you mean 'lr'"):
        arms.arm_recipe(spec, "sft")


def test_a_recipe_that_trains_nothing_is_no_arm(tmp_path: Path) -> None:
    path = tmp_path / "asks.yaml"
    path.write_text("data: {test: {task: chains, count: 3}}\nstages: {test: {kind: evaluate}}\n")
    with pytest.raises(UserError, match="arm 'nll': its recipe 'asks' trains nothing"):
        arms.arm_recipe(small(path), "nll")


def test_tuning_asks_one_data_set_and_not_what_is_reported() -> None:
    recipe = arms.arm_recipe(check_comparison(PLAIN), "sft")
    tuned = arms.tuning_recipe(recipe, "validation.accuracy", "sft")
    assert list(tuned.stages) == ["train", "validation"]
    assert tuned.stages["validation"].data == "validation"
    with pytest.raises(UserError, match="did you mean 'validation'"):
        arms.tuning_recipe(recipe, "validatoin.accuracy", "sft")
    doubled = recipe.model_copy(update={"stages": {**recipe.stages, "again": recipe.stages["test"]}})
    with pytest.raises(UserError, match="tune on validation data"):
        arms.tuning_recipe(doubled, "again.accuracy", "sft")


def test_every_combination_of_values_is_tried() -> None:
    assert len(arms.settings({"lr": [1, 2, 3], "batch_size": [8, 16]})) == 6
    assert arms.settings({}) == [{}]


def test_the_command_line_names_recipes_with_changes_of_their_own_and_of_all() -> None:
    spec = _spec(["sft", "sft:lr=1e-4,objective={name: asft},betas=[0.9, 0.95]", "batch_size=16"], {"seeds": 2})
    assert list(spec.arms) == ["sft", "sft-lr=1e-4-objective=__name____asft__-betas=_0.9__0.95_"]
    assert list(spec.arms.values())[1].set["betas"] == [0.9, 0.95]
    assert spec.set == {"batch_size": 16}


def test_more_seeds_go_on_in_the_same_folder_and_other_settings_do_not() -> None:
    names = {_spec(["sft", *more], {"seeds": seeds}).name for more, seeds in (([], 2), ([], 5), (["lr=1"], 2))}
    assert len(names) == 2


def test_the_command_line_changes_a_comparison_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: sft\nset: {lr: 0.1}\narms: {a: {}, b: {}}\nseeds: 3\n")
    spec = _spec([str(path), "batch_size=4"], {"seeds": 1})
    assert (spec.seeds, spec.set) == ([0], {"lr": 0.1, "batch_size": 4})


def test_changes_without_a_recipe_are_refused() -> None:
    with pytest.raises(UserError, match="no recipe is named, only changes"):
        _spec(["lr=1"], {})


@pytest.mark.parametrize("path", shipped_claims().values(), ids=shipped_claims())
def test_every_shipped_claim_is_about_arms_and_stages_that_there_are(path: Path) -> None:
    spec = read_comparison(path)
    assert spec.name == path.stem
    number = path.stem.partition("-")[0]
    assert spec.paper == (int(number) if number.isdigit() else None)
    assert spec.claims
    check_claims(spec, with_views(spec, {name: arms.arm_recipe(spec, name) for name in ran(spec)}))


def test_a_claim_about_a_stage_that_is_none_is_refused(tmp_path: Path) -> None:
    claim = {**CLAIM, "of": "nll"}
    recipes = {"nll": arms.arm_recipe(small(write_recipe(tmp_path)), "nll")}
    for metric, told in (("tset.accuracy", "did you mean 'test'"), ("before.accuracy", "has no stage 'before'")):
        with pytest.raises(UserError, match=told):
            check_claims(
                check_comparison({**PLAIN, "arms": {"nll": {}}, "claims": [{**claim, "metric": metric}]}), recipes
            )


def test_a_number_with_several_claim_files_is_refused_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: Path(f"{name}.yaml") for name in ("31-irm", "31-tl-training", "36-asft")}
    monkeypatch.setattr("posttrain.comparison.claims.shipped_claims", lambda: files)
    assert find_claim("31-irm") == find_claim("irm") == files["31-irm"]
    assert find_claim("36") == files["36-asft"]
    with pytest.raises(UserError, match="'31-irm' or '31-tl-training'"):
        find_claim("31")


def test_a_claim_is_found_by_number_and_by_name(tmp_path: Path) -> None:
    for name in ("36", "asft", "36-asft"):
        assert find_claim(name).stem == "36-asft"
    path = tmp_path / "mine.yaml"
    path.touch()
    assert find_claim(str(path)) == path
    with pytest.raises(UserError, match="no claim file is called '99'"):
        find_claim("99")


def test_a_comparison_that_ships_goes_by_its_name() -> None:
    spec = _spec(["continuum", "test.n=1"], {"seeds": 2})
    assert spec.name == "continuum"
    assert spec.seeds == [0, 1]
    assert spec.set["test.n"] == 1
    assert {"sft", "sft-then-grpo", "grpo"} <= set(spec.arms)
