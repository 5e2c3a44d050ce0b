"""Answers that begin with part of a demonstration, from recipe to weights."""

import json
from pathlib import Path

import pytest
from running import assert_survives_being_killed, metrics, run_quietly

from posttrain.errors import UserError
from posttrain.recipe import Recipe, read_recipe

SMALL = ["data.train.count=12", "train.steps=3", "train.rollouts.prompts=3", "train.rollouts.n=4"]
SMALL += ["train.rollouts.max_new_tokens=24"]


def small(name: str, out: Path, *more: str) -> Recipe:
    recipe = read_recipe(name, [*SMALL, f"out={out}", *more])
    return recipe.model_copy(update={"stages": {"train": recipe.stages["train"]}})


def test_prefixes_become_shorter_and_help(tmp_path: Path) -> None:
    run_quietly(small("prefix-rft", tmp_path))
    rows = metrics(tmp_path)
    assert rows[0]["begun"] == pytest.approx(0.95 / 4, abs=0.03)  # one of four
    assert rows[0]["reward/begun"] == 1.0  # all but the last tokens are given
    assert rows[2]["begun"] < rows[0]["begun"]


def test_a_prefix_without_any_is_the_plain_recipe(tmp_path: Path) -> None:
    none = "train.rollouts.begin={name: prefix, low: 0.0, high: 0.0}"
    run_quietly(small("prefix-rft", tmp_path / "none", none))
    run_quietly(small("prefix-rft", tmp_path / "plain", "train.rollouts.begin=null", "train.transforms=[]"))
    for ours, theirs in zip(metrics(tmp_path / "none"), metrics(tmp_path / "plain"), strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


def test_by_the_split_reading_a_prefix_is_worth_what_it_adds(tmp_path: Path) -> None:
    run_quietly(small("prefix-rft", tmp_path, "train.rollouts.advantage=split", "train.steps=1"))
    answers = [json.loads(line) for line in (tmp_path / "samples" / "train.jsonl").read_text().splitlines()]
    for *plain, begun in zip(*(answers[draw::4] for draw in range(4)), strict=True):
        mean = sum(answer["value"] for answer in plain) / 3
        assert [answer["advantage"] for answer in plain] == pytest.approx([a["value"] - mean for a in plain], abs=1e-4)
        assert 1 - mean <= begun["advantage"] <= 1  # all of them are right: their prefixes are worth what they add


def test_hints_are_imitated_and_not_reinforced(tmp_path: Path) -> None:
    run_quietly(small("seele", tmp_path))
    for row in metrics(tmp_path):
        assert 0.2 < row["begun"] < 0.95  # nearly everything at first, then what the curves say
        assert row["reward/round1"] == 1.0
        rounds = [row[f"reward/round{part}"] for part in (1, 2, 3, 4)]
        assert sum(rounds) / 4 == pytest.approx(row["reward"])
        assert row["nll/loss"] > 0
        assert row["tokens"] > row["length"] * 12  # the hints count, in their own term


def test_killed_in_the_middle_the_hints_go_on(tmp_path: Path) -> None:
    more = ["train.steps=4", "train.checkpoint_every=1"]
    assert_survives_being_killed(lambda name: small("seele", tmp_path / name, *more), tmp_path, 2)


def test_every_step_of_a_demonstration_that_ends_in_a_line_break_can_be_compared(tmp_path: Path) -> None:
    row = {"prompt": "Compute 1+2+3.", "response": "1+2=3\n3+3=6\n"}
    rows = [json.dumps({**row, "prompt": f"{row['prompt']} ({number})"}) for number in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    run_quietly(small("srl", tmp_path / "run", f"data.train={{path: {tmp_path / 'train.jsonl'}}}", "train.steps=4"))
    answers = [json.loads(line) for line in (tmp_path / "run/samples/train.jsonl").read_text().splitlines()]
    assert {answer["error"] for answer in answers} == {None}
    assert {answer["info"]["expected"] for answer in answers} == {"1+2=3", "3+3=6"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["train.rollouts.begin=prefx"], "unknown beginning 'prefx'"),
        (["train.rollouts.begin={name: prefix, low: much}"], "option 'low' must be a number"),
        (["train.rollouts.begin=hint"], "does not say whether it learns from them"),
        (
            ["train.rollouts.begin=branch", "train.rollouts.choose=pairs", "objective=simpo"],
            "compares answers behind the same prefix alone",
        ),
        (["train.rollouts.begin={name: hint, rounds: 3}", "objective={name: grpo, origins: [rollout]}"], "multiple of"),
        (["train.rollouts.turns=2"], "have one turn"),
        (["train.rollouts.max_new_tokens=990"], "lower max_new_tokens"),
    ],
)
def test_what_cannot_begin_is_refused_before_anything_is_drawn(more: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run_quietly(small("prefix-rft", tmp_path / "run", *more))
    assert not (tmp_path / "run" / "samples").exists()
