"""Own answers and demonstrations in the same steps, from recipe to weights."""

from pathlib import Path
from typing import Any

import pytest
from running import assert_survives_being_killed, manifest, metrics, run_quietly

from posttrain.errors import UserError
from posttrain.recipe import Recipe, read_recipe

SMALL = ["train.steps=3", "train.rollouts.prompts=3"]
SMALL += ["train.rollouts.n=4", "train.rollouts.max_new_tokens=24", "train.demonstrations.batch_size=4"]


def small(name: str, out: Path, *more: str) -> Recipe:
    few = {"data.train.count": 12, "data.expert.count": 10} if name != "continuum" else {}
    recipe = read_recipe(name, [*SMALL, *(f"{k}={v}" for k, v in few.items()), f"out={out}", *more])
    return recipe.model_copy(update={"stages": {"train": recipe.stages["train"]}})


def imitated(folder: Path) -> float:
    return float(manifest(folder)["stages"]["train"]["summary"]["imitated"])


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


def test_one_key_chooses_another_weight_of_chord(tmp_path: Path) -> None:
    run_quietly(small("chord-phi", tmp_path, "train.objective.1.by=entropy_top"))
    assert all(0.05 <= row["chord_phi/weight"] < 0.06 for row in metrics(tmp_path))


def test_without_weight_on_either_it_is_the_other_alone(tmp_path: Path) -> None:
    def alone(name: str, *more: str) -> list[Any]:
        recipe = read_recipe(name, [f"out={tmp_path / name}", "data.train.count=12", "train.steps=3", *more])
        run_quietly(recipe.model_copy(update={"stages": {"train": recipe.stages["train"]}}))
        return [row["grad_norm"] for row in metrics(tmp_path / name)]

    plain = ["objective=[grpo, {name: nll, weight: 0}]", *(key for key in SMALL if "train.rollouts" in key)]
    objective = "objective=[{name: grpo, origins: [rollout]}, {name: nll, origins: [demonstration]}]"
    for imitation, expected in [
        (0, alone("grpo", "objective=grpo", *plain[1:])),
        (1, alone("sft", "batch_size=4", "schedule=constant", "warmup=0.05", "lr=5e-5")),
    ]:
        out = tmp_path / f"mixed-{imitation}"
        run_quietly(small("chord-mu", out, objective, f"imitation={imitation}", "train.demonstrations.data=train"))
        rows = metrics(out)
        assert [row["grad_norm"] for row in rows] == pytest.approx(expected, rel=1e-3)
        assert all(("reward" in row) == (imitation == 0) and "imitated" not in row for row in rows)
        assert imitated(out) == imitation


def test_from_imitation_to_exploration_at_a_step(tmp_path: Path) -> None:
    run_quietly(small("continuum", tmp_path, "imitation={name: switch, start: 1, end: 0, at: 2}"))
    assert [("reward" in row, row["sequences"]) for row in metrics(tmp_path)] == [(False, 4), (False, 4), (True, 12)]
    assert imitated(tmp_path) == pytest.approx(2 / 3, abs=1e-3)
    assert [row.get("imitated") for row in metrics(tmp_path)] == [None, None, 0]  # from where it is mixed


def test_what_demonstrations_weigh_among_all_is_logged(tmp_path: Path) -> None:
    run_quietly(small("continuum", tmp_path))
    assert all(0.2 < row["imitated"] < 1 for row in metrics(tmp_path))


def test_a_weight_may_follow_the_reward_of_the_same_step(tmp_path: Path) -> None:
    run_quietly(small("chord-mu", tmp_path, "imitation={name: shortfall, of: reward, below: 0.9}"))
    for row in metrics(tmp_path):
        assert row["nll/weight"] == pytest.approx(0.9 - row["reward"], rel=1e-5)
        assert row["grpo/weight"] == pytest.approx(0.1 + row["reward"], rel=1e-5)


USERS = """
from posttrain.schedules import schedule

@schedule("less_with_reward")
def less_with_reward(*, slope: float):
    return lambda step: 1 - slope * step.measured.get("reward", 0.0)
"""


def test_so_may_a_users_own_though_without_a_reward_it_would_say_that_nothing_is_to_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "users.py").write_text(USERS)
    imitation = "imitation={name: less_with_reward, slope: 0.5}"
    run_quietly(small("chord-mu", tmp_path / "run", f"imports=[{tmp_path / 'users.py'}]", imitation))
    rows = metrics(tmp_path / "run")
    assert len(rows) == 3
    for row in rows:
        assert row["nll/weight"] == pytest.approx(1 - 0.5 * row["reward"], rel=1e-5)


def test_killed_in_the_middle_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path) -> None:
    more = ["train.rollouts.mini_batches=2", "train.steps=4", "train.checkpoint_every=1"]
    assert_survives_being_killed(lambda name: small("chord-mu", tmp_path / name, *more), tmp_path, 1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["objective=[grpo, {name: nll, origins: [demonstration]}]"], "'grpo' does not say which it counts"),
        (["train.demonstrations.data=experts"], "data 'experts' is neither"),
        (["train.rollouts=null"], "'demonstrations' stand beside rollouts"),
        (["train.imitation=1.5"], "imitation must be from 0 .* to 1 .*, found 1.5"),
        (["train.imitation=half"], "imitation must be a number"),
        (["train.demonstrations=null"], "'imitation' weighs demonstrations against own answers"),
        (["objective={name: grpo, origins: [rollout, demonstration]}"], "the term 'grpo' counts both"),
    ],
)
def test_what_mixes_wrongly_is_refused_before_anything_is_drawn(more: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run_quietly(small("chord-mu", tmp_path / "run", *more))
    assert not (tmp_path / "run" / "samples").exists()
