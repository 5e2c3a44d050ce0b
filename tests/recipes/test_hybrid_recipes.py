"""The hybrids of sheet 52, from recipe to weights."""

from pathlib import Path
from typing import Any

import pytest
from running import assert_survives_being_killed, metrics, run_quietly

from posttrain.errors import UserError
from posttrain.recipe import Recipe, read_recipe

SMALL = ["data.train.count=12", "train.steps=2", "train.rollouts.prompts=3", "train.rollouts.n=4"]
SMALL += ["train.rollouts.max_new_tokens=24"]


def small(name: str, out: Path, *more: str) -> Recipe:
    recipe = read_recipe(name, [*SMALL, f"out={out}", *more])
    return recipe.model_copy(update={"stages": {"train": recipe.stages["train"]}})


def rows_of(name: str, out: Path, *more: str) -> list[dict[str, Any]]:
    run_quietly(small(name, out, *more))
    rows = metrics(out)
    assert all(row["grad_norm"] < 1e3 for row in rows)
    return rows


@pytest.mark.parametrize("name", ["luffy", "srft"])
def test_one_answer_of_a_group_is_its_demonstration_which_is_right(name: str, tmp_path: Path) -> None:
    for row in rows_of(name, tmp_path):
        assert row["begun"] == pytest.approx(1 / 4)
        assert row["reward/begun"] == 1.0
        assert row["length"] > 1
        assert row["srft/demonstration_p" if name == "srft" else "demonstration_p"] > 0


def test_hints_become_shorter_until_there_are_none(tmp_path: Path) -> None:
    rows = rows_of("uft", tmp_path, "train.rollouts.begin.share.steps=2", "train.steps=3")
    assert rows[0]["begun"] > rows[1]["begun"] > rows[2]["begun"] == 0
    assert rows[0]["nll/loss"] > 0


def test_too_hard_questions_are_imitated_in_the_same_step(tmp_path: Path) -> None:
    rows = rows_of("hpt", tmp_path, "train.rollouts.demonstrate=0.5")
    assert sum(row["demonstrated"] for row in rows) > 0
    assert all(row["nll/loss"] > 0 for row in rows if row["demonstrated"])


COLLECTED = ["train.rollouts.demonstrate=1.0", "train.rollouts.collect=4", "train.steps=4"]


def test_collected_demonstrations_are_a_step_of_their_own(tmp_path: Path) -> None:
    rows = rows_of("relift", tmp_path, *COLLECTED)
    assert ["reward" in row for row in rows] == [True, True, False, True]  # 3 and 3 are 4 or more
    assert [row["sequences"] for row in rows] == [12, 12, 6, 12]


def test_killed_before_that_step_the_demonstrations_still_come(tmp_path: Path) -> None:
    more = [*COLLECTED, "train.checkpoint_every=1"]
    assert_survives_being_killed(lambda name: small("relift", tmp_path / name, *more), tmp_path, 2)


def test_prefixes_are_given_where_nothing_is_right(tmp_path: Path) -> None:
    rows = rows_of("bread", tmp_path)
    assert max(row["begun"] for row in rows) > 0
    assert min(row["begun"] for row in rows) < 0.75


def test_steps_end_where_the_line_does_and_are_compared_with_the_experts(tmp_path: Path) -> None:
    for row in rows_of("srl", tmp_path):
        assert row["truncated"] == 0
        assert row["errors"] == 0
        assert row["length"] < 24
        assert 0.3 < row["reward"] <= 1


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("hpt", ["train.objective=grpo"], "give every term 'origins'"),
        ("hpt", ["train.objective={name: grpo, origins: [rollout]}"], "add one that counts demonstrations"),
        ("luffy", ["train.rollouts.collect=4"], "collect"),
        ("bread", ["train.rollouts.n=6"], "multiple of the 4 rounds"),
    ],
)
def test_what_cannot_be_learned_is_refused(name: str, more: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run_quietly(small(name, tmp_path / "run", *more))
