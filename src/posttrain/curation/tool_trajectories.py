"""Which calls of a tool trajectory are learned: those that did not fail."""

import re
from collections.abc import Sequence as List
from dataclasses import replace

from posttrain.curation.curation import curations
from posttrain.data import Sample
from posttrain.data.sample import Message

FAILURE_MARKERS = (
    "is not defined",
    "positional argument",
    "unexpected keyword",
    "'related_searches'",
    "ConnectionError",
    '"error":',
    "not supported",
    "Invalid API call",
    "Response error",
    "Object of type SerpResults is not JSON serializable",
    "400 Client Error",
    "slice indices must be integers or None or have an __index__ method",
)
"""Texts that say that a call failed, from the released code of TL-Training. It compares letters and digits alone, so
that its marker `'error'` is found in "no errors" too; here quotes and colons count, and an empty error is none."""

FEEDBACK_ROLES = ("tool", "function", "observation")


@curations.register("failed_calls")
def failed_calls(
    samples: list[Sample], seed: int, *, markers: list[str] | None = None, keep_failed: bool = False
) -> list[Sample]:
    """One sample for each assistant turn of a trajectory, without those whose call failed (MAE of TL-Training).

    A failed call and its feedback stay in the prompts of later turns, so that the model learns to recover and not to
    fail. A turn is left out where no feedback follows it, or where a feedback has a marker (default:
    `FAILURE_MARKERS`); the last one is always kept. A feedback with a field `is_error` is believed without markers.
    `keep_failed` leaves nothing out: the same samples for plain training. arXiv 2412.15495.
    """
    found = [_plain(marker) for marker in (FAILURE_MARKERS if markers is None else markers)]
    return [
        replace(sample, prompt=turns[:place], response=(turns[place],), rejected=())
        for sample in samples
        for turns in [(*sample.prompt, *sample.response)]
        for place, turn in enumerate(turns)
        if turn["role"] == "assistant" and place > 0 and (keep_failed or _learned(turns, place, found))
    ]


def _learned(turns: tuple[Message, ...], place: int, markers: List[str]) -> bool:
    if not any(turn["role"] == "assistant" for turn in turns[place + 1 :]):
        return True
    feedback = []
    for turn in turns[place + 1 :]:
        if turn["role"] not in FEEDBACK_ROLES:
            break
        feedback.append(turn)
    return bool(feedback) and not any(_failed(turn, markers) for turn in feedback)


def _failed(turn: Message, markers: List[str]) -> bool:
    if isinstance(turn.get("is_error"), bool):
        return bool(turn["is_error"])
    text = _plain(str(turn.get("content") or ""))
    return any(marker in text for marker in markers)


def _plain(text: str) -> str:
    """Letters, digits, and the marks of a key (`"error":`), so that spacing and the kind of quote do not matter."""
    plain = re.sub(r"[^a-z0-9\":]+", "", text.lower().replace("'", '"'))
    return plain.replace('"error":""', "")
