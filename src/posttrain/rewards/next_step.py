"""How like the demonstration's next step an answer is."""

from difflib import SequenceMatcher

from posttrain.rewards.attempt import Attempt
from posttrain.rewards.reward import reward
from posttrain.rewards.score import Score


@reward("next_step")
def next_step(attempt: Attempt, *, behind: str | None = None) -> Score:
    """2 M / T: the likeness of the answer's first line, behind what it began with, to the demonstration's.

    M characters match in blocks that come in the same order (`difflib.SequenceMatcher`), T is the number of both lines'
    characters; two empty lines are alike. `behind`: only what comes after this text in the answer is compared, such as
    `</think>`; an answer without it has -1. SRL (arXiv 2510.25992; sheet 52 has no more than the idea, the ratio and
    the -1 are recalled). For answers that `begin: steps`; raises where the sample's response does not begin alike.
    """
    response, opening = attempt.sample.response_text, attempt.opening
    if not response.startswith(opening) or response == opening:
        raise ValueError("the response of the sample has no next step behind what the answer began with")
    answer = attempt.text.removeprefix(opening)
    if behind is not None:
        _, found, answer = answer.partition(behind)
        if not found:
            return Score(-1.0, info={"format": f"nothing stands behind '{behind}'"})
    expected, written = first_line(response.removeprefix(opening)), first_line(answer)
    return Score(SequenceMatcher(None, written, expected, autojunk=False).ratio(), info={"expected": expected})


def first_line(text: str) -> str:
    """Up to the first line break that has something before it, without spaces at its ends."""
    return text.strip().partition("\n")[0].strip()
