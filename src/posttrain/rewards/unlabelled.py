"""Rewards that know no right answer: votes, the policy's own certainty, form, chance."""

import hashlib
from collections import Counter
from collections.abc import Sequence as List
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from posttrain.data.scores import SELF_CERTAINTY
from posttrain.rewards.attempt import Ask, Attempt
from posttrain.rewards.reward import group_reward, model_reward, reward
from posttrain.rewards.score import Score


@group_reward("majority")
def majority(attempts: List[Attempt], progress: float) -> list[Score]:
    """1 for the final answer that most attempts gave, 0 for the others: no labels needed (TTRL, arXiv 2504.16084).

    The final answer is what the task's verifier reads, in one spelling; an attempt without one never wins. Of answers
    that are as frequent the first one counts. Parts: `ratio`, the votes for it among all attempts, and `label_right`,
    whether it is the right one, where that is known (it plays no part in the reward).
    """
    found = [attempt.canonical for attempt in attempts]
    counts = Counter(answer for answer in found if answer is not None)
    winner, votes = counts.most_common(1)[0] if counts else (None, 0)
    parts = {"ratio": votes / len(attempts)}
    elected = attempts[found.index(winner)]
    if elected.verdict.error is None:
        parts["label_right"] = float(winner is not None and elected.verdict.right)
    return [
        Score(float(answer is not None and answer == winner), parts, {"extracted": answer, "label": winner})
        for answer in found
    ]


@model_reward("self_certainty")
def self_certainty(attempts: List[Attempt], ask: Ask) -> list[float]:
    """How far the policy's distributions are from uniform: the mean over drawn tokens of logsumexp(z) - mean_v z_v.

    In nats, by the policy that drew, before it is updated, at the temperature that it drew at. KL(uniform || p) is ln V
    less, so that advantages within a group are the same. No label enters (arXiv 2505.19590; 2604.18574, setting C).
    """
    sequences = [replace(attempt.sequence, scalars={"temperature": attempt.temperature}) for attempt in attempts]
    return [float(scores[SELF_CERTAINTY.name].mean()) for scores in ask(None, sequences, (SELF_CERTAINTY,))]


@reward("thinks_first")
def thinks_first(attempt: Attempt, *, tag: str = "think", answer: str = r"\boxed{", once: bool = False) -> float:
    r"""1 where a thought, `<think>...</think>`, comes before at least one final answer; else 0. A gate for a reward.

    `answer`: how a final answer begins (`\boxed{`, `<answer>`, `####`). `once`: exactly one of them in the whole text.
    The format gate of arXiv 2604.18574's code, for models that were taught to think.
    """
    thought, closed, behind = attempt.text.partition(f"</{tag}>")
    is_once = not once or attempt.text.count(answer) == 1
    return float(f"<{tag}>" in thought and bool(closed) and answer in behind and is_once)


@group_reward("random")
def random(
    attempts: List[Attempt], progress: float, *, chance: Annotated[float, Field(ge=0, le=1)] = 0.5
) -> list[float]:
    """1 with a `chance`, else 0, whatever the answer: what a reward has to be compared with that is thought to teach.

    Drawn for each attempt of each step; the same again when a run is repeated.
    """
    key = hashlib.blake2b(f"{attempts[0].sample.prompt_id}/{progress}".encode(), digest_size=8).digest()
    return [float(value) for value in np.random.default_rng(int.from_bytes(key)).random(len(attempts)) < chance]
