import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks.spelling import same_text, unwrapped


@pytest.mark.parametrize(
    "text",
    [
        "42",
        " 42\n",
        "42.",
        "**42**",
        "__42__",
        "*42*",
        "`42`",
        '"42"',
        "“42”",
        "$42$",
        "$$42$$",
        r"\(42\)",
        r"\boxed{42}",
        r"\text{42}",
        r"$\boxed{\text{42}}$",
        "```\n42\n```",
        "```text\n42\n```",
        "**`42`.**",
        "The answer is 42.",
        "Answer: **42**",
        "the final result is 42",
    ],
)
def test_what_is_around_an_answer_is_taken_off(text):
    assert unwrapped(text) == "42"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "*",
        "**",
        "''",
        "...",
        "5!",
        "wait...",
        "*a* or *b*",
        "$5 and $6",
        "'a' or 'b'",
        r"\boxed{4}2",
        r"\text{a} and \text{b}",
        r"\boxed{42",
        "4*2*3",
        "not 42",
        "answers",
        "a_b_c",
        "{42}",
    ],
)
def test_what_belongs_to_an_answer_stays(text):
    assert unwrapped(text) == text


@given(st.text(alphabet="a1*_`'\"$.! \\{}(boxedtext)", max_size=20))
def test_taking_off_comes_to_an_end(text):
    assert unwrapped(unwrapped(text)) == unwrapped(text)


@given(st.text(max_size=30))
def test_every_text_is_the_same_as_itself(text):
    assert same_text(text, text)


@pytest.mark.parametrize(("a", "b"), [("blue", "Blue."), ("New York", "newyork"), ("café", "cafe\u0301"), (".", ".")])
def test_same_texts(a, b):
    assert same_text(a, b)
    assert same_text(b, a)


@pytest.mark.parametrize(
    ("a", "b"), [("blue", "not blue"), ("a", ""), (".", ""), ("a", "a b"), ("(B)", "B"), ("5", "5!")]
)
def test_different_texts(a, b):
    assert not same_text(a, b)
    assert not same_text(b, a)
