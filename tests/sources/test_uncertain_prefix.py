"""The entropy mask on given prefixes; numbers of sheet 37."""

from collections.abc import Sequence as List
from dataclasses import replace

import numpy as np
import pytest
import torch
from steps import on_ranks

from posttrain.data import Origin, Sequence
from posttrain.data.scores import TokenScores
from posttrain.data.step import Step
from posttrain.sources import build_transform


def answer(entropies: List[float], name: str = "a") -> Sequence:
    """A prompt token, a prefix with these entropies, and two tokens of the policy's own."""
    origin = [Origin.PROMPT] + [Origin.DEMONSTRATION] * len(entropies) + [Origin.ROLLOUT] * 2
    size = len(origin)
    return Sequence(
        np.arange(size, dtype=np.int32),
        np.arange(size) > 0,
        np.array(origin, np.uint8),
        name,
        columns={"advantage": np.ones(size, np.float32), "entropy": np.array([0, *entropies, 9, 9], np.float32)},
    )


def score(sequences, needs):
    (need,) = needs
    found = [torch.tensor(s.columns["entropy"][s.target]) for s in sequences]
    return [TokenScores(torch.zeros(len(entropy)), {need.name: entropy}) for entropy in found]


def kept(sequences, share=0.2, gather=None):
    step = Step(score=score) if gather is None else Step(score=score, gather=gather)
    found = build_transform({"name": "uncertain_prefix", "share": share})(sequences, step)
    return [s.columns["advantage"][1:].tolist() for s in found]


@pytest.mark.parametrize("entropies", [[0.9, 0.1, 0.5, 1.4, 0.3], [0.9, 0.1, 0.5, 1.4]])
def test_only_the_least_sure_token_keeps_its_advantage(entropies):
    assert kept([answer(entropies)]) == [[float(e == 1.4) for e in entropies] + [1, 1]]


def test_tokens_are_ranked_over_the_step_and_all_ranks():
    sequences = [answer([0.9, 0.1], "a"), answer([0.5, 1.4, 0.3], "b")]
    assert kept(sequences) == [[0, 0, 1, 1], [0, 1, 0, 1, 1]]
    shares = on_ranks([sequences[:1], sequences[1:]], lambda share, gather: kept(share, gather=gather))
    assert [row for share in shares for row in share] == kept(sequences)


def test_a_demonstration_beside_the_rollouts_has_no_advantage_to_lose():
    whole = answer([2.0, 3.0], "whole")
    beside = replace(whole, columns={"entropy": whole.columns["entropy"]})
    step = Step(score=score)
    first, second = build_transform({"name": "uncertain_prefix"})([beside, answer([0.9, 0.1, 0.5, 1.4, 0.3])], step)
    assert first is beside
    assert second.columns["advantage"][1:].tolist() == [0, 0, 0, 1, 0, 1, 1]


def test_a_share_of_1_changes_nothing_and_one_of_0_freezes_the_prefix():
    assert kept([answer([0.9, 0.1])], 1.0) == [[1, 1, 1, 1]]
    assert kept([answer([0.9, 0.1])], 0.0) == [[0, 0, 1, 1]]
    assert kept([answer([])]) == [[1, 1]]
