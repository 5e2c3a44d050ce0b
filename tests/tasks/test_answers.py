import math
import subprocess
import sys
import threading
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data import Sample, user
from posttrain.tasks.answers import (
    answered,
    canonical,
    extract_answer,
    plain_number,
    same_number,
    verify_exact,
    verify_number,
    verify_thought,
    worked,
)

SAME = [
    ("1000", "1,000"),
    ("1000", "1 000"),
    ("1000", "1000.0"),
    ("1000", "1000."),
    ("1000", "1e3"),
    ("1000", "1.0E+3"),
    ("1000", "01000"),
    ("1000", "+1000"),
    ("1000", "$1,000"),
    ("1000", "$1{,}000$"),
    ("1000", r"\$1000"),
    ("1000", "1000 €"),
    ("1000", "1 thousand"),
    ("1000", "n = 1000"),
    ("1000", r"1\,000"),
    ("1500", r"1.5 \times 10^{3}"),
    ("1500", "1.5*10^3"),
    ("1500000", "1.5 million"),
    ("0.5", "1/2"),
    ("0.5", ".5"),
    ("0.5", "50%"),
    ("0.5", r"50\%"),
    ("0.5", "50 percent"),
    ("0.5", r"\frac{1}{2}"),
    ("0.5", r"\dfrac12"),
    ("0.5", "2/4"),
    ("50", "50%"),
    ("1.5", "1 1/2"),
    ("1.5", r"1\frac{1}{2}"),
    ("-0.5", r"-\frac{1}{2}"),
    ("-0.5", r"\frac{-1}{2}"),
    ("-5", "−5"),
    ("-5", "- 5"),
    ("-5", "-$5"),
    ("-5", "$-5"),
    ("0", "-0"),
    ("0", "0.00"),
    ("5", "5 apples"),
    ("5", r"5\text{ dollars}"),
    ("5", r"\text{5}"),
    ("5", r"\(5\)"),
    ("5", "  5\n"),
    ("12", "1 dozen"),
    ("1000", "1'000"),
    ("1000", "1 x 10^3"),
    ("1000", "10³"),
    ("0.00002", "2×10⁻⁵"),
    ("0.5", "½"),
    ("1.5", "1½"),
    ("-5", "minus 5"),
    ("5", "5 km/h"),
    ("5", "5cm²"),
    ("5", "5 square meters"),
    ("5", "(5)"),
    ("1500000", "1.5 million people per year"),
    ("7", "**7**"),
    ("7", "The answer is 7."),
]

DIFFERENT = [
    ("14", "41"),
    ("14", "-14"),
    ("14", "14.5"),
    ("14", "1.4"),
    ("14", "14%5"),
    ("14", "1 4"),
    ("4", "1 4"),
    ("14", "14 and a half"),
    ("14", "14 half"),
    ("14", "14:30"),
    ("14", "14 or 15"),
    ("14", "14\n15"),
    ("14", "14, 15"),
    ("14", "fourteen"),
    ("14", "14 thirds"),
    ("14", "14 hundred thousand"),
    ("14", "14 is wrong"),
    ("14", "14m"),
    ("14", "7+7=14=15"),
    ("14", "the answer is not 14"),
    ("14", "14 million"),
    ("14", "14x"),
    ("14", "14pi"),
    ("14", "14 pi"),
    ("14", "<14>"),
    ("14", "7*2=15"),
    ("14", "+-14"),
    ("14", "nan"),
    ("14", ""),
    ("14", "-"),
    ("14", "14/0"),
    ("34", "3,4"),
    ("3.4", "3,4"),
    ("1000", "1,00"),
    ("1/3", "0.333333"),
    ("0.5", "5%"),
    ("0.01", "100"),
    ("5000", "50%"),
    (str(10**30), str(10**30 + 1)),
]

EXPRESSIONS = [
    ("1000", "10^3"),
    ("7", r"\sqrt{49}"),
    ("7", "3+4"),
    ("7", "(3+11)/2"),
    ("49", "7^2"),
    (r"2\pi", r"\pi\cdot 2"),
    (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"),
]


def number_sample(answer: str) -> Sample:
    return Sample(prompt=(user("How many?"),), answer=answer, task="t")


@pytest.mark.parametrize(("right", "found"), SAME)
def test_every_spelling_of_a_number_is_the_number(right: str, found: str) -> None:
    assert same_number(right, found)
    assert same_number(found, right)
    assert verify_number(number_sample(right), answered(found)).value == 1


@pytest.mark.parametrize(("right", "found"), DIFFERENT)
def test_other_numbers_and_what_is_no_number_are_wrong(right: str, found: str) -> None:
    assert not same_number(right, found)
    assert not same_number(found, right)
    assert verify_number(number_sample(right), answered(found)).value == 0


@pytest.mark.parametrize(("right", "found"), EXPRESSIONS)
def test_expressions_are_worked_out(right: str, found: str) -> None:
    assert same_number(right, found)
    assert not same_number("8", found)


@pytest.mark.parametrize("unworked", ["7*2", "28/2", r"\frac{28}{2}", "10+4", r"\sqrt{196}", "7*2=15", "14=7"])
def test_a_calculation_left_to_the_reader_is_no_answer(unworked: str) -> None:
    score = verify_number(number_sample("14"), answered(unworked))
    assert (score.value, score.info["reason"]) == (0, "not_a_number")


@pytest.mark.parametrize("worked_out", ["7*2=14", "7*2 = 28/2 = 14", r"7 \times 2 = 14", "x = 14"])
def test_an_equation_answers_with_its_end(worked_out: str) -> None:
    assert verify_number(number_sample("14"), answered(worked_out)).value == 1


def test_an_expression_as_reference_accepts_expressions() -> None:
    assert verify_number(number_sample(r"2\pi"), r"so \boxed{\pi \cdot 2}").value == 1


@given(st.fractions(), st.integers(0, 6))
def test_plain_numbers_are_read_exactly(value: Fraction, places: int) -> None:
    fraction, decimal = plain_number(str(value)), plain_number(f"{value.numerator:,}.{'0' * places}")
    assert fraction is not None
    assert decimal is not None
    assert fraction.value == value
    assert decimal.value == value.numerator


@given(st.text(alphabet="0123456789+-*/^.,(){}\\ $%=xefrac", max_size=12), st.sampled_from(["3", "1/2"]))
def test_garbage_is_scored_and_never_raises(text: str, right: str) -> None:
    assert verify_number(number_sample(right), answered(text)).value in (0, 1)
    same_number(text, right)


@pytest.mark.parametrize("bomb", ["9^9^9^9", "9**9**9", "1e999999999", "((9^999)^999)^999", "9^{99*99999}", "9!!!"])
def test_an_absurd_exponent_costs_no_time(bomb: str) -> None:
    assert not same_number(bomb, "5")


def test_expressions_are_compared_in_threads_too() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(same_number(r"\sqrt{81}", "9")))
    thread.start()
    thread.join()
    assert found == [True]


def test_math_verify_is_not_imported_for_plain_numbers() -> None:
    program = (
        "import sys; from posttrain.tasks.answers import same_number; "
        "assert same_number('1,000', '1e3') and not same_number('2', 'three'); assert 'math_verify' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        (worked("7*2=14", "14"), "14", "found"),
        (answered(" 14\n"), "14", "found"),
        ("So 14.\n#### 14", "14", "found"),
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}", "found"),
        (r"#### 15" "\n" r"\boxed{16} <answer>14</answer>", "14", "found"),
        (r"\boxed{16}" "\n#### 14\nand so on", "14", "found"),
        ("#### Step 1: add\n#### Solution\n" r"\boxed{14}", "14", "found"),
        ("<answer>14</answer> that is <answer>14.0</answer>", "14", "found"),
        ("<think><answer>3</answer> no</think><answer>14</answer>", "14", "found"),
        ("<answer>14</answer><answer>15</answer>", None, "several"),
        ("#### 14\n#### 15", None, "several"),
        (r"\boxed{14} or \boxed{15}", None, "several"),
        ("<answer>14", None, "malformed"),
        ("14</answer>", None, "malformed"),
        ("<answer>14</answer", None, "malformed"),
        ("<answer></answer>", None, "malformed"),
        ("<answer>1<answer>4</answer>", None, "malformed"),
        ("<answer><answer>14</answer></answer>", None, "malformed"),
        (r"\boxed{14", None, "malformed"),
        ("####", None, "malformed"),
        ("14", None, "missing"),
        ("", None, "missing"),
        ("<think>7*2=14</think>", None, "missing"),
    ],
)
def test_the_final_answer_is_found_or_the_reason_given(text: str, value: str | None, reason: str) -> None:
    extraction = extract_answer(text)
    assert (extraction.value, extraction.reason) == (value, reason)


@pytest.mark.parametrize(
    ("text", "value", "well_formed", "reason"),
    [
        (answered("14"), 1, 1, "found"),
        (answered("15"), 0, 1, "wrong"),
        (answered("14") * 2, 1, 0, "found"),
        (answered("14") + answered("15"), 0, 0, "several"),
        ("<answer>14", 0, 0, "malformed"),
        ("14", 0, 0, "missing"),
    ],
)
def test_scores_tell_being_right_from_being_well_formed(text: str, value: int, well_formed: int, reason: str) -> None:
    score = verify_number(number_sample("14"), text)
    assert score.value == value
    assert dict(score.parts) == {"correct": value, "format": well_formed}
    assert score.info["reason"] == reason


def test_exact_answers_ignore_case_and_whitespace_only() -> None:
    sample = number_sample("New York")
    assert verify_exact(sample, answered(" new\nyork ")).value == 1
    assert verify_exact(sample, answered("York")).value == 0
    assert verify_exact(sample, "New York").info["reason"] == "missing"


def test_a_sample_without_an_answer_is_an_error_and_not_a_zero() -> None:
    sample = Sample(prompt=(user("?"),))
    for verify in (verify_number, verify_exact):
        score = verify(sample, answered("1"))
        assert score.error is not None
        assert math.isfinite(score.value)


def test_what_was_answered_is_known_without_a_right_answer_too() -> None:
    score = verify_number(Sample((user("?"),)), answered("14.0"))
    assert score.error is not None
    assert (score.info["extracted"], score.info["canonical"]) == ("14.0", "14")


@pytest.mark.parametrize(
    ("spelling", "other"),
    [("14", "14.0"), ("14", "$14"), ("1,000", "1000"), ("1/2", "0.5"), ("50 %", "50%"), ("Anna B.", "anna b.")],
)
def test_answers_are_counted_in_one_spelling(spelling: str, other: str) -> None:
    assert canonical(spelling) == canonical(other)
    assert canonical("14") == "14"
    assert canonical(spelling) != canonical("15")


def test_an_answer_in_the_usual_spelling_is_not_written_twice() -> None:
    assert "canonical" not in verify_number(Sample((user("?"),), answer="1"), answered("14")).info


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"so \boxed{3}, no, \boxed{4}</think>", 1),
        (r"so \boxed{4}, no, \boxed{3}</think>\boxed{4}", 0),
        (r"so \boxed{4}", 1),
        ("<answer>3</answer> or <answer>4</answer></think>", 1),
        ("4</think>4", 0),
    ],
)
def test_answers_in_thoughts(text: str, value: float) -> None:
    assert verify_thought(Sample((user("2 + 2?"),), answer="4"), text).value == value
