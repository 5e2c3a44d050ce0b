"""Does the second part of an answer carry out the plan that is its first (explore and execute, arXiv 2509.23946)?"""

import re
from collections.abc import Hashable
from collections.abc import Sequence as List
from typing import Annotated, Literal

from pydantic import Field

from posttrain.errors import UserError
from posttrain.rewards.attempt import Attempt
from posttrain.rewards.reward import reward
from posttrain.rewards.score import Score

Titles = Literal["anchored", "loose"]
Share = Annotated[float, Field(ge=0, le=1)]

MARKS = ("</EXPLORATION>", "<EXECUTION>")
"""What ends a plan, in the order of preference."""

_TAG = re.compile(r"</?[A-Za-z_]+>")
_TITLE = {
    "anchored": re.compile(r"^[ \t#*]*\d+\.(?!\d)[ \t*]*([^\s*].*)$", re.MULTILINE),
    "loose": re.compile(r"\d+\.(.*)"),
}


@reward("plan_adherence")
def plan_adherence(
    attempt: Attempt, *, marks: List[str] = MARKS, titles: Titles = "anchored", threshold: Share = 0.3
) -> Score:
    """The share of a plan's numbered titles ("2. title") that are among those of the execution; 0 for a plan without.

    A title is found where it is part of another one, or shares more than `threshold` of the words of the shorter one,
    in their order (`title_overlap`). The plan is what stands before the first of `marks` that the answer has; the mark
    begins the execution; without any there is none: 0. `titles`: numbers at the start of a line, or anywhere (`loose`,
    as the authors' code reads them: in "= 0.75 h" it finds a title "75 h", and a title without words in every other).

    The part `plan_items`: how many titles the plan has. Watch it: the shorter a plan, the easier to adhere to, and with
    a threshold of 0.3 one word in three is enough. The reward of the paper, which is 0 for wrong answers (the authors'
    code; the text has a sum):
    `[{name: plan_adherence, gate: task}, {name: overlong, longest: 8192, margin: 4096}]`.
    """
    if not marks or not all(marks):
        raise UserError(f"reward 'plan_adherence': 'marks' must be texts, at least one, found {marks}")
    plan, execution = plan_and_execution(attempt.text, marks)
    wanted = read_titles(plan, titles)
    return Score(adherence(wanted, read_titles(execution, titles), threshold), {"plan_items": float(len(wanted))})


def plan_and_execution(text: str, marks: List[str] = MARKS) -> tuple[str, str]:
    """What stands before the mark, and from there on; see `plan_adherence`."""
    at = next((place for place in map(text.find, marks) if place >= 0), len(text))
    return text[:at], text[at:]


def read_titles(text: str, titles: Titles = "anchored") -> list[str]:
    """What follows each number with a dot, to the end of its line, in lower case and without asterisks.

    `anchored`: tags end lines too (a plan may begin on the line of its tag), a number without words is no title, and
    a single asterisk stays, as a product has one.
    """
    lines, emphasis = (_TAG.sub("\n", text), "**") if titles == "anchored" else (text, "*")
    return [found.replace(emphasis, "").strip().lower() for found in _TITLE[titles].findall(lines)]


def adherence(plan: List[str], execution: List[str], threshold: float = 0.3) -> float:
    """The share of the titles of a plan that are found among those of its execution; 0 without any."""
    found = sum(any(_same(title, other, threshold) for other in execution) for title in plan)
    return found / max(len(plan), 1)


def title_overlap(one: str, other: str) -> float:
    """Words that two titles have in common in the same order, as a share of the shorter one's."""
    a, b = one.split(), other.split()
    return common_subsequence(a, b) / min(len(a), len(b)) if a and b else 0.0


def common_subsequence(one: List[Hashable] | str, other: List[Hashable] | str) -> int:
    """Length of the longest common subsequence of two texts or lists of words.

    Bit-parallel (Hyyrö 2004, as recalled): bit i of `still_open` is 0 where item i of `one` ends a longer subsequence.
    """
    places: dict[Hashable, int] = {}
    for place, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << place
    every = (1 << len(one)) - 1
    still_open = every
    for item in other:
        matching = still_open & places.get(item, 0)
        still_open = ((still_open + matching) | (still_open - matching)) & every
    return len(one) - still_open.bit_count()


def _same(title: str, other: str, threshold: float) -> bool:
    return title in other or title_overlap(title, other) > threshold
