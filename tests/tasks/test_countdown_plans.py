import re

import pytest

from posttrain.rewards.plan_adherence import plan_and_execution
from posttrain.tasks.countdown import Countdown, evaluate, ways
from posttrain.tasks.countdown_plans import CountdownPlans, Kind, titles

NUMBERS = (3, 13, 19)
PLANS = CountdownPlans()
PROBLEM = Countdown(NUMBERS, ways(NUMBERS, 29)[0])
SAMPLES = {style: CountdownPlans(kind="sums").samples(120, 0, style=style) for style in PLANS.styles}


def parts(style: str, name: str) -> float:
    found = [PLANS.verify(sample, sample.response_text).parts[name] for sample in SAMPLES[style]]
    return sum(found) / len(found)


def test_all_ways_are_found_once_with_large_numbers_first() -> None:
    found = ways(NUMBERS, 29)
    assert [way.steps for way in found] == [
        ("19+13=32", "32-3=29"),
        ("19-3=16", "16+13=29"),
        ("13-3=10", "19+10=29"),
    ]
    assert {way.end.value for way in found} == {29}
    assert all(evaluate(way.end.text) == (29, [3, 13, 19]) for way in found)


def test_a_plan_has_no_values_but_the_given_ones() -> None:
    assert [titles(NUMBERS, way) for way in ways(NUMBERS, 29)] == [
        ["19+13", "a-3"],
        ["19-3", "a+13"],
        ["13-3", "19+a"],
    ]
    assert titles((4, 2, 2), ways((4, 2, 2), 16)[0]) == ["4*2", "a*2"]
    four = next(way for way in ways((5, 4, 3, 2), 14) if way.steps[:2] == ("5+4=9", "3+2=5"))
    assert titles((5, 4, 3, 2), four) == ["5+4", "3+2", "a+b"]


def test_a_problem_is_planned_and_worked() -> None:
    assert PLANS.demonstration(PROBLEM, "execution") == (
        "<execute>1. 19+13\n19+13=32, left 3 32\n2. a-3\n32-3=29, left 29\n<answer>19+13-3</answer></execute>"
    )


def test_every_demonstration_is_right() -> None:
    for style, samples in SAMPLES.items():
        assert all(PLANS.verify(sample, sample.response_text).value == 1 for sample in samples), style


def test_plans_may_miss_and_their_executions_then_say_no() -> None:
    samples = CountdownPlans(missing=0.5).samples(200, 0)
    said = [sample.response_text.endswith("\nno</execute>") for sample in samples]
    assert 70 < sum(said) < 130
    for sample, no in zip(samples, said, strict=True):
        score = PLANS.verify(sample, sample.response_text)
        assert (score.value, score.parts["followed"], score.info["extracted"] is None) == (not no, 1, no)
        ((reached, wanted),) = re.findall(r"=(\d+), left \1 wanted (\d+)$", sample.response_text, re.MULTILINE)
        assert int(wanted) == evaluate(sample.answer or "")[0]  # type: ignore[index]
        assert (reached == wanted) != no


def test_where_none_may_miss_nothing_is_said_of_what_is_wanted() -> None:
    plain, missing = (CountdownPlans(missing=share).samples(50, 0) for share in (0.0, 0.5))
    assert [sample.prompt for sample in plain] == [sample.prompt for sample in missing]
    assert not any("wanted" in sample.response_text for sample in plain)
    for one, other in zip(plain, missing, strict=True):
        same = re.sub(r" wanted \d+", "", other.response_text) == one.response_text
        assert same != other.response_text.endswith("no</execute>")


def test_causal_executions_carry_out_their_plans_and_two_in_five_naive_ones_do_not() -> None:
    for style in ("causal", "other"):
        assert parts(style, "followed") == parts(style, "adherence") == 1
    assert 0.45 < parts("naive", "followed") < 0.75
    assert 0.45 < parts("naive", "adherence") < 0.75
    assert parts("execution", "followed") == parts("execution", "adherence") == 0


def test_causal_and_naive_have_the_same_plans_and_naive_ones_the_original_solution() -> None:
    for causal, naive, plain in zip(*(SAMPLES[style] for style in ("causal", "naive", "execution")), strict=True):
        marks = ("</plan>",)
        plan, execution = plan_and_execution(naive.response_text, marks)
        assert plan == plan_and_execution(causal.response_text, marks)[0]
        assert execution == f"</plan>{plain.response_text}"


@pytest.mark.parametrize(("kind", "signs"), [("sums", "+-"), ("products", "*/")])
def test_a_kind_of_problem_has_its_operations(kind: Kind, signs: str) -> None:
    for sample in CountdownPlans(kind=kind).samples(60, 1):
        assert bool(re.search(r"[*/]", sample.answer or "")) == (signs == "*/")


@pytest.mark.parametrize(
    ("execution", "followed"),
    [
        ("13-3=10 19+10=29", 1),
        ("13-3=11 11+19=30", 1),  # calculated wrongly, and carried out all the same
        ("3-13=10 19+10=29", 0),
        ("19+13=32 32-3=29", 0),
        ("13-3=10", 0),
        ("", 0),
    ],
)
def test_an_execution_follows_by_what_it_joins(execution: str, followed: float) -> None:
    text = f"<plan>1. 13-3\n2. 19+a</plan><execute>{execution}<answer>19+13-3</answer></execute>"
    assert PLANS.verify(SAMPLES["causal"][0], text).parts["followed"] == followed
