import re
import time
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import Sample
from posttrain.tasks.scenarios import SCENARIOS
from posttrain.tasks.word_problems import WordProblems

TASK = WordProblems()
few = settings(max_examples=25, deadline=None)
difficulties = st.sampled_from(["in", "harder"])


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


@few
@given(seed=st.integers(0, 10**9), difficulty=difficulties, style=st.sampled_from(WordProblems.styles))
def test_every_demonstration_is_right_and_its_neighbours_are_wrong(seed, difficulty, style):
    for sample in TASK.samples(20, seed, difficulty=difficulty, style=style):
        assert TASK.verify(sample, sample.response_text).value == 1
        wrong = str(int(sample.answer) + 1)
        assert TASK.verify(sample, f"<answer>{wrong}</answer>").value == 0
        assert TASK.verify(sample, sample.answer).value == 0, "an answer outside its marks is missing"


@few
@given(seed=st.integers(0, 10**9), difficulty=difficulties)
def test_steps_are_true_equations_that_lead_from_the_numbers_of_the_story_to_the_answer(seed, difficulty):
    for sample in TASK.samples(20, seed, difficulty=difficulty):
        told, results, operands = set(numbers(sample.prompt_text)), [], set()
        for step in sample.meta["steps"]:
            a, operator, b, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", step).groups()
            a, b, result = int(a), int(b), int(result)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator] == result
            assert {a, b} <= told.union(results), f"{step}: a number came from nowhere"
            assert 2 <= result <= 99
            operands |= {a, b}
            results.append(result)
        assert str(result) == sample.answer
        assert told <= operands, f"a number is told for nothing: {sample.prompt_text}"
        assert set(results[:-1]) <= operands, f"a result leads nowhere: {sample.meta['steps']}"


def test_harder_problems_take_more_steps_with_numbers_of_the_same_size():
    easy, hard = TASK.samples(400, 0), TASK.samples(400, 0, difficulty="harder")
    assert {len(sample.meta["steps"]) for sample in easy} == {2, 3}
    assert {len(sample.meta["steps"]) for sample in hard} == {4, 5}
    for samples in (easy, hard):
        operators = Counter(
            operator for s in samples for step in s.meta["steps"] for operator in re.findall(r"\D", step)
        )
        assert min(operators[operator] for operator in "+-*/") > 50
    mean = [sum(int(sample.answer) for sample in samples) / 400 for samples in (easy, hard)]
    assert 0.7 < mean[0] / mean[1] < 1.5


def test_all_scenarios_come_up_and_no_answer_is_worth_guessing():
    samples = TASK.samples(2000, 3)
    scenarios = Counter(sample.meta["scenario"] for sample in samples)
    assert len(scenarios) == len(SCENARIOS) >= 10
    assert min(scenarios.values()) > 2000 / len(SCENARIOS) / 2
    assert Counter(sample.answer for sample in samples).most_common(1)[0][1] < 0.1 * 2000


def test_a_small_vocabulary_covers_every_text():
    words = Counter()
    for difficulty in ("in", "harder"):
        for style in WordProblems.styles:
            for sample in TASK.samples(1500, 1, difficulty=difficulty, style=style):
                assert not re.search(r"[{}]|  |\.\.", sample.prompt_text + sample.response_text)
                words.update(re.findall(r"[A-Za-z]+", sample.prompt_text + " " + sample.response_text))
    assert len(words) <= 250


def test_styles_of_one_seed_demonstrate_the_same_problems_and_seeds_differ():
    texts = [[s.prompt_text for s in TASK.samples(30, 5, style=style)] for style in WordProblems.styles]
    assert texts[0] == texts[1] == texts[2]
    assert TASK.samples(30, 5) == TASK.samples(30, 5)
    assert not {s.prompt_text for s in TASK.samples(30, 5)} & {s.prompt_text for s in TASK.samples(30, 6)}


def test_styles_look_as_the_format_says():
    by_style = {style: TASK.samples(1, 0, style=style)[0] for style in WordProblems.styles}
    steps, answer = by_style["steps"].meta["steps"], by_style["steps"].answer
    assert by_style["steps"].response_text == f"<think>{chr(10).join(steps)}</think><answer>{answer}</answer>"
    assert by_style["direct"].response_text == f"<answer>{answer}</answer>"
    prose = by_style["prose"].response_text
    assert [step for step in steps if step not in prose] == []


def test_no_problem_of_the_test_part_is_in_the_train_part_under_other_names():
    def stories(part: str) -> set[tuple[str, ...]]:
        samples: list[Sample] = WordProblems(part=part).samples(800, 0)
        return {(sample.meta["scenario"], *sample.meta["steps"]) for sample in samples}

    assert not stories("train") & stories("test")


def test_five_thousand_problems_take_less_than_two_seconds():
    start = time.process_time()
    assert len(TASK.samples(5000, 0)) == 5000
    assert time.process_time() - start < 2
