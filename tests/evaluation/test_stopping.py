"""How often the stop was at hand and passed over, counted by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.data import Origin, Sequence
from posttrain.data.scores import Chunk, TokenScores
from posttrain.evaluation import stopping
from posttrain.evaluation.stopping import PassedOver, passed_over

STOP, LINE = 3, 4


def answer(*tokens: int) -> Sequence:
    whole = np.array([0, *tokens], np.int32)
    target = np.arange(len(whole)) > 0
    return Sequence(whole, target, np.full(len(whole), Origin.ROLLOUT, np.uint8), "a")


def with_ranks(monkeypatch: pytest.MonkeyPatch, *ranks: list[int]) -> None:
    """Logits of eight tokens in which the stop has so many others above it, at each position of each answer."""

    def scored(policy: Any, sequences: Any, needs: Any, token_budget: int) -> Any:
        for index, row in enumerate(ranks):
            logits = torch.zeros(len(row), 8)
            for position, above in enumerate(row):
                logits[position, [token for token in range(8) if token != STOP][:above]] = 1.0
                logits[position, [token for token in range(8) if token != STOP][above:]] = -1.0
            tokens = torch.from_numpy(sequences[index].tokens[1:])
            chunk = Chunk(logits, tokens, torch.arange(len(row)))
            yield index, TokenScores(torch.zeros(len(row)), {need.name: need.function(chunk) for need in needs})

    monkeypatch.setattr(stopping, "scored", scored)


POLICY: Any = SimpleNamespace()


def test_positions_up_to_the_first_stop_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with_ranks(monkeypatch, [0, 1, 2, 0, 0, 0], [5, 7])
    answers = [answer(1, LINE, 2, STOP, 1, STOP), answer(LINE, 1)]
    assert passed_over(POLICY, answers, STOP, k=2, line_ends=[LINE]) == PassedOver(5, 0.4, 2, 0.5)
    assert passed_over(POLICY, answers, STOP, k=6, line_ends=[LINE]) == PassedOver(5, 0.8, 2, 1.0)


def test_where_nothing_was_passed_over_there_is_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    with_ranks(monkeypatch, [0])
    assert passed_over(POLICY, [answer(STOP)], STOP) == PassedOver(0, None, 0, None)
    with_ranks(monkeypatch, [0])
    assert passed_over(POLICY, [answer(1)], STOP) == PassedOver(1, 1.0, 0, None)
