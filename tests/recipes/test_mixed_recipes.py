"""Own answers and demonstrations in the same steps, from recipe to weights."""

from pathlib import Path

import pytest
from running import assert_survives_being_killed, metrics, run_quietly

from posttrain.errors import UserError
from posttrain.recipe import Recipe, read_recipe

SMALL = ["data.train.count=12", "data.expert.count=10", "train.steps=3", "train.rollouts.prompts=3"]
SMALL += ["train.rollouts.n=4", "train.rollouts.max_new_tokens=24", "train.demonstrations.batch_size=4"]


def small(name: str, out: Path, *more: str) -> Recipe:
    recipe = read_recipe(name, [*SMALL, f"out={out}", *more])
    return recipe.model_copy(update={"stages": {"train": recipe.stages["train"]}})


def test_the_weight_of_demonstrations_falls_and_is_logged(tmp_path: Path) -> None:
    run_quietly(small("chord-mu", tmp_path))
    rows = metrics(tmp_path)
    assert [row["nll/weight"] for row in rows] == pytest.approx([0.9, 0.6875, 0.2625])
    assert [row["grpo/weight"] + row["nll/weight"] for row in rows] == pytest.approx([1, 1, 1])
    for row in rows:
        assert row["sequences"] == 3 * 4 + 4
        assert row["loss"] == pytest.approx(
            row["grpo/weight"] * row["grpo/loss"] + row["nll/weight"] * row["nll/loss"], rel=1e-4
        )


def test_chord_phi_trains(tmp_path: Path) -> None:
    run_quietly(small("chord-phi", tmp_path))
    assert all(0 < row["chord_phi/loss"] <= 0.27 for row in metrics(tmp_path))


def test_without_weight_on_either_it_is_the_other_alone(tmp_path: Path) -> None:
    def objective(mu: float) -> str:
        terms = "{{name: grpo, origins: [rollout], weight: {}}}, {{name: nll, origins: [demonstration], weight: {}}}"
        return f"objective=[{terms.format(1 - mu, mu)}]"

    run_quietly(small("chord-mu", tmp_path / "rl", objective(0.0)))
    alone = read_recipe("grpo", [*(key for key in SMALL if "expert" not in key and "demonstr" not in key)])
    alone = alone.model_copy(update={"stages": {"train": alone.stages["train"]}, "out": str(tmp_path / "grpo")})
    run_quietly(alone)
    mixed, plain = (metrics(tmp_path / name) for name in ("rl", "grpo"))
    assert [row["grad_norm"] for row in mixed] == pytest.approx([row["grad_norm"] for row in plain], rel=1e-3)


def test_a_weight_may_follow_the_reward_of_the_same_step(tmp_path: Path) -> None:
    weight = "{name: shortfall, of: reward, below: 0.9}"
    terms = "{name: grpo, origins: [rollout]}, {name: nll, origins: [demonstration], weight: " + weight + "}"
    run_quietly(small("chord-mu", tmp_path, f"objective=[{terms}]"))
    for row in metrics(tmp_path):
        assert row["nll/weight"] == pytest.approx(0.9 - row["reward"], rel=1e-5)


def test_killed_in_the_middle_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path) -> None:
    more = ["train.rollouts.mini_batches=2", "train.steps=4", "train.checkpoint_every=1"]
    assert_survives_being_killed(lambda name: small("chord-mu", tmp_path / name, *more), tmp_path, 1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["objective=[grpo, {name: nll, origins: [demonstration]}]"], "'grpo' does not say which it counts"),
        (["train.demonstrations.data=experts"], "data 'experts' is neither"),
        (["train.rollouts=null"], "'demonstrations' stand beside rollouts"),
    ],
)
def test_what_mixes_wrongly_is_refused_before_anything_is_drawn(more: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run_quietly(small("chord-mu", tmp_path / "run", *more))
    assert not (tmp_path / "run" / "samples").exists()
