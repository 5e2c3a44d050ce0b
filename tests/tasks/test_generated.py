import ast
import json
import subprocess
import sys
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.tasks.chains import HEADER, Chains
from posttrain.tasks.countdown import CountdownTask
from posttrain.tasks.generated import GeneratedTask, part_of
from posttrain.tasks.multiplication import Multiplication
from posttrain.tasks.task import Difficulty, tasks

TASKS = [Chains, Multiplication, CountdownTask]
DIFFICULTIES: list[Difficulty] = ["in", "harder"]

every_task = pytest.mark.parametrize("task", [kind() for kind in TASKS], ids=lambda task: task.name)
every_difficulty = pytest.mark.parametrize("difficulty", DIFFICULTIES)


class Dice(GeneratedTask[int]):
    """Six problems in all: small enough to run out."""

    name = "dice"
    styles = ("steps",)

    def problem(self, rng: Random, difficulty: Difficulty) -> int:
        return rng.randint(1, 6)

    def prompt(self, problem: int) -> str:
        return f"Say {problem}."

    def demonstration(self, problem: int, style: str) -> str:
        return f"<answer>{problem}</answer>"

    def answer(self, problem: int) -> str:
        return str(problem)


def prompts(samples: list[Sample]) -> list[str]:
    return [sample.prompt_text for sample in samples]


@every_task
@every_difficulty
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_demonstration_in_every_style_is_right(
    task: GeneratedTask[object], difficulty: Difficulty, seed: int
) -> None:
    for style in task.styles:
        for sample in task.samples(20, seed, difficulty=difficulty, style=style):
            score = task.verify(sample, sample.response_text)
            assert score.value == 1, (sample.prompt_text, sample.response_text, score)
            assert score.parts["correct"] == score.parts["format"] == 1
            assert (sample.task, sample.meta["style"]) == (task.name, style)


@every_task
@every_difficulty
def test_every_step_is_arithmetically_true(task: GeneratedTask[object], difficulty: Difficulty) -> None:
    equations = 0
    for style in set(task.styles) - {"direct", "program"}:
        for sample in task.samples(100, 5, difficulty=difficulty, style=style):
            thoughts = sample.response_text.partition("</think>")[0]
            for word in thoughts.replace(",", " ").split():
                left, equals, right = word.removeprefix("<think>").strip(".").partition("=")
                if equals:
                    equations += 1
                    assert eval(compile(ast.parse(left, mode="eval"), "", "eval")) == int(right), sample
    assert equations > 100


@every_task
def test_samples_depend_on_seed_and_difficulty_but_not_on_style(task: GeneratedTask[object]) -> None:
    default = task.samples(50, 3)
    assert prompts(default) == prompts(type(task)().samples(50, 3))
    assert default[:10] == task.samples(10, 3)
    for style in task.styles:
        asked = prompts(task.samples(50, 3, style=style))
        assert [prompt.removesuffix(f"\n{HEADER}") for prompt in asked] == prompts(default)
    assert not set(prompts(default)) & set(prompts(task.samples(50, 3, difficulty="harder")))


@every_task
@every_difficulty
def test_problems_are_distinct_and_other_seeds_bring_others(
    task: GeneratedTask[object], difficulty: Difficulty
) -> None:
    first, second = (set(prompts(task.samples(500, seed, difficulty=difficulty))) for seed in (0, 1))
    assert len(first) == len(second) == 500
    assert len(first & second) < 50


@every_task
def test_harder_problems_need_longer_work(task: GeneratedTask[object]) -> None:
    easy, hard = (
        sum(len(sample.response_text) for sample in task.samples(200, 0, difficulty=difficulty)) / 200
        for difficulty in DIFFICULTIES
    )
    assert hard > 1.15 * easy


@every_task
def test_training_and_test_part_share_no_problem(task: GeneratedTask[object]) -> None:
    train, test = (
        {
            task.canonical(problem)
            for seed in range(3)
            for problem in type(task)(part=part)._problems(300, Random(seed), "in")
        }
        for part in ("train", "test")
    )
    assert not train & test
    assert {part_of(text) for text in test} == {"test"}
    parts = [sample.meta["part"] for sample in task.samples(800, 0)]
    assert 50 < parts.count("test") < 150


@every_task
def test_an_unknown_style_difficulty_or_count_is_the_users_error(task: GeneratedTask[object]) -> None:
    with pytest.raises(UserError, match="did you mean 'steps'"):
        task.samples(1, 0, style="step")
    with pytest.raises(UserError, match="known: harder, in"):
        task.samples(1, 0, difficulty="xyz")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="-1 samples"):
        task.samples(-1, 0)


def test_a_space_can_be_used_up_but_not_overdrawn() -> None:
    assert sorted(prompts(Dice().samples(6, 0))) == [f"Say {n}." for n in range(1, 7)]
    with pytest.raises(UserError, match=r"about 6 distinct problems .* but 7 were asked for"):
        Dice().samples(7, 0)


def test_recipes_build_tasks_by_name_with_their_options() -> None:
    name, options = tasks.options({"name": "chains", "part": "test"})
    task = tasks[name](**options)
    assert task.samples(1, 0)[0].meta["part"] == "test"
    with pytest.raises(UserError, match="option 'part'"):
        tasks.options({"name": "chains", "part": "tests"})


def test_another_process_makes_the_same_samples() -> None:
    program = (
        "import json; from posttrain.tasks.countdown import CountdownTask as T; "
        "print(json.dumps([s.to_json() for s in T().samples(20, 7, style='search')]))"
    )
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert json.loads(printed) == [sample.to_json() for sample in CountdownTask().samples(20, 7, style="search")]
