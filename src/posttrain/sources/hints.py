"""Beginnings that find out how much of a demonstration a question needs, while its answers are drawn."""

from collections.abc import Mapping
from collections.abc import Sequence as List
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from posttrain.data import Origin
from posttrain.data.step import Step
from posttrain.sources.beginnings import Begun, Count, Forgetful, Visit, beginnings
from posttrain.sources.item_response import Curve, fit


@beginnings.register("hint")
class AdaptiveHint:
    """SEELE (arXiv 2509.06923): hints as long as it takes for a share `target` of a question's answers to be right.

    The answers to a question are drawn in `rounds` parts. After each a curve of accuracy over hint rate is fitted to
    the question's own parts of this step (and to (0, 0) and (1, 1), where these were not tried), and inverted for the
    next rate. The first rate of a question is that of nearly its whole demonstration, later the last one used at its
    last visit. Rates are kept as they were used, in whole tokens. The given tokens are of origin `hint`: the paper
    learns nothing from them by the advantage, and imitates them with a weight of 0.001:

        objective: [{name: grpo, origins: [rollout], reduction: {constant: 64}},
                    {name: nll, origins: [hint], weight: 0.001, reduction: {constant: 64}}]
    """

    origin = Origin.HINT
    unit: Literal["token", "step"] = "token"
    apart = False

    def __init__(self, *, rounds: Count = 4, target: Annotated[float, Field(gt=0, lt=1)] = 0.5) -> None:
        self.rounds, self.target = rounds, target
        self._last: dict[str, float] = {}
        self._tried: dict[Visit, list[tuple[float, float]]] = {}

    def lengths(self, visit: Visit, size: int, draws: int, step: Step, rng: np.random.Generator) -> list[int]:
        """See `Beginning.lengths`."""
        if size < 2:
            return [0] * draws
        tried = self._tried.get(visit, [])
        rate = self._next(tried) if tried else self._last.get(visit.question, (size - 1) / size)
        return [max(0, min(round(rate * size), size - 1))] * draws

    def hear(self, found: List[Begun], last: bool) -> None:
        """See `Beginning.hear`."""
        for begun in found:
            if begun.size:
                self._tried.setdefault(begun.visit, []).append((begun.given / begun.size, begun.reward))
        if last:
            self._last |= {visit.question: self._tried[visit][-1][0] for visit in sorted(self._tried)}
            self._tried = {}

    def state(self) -> dict[str, Any]:
        """The last rate of every question; between steps nothing else is known."""
        return {"last": dict(self._last)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._last, self._tried = dict(state["last"]), {}

    def _next(self, tried: List[tuple[float, float]]) -> float:
        curve: Curve = fit(with_anchors(tried))
        return curve.rate(self.target)


def with_anchors(tried: List[tuple[float, float]]) -> list[tuple[float, float]]:
    """With (0, 0) and (1, 1), where these rates have not been tried."""
    rates = {rate for rate, _ in tried}
    return [*tried, *((end, end) for end in (0.0, 1.0) if end not in rates)]


@beginnings.register("branch")
class Branch(Forgetful):
    """BREAD (arXiv 2506.17211): where no answer is right, others go on behind the start of the demonstration.

    The answers to a question are drawn in `rounds` parts. The first begins with nothing; with a reward above 0 among
    it, so do the others. Else its prefix is searched for by halves: the next part begins midway between the longest
    prefix without a success and the shortest one with one (at first the whole demonstration). Answers are compared with
    those of the same prefix (`apart`), so that a part that fails or succeeds as a whole teaches nothing. The given
    tokens are of origin `hint`, from which nothing is learned: `objective: {name: grpo, origins: [rollout]}`.

    Reconstructed: sheet 52 says "if no success, restart from expert prefixes (binary search)", no more. That prefixes
    are cut between tokens, that a part of n / `rounds` answers decides, and that the parts share the n answers are
    choices made here; nothing is kept for a question's next visit.
    """

    origin = Origin.HINT
    apart = True

    def __init__(self, *, rounds: Annotated[int, Field(ge=2)] = 4) -> None:
        self.rounds = rounds
        self._found: dict[Visit, list[Begun]] = {}

    def lengths(self, visit: Visit, size: int, draws: int, step: Step, rng: np.random.Generator) -> list[int]:
        """See `Beginning.lengths`."""
        found = self._found.get(visit, [])
        right = [begun.given for begun in found if begun.reward > 0]
        failed = [begun.given for begun in found if begun.given not in right]
        if not failed or size < 2:
            return [min(right, default=0)] * draws
        longest, shortest = max(failed), min(right, default=size)
        return [min(max((longest + shortest) // 2, longest + 1), shortest, size - 1)] * draws

    def hear(self, found: List[Begun], last: bool) -> None:
        """See `Beginning.hear`."""
        for begun in found:
            self._found.setdefault(begun.visit, []).append(begun)
        if last:
            self._found = {}
