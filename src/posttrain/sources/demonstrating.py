"""A demonstration in the place of answers of which too few are right."""

import numpy as np

from posttrain.data import Origin, Sequence
from posttrain.sources.rollout import Group, Question, group_name


def share_right(group: Group) -> float:
    """Of how many of the answers the verifier says that they are right."""
    return float(np.mean([rollout.attempt.verdict.right for rollout in group]))


def as_demonstration(question: Question, place: int) -> Sequence:
    """The demonstrated answer to a question that was asked at a place of the run; all its tokens are targets."""
    prompt, answer = question.tokens, question.demonstration
    given = np.arange(len(prompt) + len(answer)) >= len(prompt)
    return Sequence(
        tokens=np.concatenate([prompt, answer]).astype(np.int32),
        target=given,
        origin=np.where(given, Origin.DEMONSTRATION, Origin.PROMPT).astype(np.uint8),
        sample_id=question.sample.id,
        group=group_name(question.sample, place),
    )
