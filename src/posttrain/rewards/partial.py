"""Something for an answer that is right in part."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from posttrain.errors import UserError, nearest
from posttrain.rewards.attempt import Attempt
from posttrain.rewards.reward import reward
from posttrain.rewards.score import Score


@reward("partial_credit")
def partial_credit(attempt: Attempt, *, partial: Annotated[float, Field(ge=0, lt=1)] = 0.1) -> Score:
    """1 for a right answer, `partial` for a wrong one that the verifier could read, 0 where there was none to read.

    ReFT (arXiv 2401.08967): 0.1. An answer of any kind earns it, so that it needs the 1 to outweigh it, and a hold to
    the model before (`kl_in_reward`). Of programs "could be read" means that a number came out.
    """
    verdict = attempt.verdict
    if verdict.error is not None or verdict.right:
        return verdict
    return replace(verdict, value=partial if attempt.extracted is not None else 0.0)


@reward("part")
def part(attempt: Attempt, *, of: str) -> Score:
    """The part `of` of the task's score alone: of `autoformalisation` "compiles" is the gate without the judge."""
    verdict = attempt.verdict
    if verdict.error is not None:
        return verdict
    if of not in verdict.parts:
        raise UserError(f"reward 'part': the task's score has no part '{of}': {nearest(of, verdict.parts)}")
    return replace(verdict, value=verdict.parts[of])
