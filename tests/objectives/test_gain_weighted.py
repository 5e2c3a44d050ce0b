"""Numbers from sheet 30."""

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import build, tokenizer
from gradients import batch_of, check_gradient, gradient, losses, mean_loss, results, step_of
from loops import DATA, same, small_loop, trained
from running import metrics
from steps import on_ranks, random_step
from torch import Tensor

from posttrain.data import Sequence
from posttrain.data.scores import TokenScores
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.objectives import build_objective
from posttrain.policy import Policy
from posttrain.training.loop import Interrupted, train
from posttrain.training.ranks import Ranks
from posttrain.training.step import Stopwatch, accumulate_gradients, begin

LATER = Step(index=9, total=20, epoch=1.5)
LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double() * 2
TOKENS = [[0, 3, 1], [4]]
TWO = {"name": "glow", "alpha": 2.0, "beta": 10.0}


def logits_of(*sample_losses: float) -> Tensor:
    """Token 0 of a vocabulary of two has these losses."""
    p = torch.tensor(sample_losses, dtype=torch.float64).neg().exp()
    return torch.stack([p, 1 - p], -1).log()


def visited(tokens: List[List[int]], previous: List[float], at: Step = LATER) -> Any:
    return replace(batch_of(tokens, scalars={"previous_loss": list(previous)}), step=at)


@pytest.mark.parametrize(
    ("spec", "gain", "weight"),
    [
        ("glow", -0.2, 0.982014),
        ("glow", -0.1, 0.880797),
        ("glow", 0.0, 0.5),
        ("glow", 0.05, 0.5),
        ("glow", 0.2, 0.5),
        (TWO, -0.2, 1.761594),
        (TWO, -0.1, 1.462117),
        (TWO, 0.0, 1.0),
        (TWO, 0.05, 0.755081),
        (TWO, 0.2, 0.5),
        ({"name": "glow", "clip": [0, 5]}, 0.05, 0.268941),
        ({"name": "glow", "offset": 1.0}, -0.1, 1.880797),
        ({"name": "glow", "alpha": 9.0}, -1.0, 5.0),
    ],
)
def test_weights_are_those_of_the_sheet(spec: Any, gain: float, weight: float) -> None:
    _, found = results(spec, visited([[0]], [1.0 + gain]), logits_of(1.0))
    assert found["weight"].item() == pytest.approx(weight, abs=1e-5)
    assert found["gain"].item() == pytest.approx(gain, abs=1e-6)
    assert found["regressed"].item() == float(gain < 0)


def test_loss_and_gradient_are_those_of_the_sheet() -> None:
    batch, logits = visited([[0], [0]], [1.0, 0.6]), logits_of(0.8, 0.7)
    values, found = results("glow", batch, logits)
    assert values.mean().item() == pytest.approx(0.508279, abs=1e-6)
    torch.testing.assert_close(found["sample_loss"], torch.tensor([0.8, 0.7]).double())
    plain = gradient(lambda at: losses("nll", batch, at), logits)
    weights = torch.tensor([[0.25], [0.440399]])
    torch.testing.assert_close(
        gradient(lambda at: losses("glow", batch, at) / 2, logits), weights * plain, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    ("spec", "step"), [("glow", Step(epoch=0.99)), ({**TWO, "beta": 0.0}, LATER)], ids=["first epoch", "beta 0"]
)
def test_the_first_epoch_and_beta_0_with_alpha_2_are_plain_fine_tuning_on_sample_means(spec: Any, step: Step) -> None:
    batch = visited(TOKENS, [3.0, 0.1], step)
    by_sample = batch.mean_by_sequence(losses("nll", batch, LOGITS))
    torch.testing.assert_close(losses(spec, batch, LOGITS), by_sample)
    torch.testing.assert_close(
        gradient(lambda at: losses(spec, batch, at), LOGITS),
        gradient(lambda at: batch.mean_by_sequence(losses("nll", batch, at)), LOGITS),
    )


def test_a_long_sample_and_a_short_one_weigh_the_same() -> None:
    step = step_of([[0] * 100, [0, 0]])
    assert mean_loss("glow", step, logits_of(*[1.0] * 100, 3.0, 3.0)).item() == pytest.approx(2, abs=1e-6)


def test_a_larger_gain_never_weighs_more() -> None:
    gains = torch.linspace(-3, 3, 61)
    _, found = results(TWO, visited([[0]] * 61, (1 + gains).tolist()), logits_of(*[1.0] * 61))
    assert (found["weight"].diff() <= 0).all()


@pytest.mark.parametrize("spec", ["glow", TWO], ids=str)
def test_gradients_are_those_of_finite_differences(spec: Any) -> None:
    check_gradient(spec, visited(TOKENS, [2.0, 1.5]), LOGITS)


def test_a_sequence_without_tokens_does_not_count() -> None:
    assert mean_loss("glow", step_of([[0], []]), logits_of(1.0)).item() == pytest.approx(1)
    assert losses("glow", visited([[], []], [1.0, 1.0]), torch.zeros(0, 2)).isfinite().all()


def test_a_clip_upside_down_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective 'glow': 'clip' must be \[lowest, highest\], found \[2.0, 1.0\]"):
        build_objective({"name": "glow", "clip": [2, 1]})


# --- history ---


def scorer(sample_losses: Mapping[str, float]) -> Any:
    return lambda sequences, needs: [TokenScores(torch.tensor([-sample_losses[s.sample_id]])) for s in sequences]


def previous(sequences: List[Sequence], step: Step) -> list[float]:
    return [float(s.scalars["previous_loss"]) for s in build_objective("glow").prepare(sequences, step)]


def test_a_sample_without_history_has_the_mean_of_the_step_on_every_rank() -> None:
    step, now = step_of([[0]] * 3), {"sample0": 1.0, "sample1": 2.0, "sample2": 6.0}
    later = replace(LATER, score=scorer(now), memory={"sample_loss": {"sample0": 0.5, "sample2": 0.7}})
    assert previous(step, later) == [0.5, 3.0, 0.7]
    shares = [step[:2], step[2:], []]
    found = on_ranks(shares, lambda share, gather: previous(share, replace(later, gather=gather)))
    assert found == [[0.5, 3.0], [0.7], []]


def test_known_samples_are_not_scored_again() -> None:
    assert previous(step_of([[0]]), replace(LATER, memory={"sample_loss": {"sample0": 0.25}})) == [0.25]


def test_a_step_of_one_unseen_sample_weighs_half_of_alpha() -> None:
    policy = Policy(build("llama"), tokenizer())
    step = begin(9, 10, 1.5, 0, policy=policy, token_budget=64, ranks=Ranks())
    objective, share = build_objective({**TWO, "alpha": 3.0}), random_step(0, [12])
    result = accumulate_gradients(policy, objective, share, 64, step, Ranks(), Stopwatch(policy.device))
    assert result.metrics["weight"] == pytest.approx(1.5, abs=1e-4)
    assert result.records["sample_loss"]["sample0"] == pytest.approx(result.metrics["sample_loss"])


@pytest.mark.parametrize("memory", [{}, {"sample_loss": {f"sample{i}": 4.0 + i for i in range(4)}}], ids=str)
def test_weights_do_not_depend_on_how_a_step_is_cut(memory: dict[str, dict[str, float]]) -> None:
    policy, objective, found = Policy(build("llama"), tokenizer()), build_objective("glow"), []
    for budget in (8, 40, 500):
        policy.model.zero_grad()
        step = begin(9, 10, 1.5, 0, policy=policy, token_budget=budget, ranks=Ranks(), memory=memory)
        share = random_step(1, [30, 3, 17, 9, 12])
        accumulate_gradients(policy, objective, share, budget, step, Ranks(), Stopwatch(policy.device))
        found.append(torch.cat([p.grad.flatten() for p in policy.model.parameters()]))
    for other in found[1:]:
        assert float((other - found[0]).norm()) < 1e-5 * float(found[0].norm())


def test_a_run_cut_off_in_its_second_epoch_weighs_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    objective = build_objective({"name": "glow", "beta": 2.0})
    options: dict[str, Any] = {"objective": objective, "steps": 8, "checkpoint_every": 3}
    whole = small_loop(tmp_path / "whole", **options)
    progress = train(whole)
    assert len(progress.memory["sample_loss"]) == len(DATA)
    rows = metrics(tmp_path / "whole")
    assert ["gain" in row for row in rows] == [False] * 3 + [True] * 5  # ten samples, four a step
    assert rows[-1]["weight"] != 1
    with pytest.raises(Interrupted):
        train(small_loop(tmp_path / "cut", stop_after=4, **options))
    resumed = small_loop(tmp_path / "cut", **options)
    train(resumed)
    assert same(trained(resumed), trained(whole))
    assert metrics(tmp_path / "cut") == rows
