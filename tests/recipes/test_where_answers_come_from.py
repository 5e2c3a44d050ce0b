"""Rollouts in several turns, and rollouts that a server draws, from a recipe to trained weights."""

from collections.abc import Sequence as List
from pathlib import Path
from typing import Any

import pytest
from running import largest_difference, metrics, run_quietly, save_tiny, weights
from serving import serving

from posttrain.data import Message, Sample, user
from posttrain.errors import UserError
from posttrain.policy import Policy
from posttrain.recipe import Recipe, read_recipe
from posttrain.rewards import Attempt, Score, reward
from posttrain.tasks import tasks

SMALL = ["train.steps=2", "data.train.count=8", "train.rollouts.prompts=4", "train.rollouts.n=2"]
SMALL += ["train.rollouts.max_new_tokens=10", "train.rollouts.reward=test_even"]


@reward("test_even")
def even(attempt: Attempt) -> float:
    return float((attempt.tokens % 2 == 0).mean())


@tasks.register("test_patience")
class Patience:
    """Asks twice, whatever is said."""

    name = "test_patience"
    styles = ("plain",)

    def samples(self, count: int, seed: int, **options: Any) -> list[Sample]:
        return [Sample((user(f"Say {number}"),), task=self.name, answer="1") for number in range(count)]

    def verify(self, sample: Sample, answer: str) -> Score:
        return Score(float(answer == sample.answer))

    def environment(self, sample: Sample, turns: List[Message]) -> str | Message | None:
        return user("Again") if len(turns) < 3 else None


def only_training(out: Path, *more: str) -> Recipe:
    recipe = read_recipe("grpo", [*SMALL, f"out={out}", *more])
    return recipe.model_copy(update={"stages": {"train": recipe.stages["train"]}})


def test_what_the_environment_says_is_read_and_not_learned(tmp_path: Path) -> None:
    talk = ["data.train.task=test_patience", "train.rollouts.turns=2"]
    run_quietly(only_training(tmp_path / "once", "data.train.task=test_patience"))
    run_quietly(only_training(tmp_path / "twice", *talk))
    once, twice = (metrics(tmp_path / name)[0] for name in ("once", "twice"))
    assert twice["length"] > once["length"]
    assert twice["tokens"] == pytest.approx(twice["length"] * 8)  # only what was drawn is trained
    assert twice["input_tokens"] - twice["tokens"] > once["input_tokens"] - once["tokens"]
    # what the engine thought in two turns is what the trainer thinks of the whole
    assert twice["nll"] == pytest.approx(twice["sampled_entropy"], abs=1e-4)


def test_a_task_without_an_environment_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a task with an environment"):
        run_quietly(only_training(tmp_path, "train.rollouts.turns=2"))


def test_a_server_that_gets_the_weights_draws_as_the_policy_itself_would(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    model = [f"model={base}", "lr=1e-3"]
    run_quietly(only_training(tmp_path / "local", *model))
    with serving(base) as server:
        at = f"{{url: {server.url}, model: policy, sync: folder, folder: {tmp_path / 'shared'}}}"
        run_quietly(only_training(tmp_path / "served", *model, f"train.rollouts.server={at}"))
        rows = metrics(tmp_path / "served")
    assert [row["probe_gap"] < 1e-4 for row in rows] == [True, True]
    assert rows[1]["nll"] == pytest.approx(rows[1]["sampled_entropy"], abs=1e-4)
    start = Policy.load(str(base)).model.state_dict()
    for name in ("local", "served"):
        trained = weights(tmp_path / name, "train")
        assert largest_difference(trained, {key: start[key] for key in trained}) > 0
