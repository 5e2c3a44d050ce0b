from pathlib import Path

import pytest

from posttrain.errors import UserError
from posttrain.recipe import check_recipe, read_recipe, shipped_recipes, to_yaml
from posttrain.recipe.evaluation import evaluation_recipe
from posttrain.recipe.yaml_text import load_yaml

GOOD = """\
name: small
model: {path: tiny, weights: random}
data:
  train: {task: {name: chains}, count: 20}
  test: own.jsonl
stages:
  sft:
    kind: train
    data: train
  after: {kind: evaluate, model: sft}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid_and_survives_being_written_out(name):
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert check_recipe(load_yaml(to_yaml(recipe), name)) == recipe


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", None, "the file is empty"),
        ("# nothing\n", None, "the file is empty"),
        ("- a\n", None, "found a list"),
        ("text\n", None, "found text"),
        ("name: x\n", None, "'stages' is missing"),
        ("stages:\n", 1, "'stages' has to be a mapping of keys, found nothing"),
        ("stages:\n- {kind: train}\n", 1, "'stages' has to be a mapping of keys"),
        ("stages:\n\tsft: {}\n", 2, "indent with spaces, not tabs"),
        ("stages:\n  sft: [1\n", 3, "not valid YAML"),
        ("stages:\n  sft: {data: train}\n", 2, "stage 'sft' has no 'kind' (train, evaluate,"),
        ("stages:\n  sft: {kind: trian}\n", 2, "did you mean 'train'?"),
        ("stages:\n  sft: train\n", 2, "'stages.sft' has to be a mapping of keys, found \"train\""),
        ("stages:\n  1: {kind: train}\n", 1, "the key 1 in 'stages' has to be text: put it in quotes"),
        (GOOD + "sede: 3\n", 11, "unknown key 'sede': did you mean 'seed'?"),
        (GOOD.replace("data: train\n", "data: train\n    lr: 1\n    lr: 2\n"), 11, "'lr' is there twice"),
        (GOOD.replace("data: train\n", "lrr: 3\n"), 9, "unknown key 'stages.sft.lrr': did you mean 'lr'?"),
        (GOOD.replace("data: train\n", "max_seq_length: 3\n"), 9, "here it is called 'max_length'"),
        (GOOD.replace("data: train\n", "lr: fast\n"), 9, "'stages.sft.lr' has to be a number, found \"fast\""),
        (GOOD.replace("data: train\n", "lr: -1\n"), 9, "'stages.sft.lr' has to be above 0, found -1"),
        (GOOD.replace("data: train\n", "batch_size: 2.5\n"), 9, "has to be a whole number, found 2.5"),
        (GOOD.replace("data: train\n", "betas: [0.9]\n"), 9, "'stages.sft.betas' has to have more items"),
        (GOOD.replace("data: train\n", "objective: 5\n"), 9, "has to be text or a mapping of keys or a list, found 5"),
        (GOOD.replace("data: train\n", "objective: [nll, 5]\n"), 9, "'stages.sft.objective.1' has to be text"),
        (GOOD.replace("data: train\n", "schedule: cosin\n"), 9, "'cosine' or 'wsd', found \"cosin\""),
        (GOOD.replace("data: train\n", "watch: {data: test, evry: 3}\n"), 9, "did you mean 'every'?"),
        (GOOD.replace("model: sft", "n: 4"), 10, "at temperature 0 all draws are the same"),
        (GOOD.replace("weights: random", "weihgts: random"), 2, "unknown key 'model.weihgts': did you mean 'weights'?"),
        (GOOD.replace("count: 20", "count: 20, path: x"), 4, "give exactly one of path, task, stage"),
        (GOOD.replace("count: 20", "seed: 1"), 4, "a task's data need 'count'"),
        (GOOD.replace("own.jsonl", "{mix: [{pth: a}]}"), 5, "unknown key 'data.test.mix.0.pth': did you mean 'path'?"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_with_its_line(tmp_path, text, line, said):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as refused:
        read_recipe(path)
    assert said in str(refused.value)
    assert f"{path}:{line}:" in str(refused.value) or (line is None and f"{path}:" in str(refused.value))


def test_several_mistakes_are_said_at_once(tmp_path):
    path = write(tmp_path, GOOD.replace("data: train\n", "lrr: 3\n    epoch: 2\n"))
    with pytest.raises(UserError, match=r"lr.*\n.*epochs"):
        read_recipe(path)


def test_a_recipe_that_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: ä".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_recipe(str(tmp_path / "latin.yaml"))
    with pytest.raises(UserError, match="does not exist"):
        read_recipe(str(tmp_path / "nothing.yaml"))
    with pytest.raises(UserError, match="did you mean 'sft'"):
        read_recipe("stf")


def test_overrides_reach_the_recipe_one_stage_or_every_stage_that_has_the_key(tmp_path):
    path = write(tmp_path, GOOD)
    given = [
        "seed=3",
        "lr=1e-4",
        "after.n=2",
        "temperature=0.5",
        "data.train.count=7",
        "data.test=other.jsonl",
        "model=a/b",
    ]
    recipe = read_recipe(path, given)
    assert (recipe.seed, recipe.stages["sft"].lr, recipe.stages["after"].n) == (3, 1e-4, 2)
    assert recipe.stages["after"].temperature == 0.5
    assert (recipe.data["train"].count, recipe.data["test"].path) == (7, "other.jsonl")
    assert (recipe.model.path, recipe.model.weights) == ("a/b", "pretrained")


def test_overrides_open_short_forms_and_defaults(tmp_path):
    path = write(
        tmp_path, GOOD.replace("model: {path: tiny, weights: random}\n", "").replace("{name: chains}", "chains")
    )
    given = ["model.weights=random", "data.train.task.part=test", "data.test.count=3", "objective=nll"]
    recipe = read_recipe(path, [*given, "objective.label_smoothing=0.1", "adapter=lora", "adapter.rank=4"])
    assert (recipe.model.path, recipe.model.weights) == ("tiny", "random")
    assert recipe.data["train"].task == {"name": "chains", "part": "test"}
    assert (recipe.data["test"].path, recipe.data["test"].count) == ("own.jsonl", 3)
    assert recipe.stages["sft"].objective == {"name": "nll", "label_smoothing": 0.1}
    assert recipe.stages["sft"].adapter == {"name": "lora", "rank": 4}


def test_an_override_changes_an_item_of_a_list(tmp_path):
    path = write(tmp_path, GOOD.replace("own.jsonl", "{mix: [a.jsonl, b.jsonl]}"))
    recipe = read_recipe(path, ["data.test.mix.1=c.jsonl"])
    assert [part.path for part in recipe.data["test"].mix] == ["a.jsonl", "c.jsonl"]
    with pytest.raises(UserError, match="no item of the list, which has 2, from 0"):
        read_recipe(path, ["data.test.mix.2=c.jsonl"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr", "not of the form key.path=value"),
        ("=3", "not of the form key.path=value"),
        ("lrr=3", "unknown key 'lrr': did you mean 'lr'?"),
        ("learning_rate=3", "here it is called 'lr'"),
        ("attention=eager", "did you mean 'model.attention'?"),
        ("count=3", "did you mean 'data.train.count' or 'data.test.count'?"),
        ("sft.lrr=3", "override 'sft.lrr=3': unknown key 'stages.sft.lrr': did you mean 'lr'?"),
        ("lr=fast", "override 'lr=fast': 'stages.sft.lr' has to be a number"),
        ("lr.peak=1", "override 'lr.peak=1': 'stages.sft.lr' has to be a number"),
        ("sft.watch.every=3", "override 'sft.watch.every=3': 'stages.sft.watch.data' is missing"),
        ("name.first=3", "'name' is no mapping"),
        ("stages.sft=3", "override 'stages.sft=3': 'stages.sft' has to be a mapping of keys"),
    ],
)
def test_a_wrong_override_is_refused_by_its_own_words(tmp_path, override, said):
    with pytest.raises(UserError) as refused:
        read_recipe(write(tmp_path, GOOD), [override])
    assert said in str(refused.value)
    assert "recipe.yaml" not in str(refused.value)


def test_an_evaluation_is_a_recipe_of_one_stage():
    recipe = evaluation_recipe(
        "runs/x/models/sft", task="chains", options=["part=test"], difficulty="harder", n=4, temperature=1
    )
    assert recipe.data["chains"].task == {"name": "chains", "part": "test"}
    assert (recipe.data["chains"].difficulty, recipe.data["chains"].count) == ("harder", 300)
    stage = recipe.stages["evaluate"]
    assert (stage.model, stage.n, recipe.models["sft"].path) == ("sft", 4, "runs/x/models/sft")


@pytest.mark.parametrize("given", [{}, {"task": "chains", "path": "a.jsonl"}, {"path": "a.jsonl", "options": ["a=1"]}])
def test_an_evaluation_needs_a_task_or_a_file(given):
    with pytest.raises(UserError, match="--task"):
        evaluation_recipe("tiny", **given)


def test_a_stage_that_an_extending_recipe_adds_stands_where_it_is_written(tmp_path):
    write(tmp_path, GOOD)
    path = tmp_path / "more.yaml"
    stages = "{drawn: {kind: generate, data: train}, sft: {data: drawn, lr: 0.5}, last: {kind: evaluate}}"
    path.write_text(f"extends: recipe.yaml\nstages: {stages}\n", encoding="utf-8")
    recipe = read_recipe(str(path))
    assert list(recipe.stages) == ["drawn", "sft", "after", "last"]
    assert (recipe.stages["sft"].data, recipe.stages["sft"].lr) == ("drawn", 0.5)
    assert recipe.stages["after"].model == "sft"


def test_a_stage_that_is_null_is_left_out(tmp_path):
    path = tmp_path / "more.yaml"
    write(tmp_path, GOOD)
    path.write_text("extends: recipe.yaml\nstages: {after: null}\n", encoding="utf-8")
    assert list(read_recipe(str(path)).stages) == ["sft"]
    assert list(read_recipe(write(tmp_path, GOOD), ["after=null"]).stages) == ["sft"]


def test_steps_are_those_of_training_and_not_the_functions_of_a_curate_stage(tmp_path):
    text = GOOD.replace("  after:", "  clean: {kind: curate, steps: [deduplicate]}\n  after:")
    recipe = read_recipe(write(tmp_path, text), ["steps=7"])
    assert (recipe.stages["sft"].steps, recipe.stages["clean"].steps) == (7, ["deduplicate"])
    assert read_recipe(write(tmp_path, text), ["clean.steps=[length]"]).stages["clean"].steps == ["length"]
