from dataclasses import replace

import pytest
import torch
from architectures import build, tokenizer
from steps import random_step

from posttrain.data import Origin
from posttrain.data.batch import collate
from posttrain.data.step import Step
from posttrain.objectives import build_objective
from posttrain.policy import Policy
from posttrain.sources import build_transform

STEP = [replace(sequence, scalars={"reference_score": -2.0}) for sequence in random_step(0, [9, 5, 1])]


def test_every_token_but_the_first_is_trained_and_its_origin_stays() -> None:
    found = build_transform("every_token")(STEP, Step())
    for sequence, old in zip(found, STEP, strict=True):
        assert sequence.target.tolist() == [False] + [True] * (len(old) - 1)
        assert (sequence.origin == old.origin).all()
        assert not sequence.columns
    assert (found[0].origin == Origin.PROMPT).any()


def test_poft_then_scores_as_its_authors_code_does() -> None:
    """Sheet 17: the mean over all tokens that are not padding."""
    policy, objective = Policy(build("llama"), tokenizer()), build_objective("poft")
    step = list(build_transform("every_token")(STEP, Step()))
    batch = objective.attach(collate(step, pad_id=258), step, objective.coefficients(step))
    total, count = objective.loss(policy, batch).metrics["score"]
    expected = []
    for sequence in STEP[:2]:
        ids = torch.from_numpy(sequence.tokens).long()[None]
        logprobs = policy.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        expected.append(float(logprobs.gather(-1, ids[0, 1:, None]).mean().detach()))
    assert float(total / count) == pytest.approx(sum(expected) / 2, abs=1e-4)  # type: ignore[operator]
