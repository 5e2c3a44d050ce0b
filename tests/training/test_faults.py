"""A loss or gradient that is not finite stops the run, with what caused it saved and named."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loops import DATA, same, small_loop, trained
from torch import Tensor

from posttrain.data.batch import Batch
from posttrain.data.scores import TokenScores
from posttrain.data.step import Step
from posttrain.objectives import Objective
from posttrain.objectives.objective import Term
from posttrain.training.faults import NonFinite
from posttrain.training.loop import train

GUILTY = DATA[3].sample_id


def bad_at(value: float) -> Objective:
    """A loss that is `value` at the tokens of one sample."""

    def loss(scores: TokenScores, batch: Batch) -> Tensor:
        guilty = torch.tensor([sample_id == GUILTY for sample_id in batch.sample_ids])[batch.sequence]
        return torch.where(guilty, torch.full_like(scores.logprobs, value), -scores.logprobs)

    return Objective(Term("bad", loss))


def without_derivative(scores: TokenScores, batch: Batch) -> Tensor:
    """0 everywhere, but its gradient is 0 · inf."""
    return (0 * scores.logprobs).sqrt()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_loss_stops_with_its_micro_batch_saved_and_its_samples_named(value: float, tmp_path: Path) -> None:
    loop = small_loop(tmp_path, objective=bad_at(value), token_budget=1, checkpoint_every=1)
    before: dict[int, dict[str, Tensor]] = {0: trained(loop)}
    loop = replace(loop, show=lambda step, row: before.update({step: trained(loop)}))
    with pytest.raises(NonFinite, match=rf"step (\d+): the loss is not finite.*Samples: {GUILTY}\.") as raised:
        train(loop)
    step = int(str(raised.value).partition("step ")[2].partition(":")[0])
    (saved,) = json.loads((tmp_path / "faults" / f"sft-step-{step}-rank-0.json").read_text())
    assert saved["sample_id"] == GUILTY
    assert saved["tokens"] == DATA[3].tokens.tolist()
    assert same(trained(loop), before[step - 1])


def test_a_bad_gradient_under_a_good_loss_stops_with_the_whole_step_saved(tmp_path: Path) -> None:
    loop = small_loop(tmp_path, objective=Objective(Term("flat", without_derivative)))
    with pytest.raises(NonFinite, match=r"step 1: the gradient is not finite \(loss 0"):
        train(loop)
    saved = json.loads((tmp_path / "faults" / "sft-step-1-rank-0.json").read_text())
    assert {row["sample_id"] for row in saved} == {s.sample_id for s in loop.source.next(Step())}


def test_a_fault_is_told_though_it_cannot_be_saved(tmp_path: Path) -> None:
    (tmp_path / "faults").write_text("no folder")
    with pytest.raises(NonFinite, match="could not be saved"):
        train(small_loop(tmp_path, objective=Objective(Term("flat", without_derivative))))
