import re
from dataclasses import replace
from typing import Any

import pytest

from posttrain.data import user
from posttrain.errors import UserError
from posttrain.tasks.chains import CHECK_AGAIN, LIMIT, MOST_CHECKS, TERMS, Chains
from posttrain.tasks.task import Difficulty

CHAIN = (7, (("+", 5), ("*", 3), ("-", 4)))


def test_a_chain_is_asked_and_worked_in_every_style() -> None:
    task = Chains()
    assert task.prompt(CHAIN) == "Compute (7+5)*3-4."
    assert [task.demonstration(CHAIN, style) for style in task.styles[:4]] == [
        "<think>7+5=12\n12*3=36\n36-4=32</think><answer>32</answer>",
        "<answer>32</answer>",
        "<think>12 36 32</think><answer>32</answer>",
        "<think>First 7+5=12, then 12*3=36, then 36-4=32.</think><answer>32</answer>",
    ]


def test_rechecked_steps_come_again_a_random_number_of_times() -> None:
    task = Chains()
    samples = task.samples(3000, 0, style="rechecked")
    checks = [sample.response_text.count("again") for sample in samples]
    for sample, plain, count in zip(samples[:200], task.samples(200, 0), checks, strict=False):
        thought = plain.response_text.partition("</think>")[0].removeprefix("<think>")
        blocks = sample.response_text.partition("</think>")[0].removeprefix("<think>").split("\nagain\n")
        assert blocks == [thought] * (1 + count)
        assert task.verify(sample, sample.response_text).parts["faithful"] == 1
    # the chance of one more is the same however many there were
    hazards = [sum(c > k for c in checks) / sum(c >= k for c in checks) for k in range(4)]
    assert hazards == pytest.approx([CHECK_AGAIN] * 4, abs=0.06)
    assert max(checks) == MOST_CHECKS


@pytest.mark.parametrize("difficulty", ["in", "harder"])
def test_the_question_has_one_reading_and_stays_small(difficulty: Difficulty) -> None:
    lengths = set()
    for sample in Chains().samples(500, 1, difficulty=difficulty):
        expression = sample.prompt_text.removeprefix("Compute ").removesuffix(".")
        assert eval(expression) == int(sample.answer or "")
        lengths.add(len(re.findall(r"\d+", expression)))
        assert all(abs(int(number)) <= LIMIT[difficulty] for number in re.findall(r"-?\d+", sample.response_text))
    assert lengths == set(range(TERMS[difficulty][0], TERMS[difficulty][1] + 1))


@pytest.mark.parametrize("wrong", ["31", "-32", "7+5*3-4", "(7+5)*3-4", "36-4", ""])
def test_another_value_or_the_expression_itself_is_wrong(wrong: str) -> None:
    task = Chains()
    sample = next(s for s in task.samples(2000, 0) if s.answer == "32")
    assert task.verify(sample, f"<answer>{wrong}</answer>").value == 0


@pytest.mark.parametrize("difficulty", ["in", "harder"])
def test_terms_and_limit_make_problems_of_other_sizes_whatever_the_difficulty(difficulty: Difficulty) -> None:
    samples = list(Chains(terms=(6, 8), limit=120).samples(200, 0, difficulty=difficulty))
    lengths = {len(re.findall(r"\d+", sample.prompt_text)) for sample in samples}
    results = [int(step) for sample in samples for step in re.findall(r"=(-?\d+)", str(sample.response[0]["content"]))]
    assert lengths == {6, 7, 8}
    assert max(map(abs, results)) <= 120


@pytest.mark.parametrize(
    ("options", "said"),
    [({"terms": (1, 3)}, "fewest"), ({"terms": (4, 3)}, "fewest"), ({"limit": 98}, "99 or more")],
)
def test_sizes_that_make_no_chain_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Chains(**options)


@pytest.mark.parametrize(
    ("text", "faithful"),
    [
        ("<think>7+5=12\n12*3=36\n36-4=32</think><answer>32</answer>", True),
        ("<think>First 7+5=12, then 3*12=36, then 36-4=32.</think><answer>32</answer>", True),  # a product turned round
        ("<think>7+5=12\n12*3=35\n35-4=31</think><answer>31</answer>", False),  # a step that is wrong
        ("<think>7+5=12\n12*3=36\n36-4=32</think><answer>31</answer>", False),  # another answer than the steps'
        ("<think>12*3=36\n7+5=12\n36-4=32</think><answer>32</answer>", False),  # another order
        ("<think>7+5=12\n16+16=32</think><answer>32</answer>", False),  # a step short cut
        ("<think>8+4=12\n12*3=36\n36-4=32</think><answer>32</answer>", False),  # the steps of another question
        ("<think>7+5=12\n12*3=36\n36-4=32\n1</think><answer>32</answer>", False),  # something that is no step
        ("<think>12 36 32</think><answer>32</answer>", False),  # results alone
        ("<think></think><answer>32</answer>", False),
        ("<answer>32</answer>", False),
        ("7+5=12\n12*3=36\n36-4=32", False),
    ],
)
def test_an_answer_is_faithful_if_the_steps_replayed_lead_to_it(text: str, faithful: bool) -> None:
    task = Chains()
    sample = next(s for s in task.samples(2000, 0) if s.answer == "32")
    sample = replace(sample, prompt=(user(task.prompt(CHAIN)),))
    assert task.verify(sample, text).parts["faithful"] == faithful


@pytest.mark.parametrize(("style", "faithful"), [("steps", 1), ("prose", 1), ("terse", 0), ("direct", 0)])
def test_demonstrations_are_right_and_those_with_steps_faithful(style: str, faithful: int) -> None:
    for sample in Chains().samples(200, 3, style=style):
        score = Chains().verify(sample, sample.response_text)
        assert (score.value, score.parts["faithful"]) == (1, faithful)


def test_a_program_goes_on_from_the_header_in_its_prompt_and_is_run() -> None:
    task = Chains(limit=999, terms=(2, 30))
    samples = task.samples(20, 0, style="program")
    assert all(sample.prompt_text.endswith(".\ndef solution():") for sample in samples)
    assert all(task.verify(sample, sample.response_text).value == 1 for sample in samples)
    assert task.demonstration(CHAIN, "program") == "a=7+5\n b=a*3\n c=b-4\n return c"
    sample = replace(samples[0], answer="32")
    assert task.verify(sample, "a=7+5\n return a").info == {"extracted": "12", "reason": "wrong"}
    assert task.verify(sample, "a=7+\n return a").info["reason"] == "syntax"
    assert task.verify(sample, "<answer>32</answer>").value == 0


def test_answers_inside_the_thought_are_read_there() -> None:
    task = Chains()
    for sample in task.samples(50, 0, style="inside"):
        text = sample.response_text
        assert text.endswith(f"<answer>{sample.answer}</answer></think>")
        assert task.verify(sample, text).value == task.verify(sample, text).parts["faithful"] == 1
        cut = text.removesuffix("</think>")
        assert task.verify(sample, cut.partition("<answer>")[0]).value == 0
        assert task.verify(sample, f"<answer>0.5</answer>{cut}").value == 1  # the last one
        assert task.verify(sample, f"<answer>0.5</answer></think><answer>{sample.answer}</answer>").value == 0
