"""Numbers from sheet 22: π = [.5, .3, .2], the truth is token 0, β = -0.1."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from gradients import batch_of, check_gradient, gradient, losses, mean_loss, results, step_of
from torch import Tensor

from posttrain.data.batch import collate
from posttrain.data.scores import Chunk
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.objectives import build_objective

LOGITS = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
MIXED = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)) * 2
SHEET = {"name": "otr", "draws": 4, "beta": -0.1, "kappa": 1.0}
EXACT = {"name": "otr", "estimator": "exact", "beta": -0.1, "kappa": 1.0}


@dataclass(frozen=True)
class Drawn(Chunk):
    """A chunk whose random numbers are given."""

    numbers: tuple[float, ...] = ()

    def uniforms(self, count: int) -> Tensor:
        assert count == len(self.numbers)
        return torch.tensor([self.numbers], dtype=torch.float64)


def loss_of_draws(at: Tensor, draws: list[int]) -> Tensor:
    """The loss where these tokens are drawn: numbers in the middle of their shares of [0, 1)."""
    numbers = tuple((0.25, 0.65, 0.9)[token] for token in draws)
    need = build_objective(SHEET).terms[0].needs[0]
    return need.function(Drawn(at, torch.tensor([0]), torch.tensor([0]), numbers=numbers))[:, 0]


def assert_near(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("draws", "loss", "expected"),
    [
        ([0, 0, 1, 2], 0.276238, [-0.275, 0.16, 0.115]),
        ([0, 0, 0, 0], 0.693147, [-0.5, 0.3, 0.2]),
        ([1, 1, 2, 1], -0.130534, [-0.05, 0.045, 0.005]),
    ],
)
def test_given_draws_have_the_numbers_of_the_sheet(draws: list[int], loss: float, expected: list[float]) -> None:
    assert_near(loss_of_draws(LOGITS, draws), [loss])
    assert_near(gradient(lambda at: loss_of_draws(at, draws), LOGITS), [expected])


@pytest.mark.parametrize("spec", [SHEET | {"draws": 500}, EXACT])
def test_rows_of_the_head_without_a_token_are_never_drawn(spec: dict[str, Any]) -> None:
    """They keep their share of π: log π(a) is the model's, with all its rows."""
    need = build_objective(spec).terms[0].needs[0].function
    padded = torch.tensor([[0.5, 0.3, 0.2, 8.0]], dtype=torch.float64).log()
    found = need(Chunk(padded, torch.tensor([0]), torch.tensor([3]), words=3))
    plain = need(Chunk(LOGITS, torch.tensor([0]), torch.tensor([3])))
    hit, reward = plain[0, 1], plain[0, 1] - 0.1 * (1 - plain[0, 1])
    assert_near(found[:, 1], [float(hit)])
    assert_near(found[:, 0], [float(plain[0, 0] + reward * math.log(9))])


@pytest.mark.parametrize(
    ("kappa", "loss", "expected"),
    [(1.0, 0.278266, [-0.275, 0.165, 0.11]), (1.3, 0.245400, [-0.257444, 0.153246, 0.104199])],
)
def test_the_exact_form_has_the_numbers_of_the_sheet(kappa: float, loss: float, expected: list[float]) -> None:
    spec = EXACT | {"kappa": kappa}
    assert_near(losses(spec, batch_of([[0]]), LOGITS), [loss])
    assert_near(gradient(lambda at: losses(spec, batch_of([[0]]), at), LOGITS), [expected])


def test_the_metrics_of_the_exact_form_are_its_expectations() -> None:
    """q at κ = 1.3 is that of the sheet; the entropy is that of π, at temperature 1."""
    metrics = results(EXACT | {"kappa": 1.3}, batch_of([[0]]), LOGITS)[1]
    assert_near(metrics["hit_rate"], [0.460988])
    assert_near(metrics["reward"], [0.460988 - 0.1 * 0.539012])
    assert_near(metrics["entropy"], [-(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))])


def test_at_kappa_one_the_exact_gradient_is_that_of_dft_times_one_minus_beta() -> None:
    batch = batch_of([[0, 3, 1], [4, 5]])
    expected = gradient(lambda at: losses("dft", batch, at), MIXED.double())
    for beta in (-1.0, -0.1, 0.5, 1.0):
        found = gradient(lambda at, b=beta: losses(EXACT | {"beta": b}, batch, at), MIXED.double())
        torch.testing.assert_close(found, (1 - beta) * expected)


def test_a_token_that_is_never_hit_learns_nothing_without_a_penalty() -> None:
    logits = torch.tensor([[-30.0, 0.0, 0.0]])
    spec = {"name": "otr", "beta": 0.0, "kappa": 1.0}
    assert not gradient(lambda at: losses(spec, batch_of([[0]]), at), logits).any()


def many(count: int, logits: Tensor) -> tuple[Any, Tensor]:
    """One distribution at many positions, the truth of all of them token 0."""
    return batch_of([[0] * count]), logits.expand(count, -1)


@pytest.mark.parametrize("kappa", [1.0, 1.3])
def test_draws_follow_the_tempered_distribution_and_the_sampled_gradient_is_unbiased(kappa: float) -> None:
    count, options = 4000, {"beta": -0.5, "kappa": kappa}
    batch, logits = many(count, LOGITS)
    sampled, metrics = results(SHEET | options | {"draws": 8}, batch, logits)
    exact, expected = results(EXACT | options, batch, logits)
    spread = sampled.std() / count**0.5
    assert abs(sampled.mean() - exact[0]) < 4 * spread
    q = torch.softmax(LOGITS / kappa, -1)[0, 0].item()
    assert expected["hit_rate"][0].item() == pytest.approx(q, abs=1e-6)
    assert abs(metrics["hit_rate"].mean().item() - q) < 4 * (q * (1 - q) / (8 * count)) ** 0.5
    torch.testing.assert_close(metrics["reward"], 1.5 * metrics["hit_rate"] - 0.5)
    found = gradient(lambda at: losses(SHEET | options | {"draws": 8}, batch, at), logits)
    wanted = gradient(lambda at: losses(EXACT | options, batch, at), logits)
    assert (abs(found.mean(0) - wanted[0]) < 4 * found.std(0) / count**0.5).all()


def test_the_sampled_gradient_tends_to_that_of_dft_as_draws_grow() -> None:
    batch = batch_of([[0, 3, 1], [4, 5]])
    dft = gradient(lambda at: losses("dft", batch, at), MIXED)
    cosines = []
    for draws in (1, 256, 20_000):
        found = gradient(lambda at, k=draws: losses(SHEET | {"draws": k}, batch, at), MIXED)
        cosines.append(torch.cosine_similarity(found.flatten(), dft.flatten(), 0).item())
    assert cosines[0] < cosines[1] < cosines[2]
    assert cosines[1] > 0.95
    assert cosines[2] > 0.999


@pytest.mark.parametrize(("p", "missed"), [(0.01, 0.0763), (0.001, 0.774)])
def test_all_draws_miss_an_improbable_truth_as_often_as_the_sheet_says(p: float, missed: float) -> None:
    count = 3000
    batch, logits = many(count, torch.tensor([[p, 1 - p]]).log())
    hits = results({"name": "otr", "kappa": 1.0}, batch, logits)[1]["hit_rate"]
    share = (hits == 0).double().mean().item()
    assert abs(share - missed) < 4 * (missed * (1 - missed) / count) ** 0.5


def test_draws_are_those_of_the_step_and_the_token() -> None:
    batch, logits = many(50, LOGITS)
    first, again = (losses(SHEET, batch, logits) for _ in range(2))
    assert torch.equal(first, again)
    assert len(set(first.tolist())) > 3
    assert not torch.equal(losses(SHEET, replace(batch, step=Step(seed=1)), logits), first)


def test_a_number_of_zero_draws_the_first_token_that_is_not_ruled_out() -> None:
    chunk = Drawn(torch.tensor([[-torch.inf, 0.0, 0.0]]), torch.tensor([1]), torch.tensor([0]), numbers=(0.0,) * 4)
    assert build_objective(SHEET).terms[0].needs[0].function(chunk)[:, 1].item() == 1


def test_sequences_weigh_the_same_whatever_their_lengths_unless_told_otherwise() -> None:
    step = step_of([[0, 3, 1], [4]])
    first, second = losses(EXACT, collate(step), MIXED[:4]).split([3, 1])
    assert mean_loss(EXACT, step, MIXED[:4]).item() == pytest.approx(((first.mean() + second.mean()) / 2).item())
    by_token = mean_loss(EXACT | {"reduction": "tokens"}, step, MIXED[:4])
    assert by_token.item() == pytest.approx(torch.cat([first, second]).mean().item())


def test_what_is_ruled_out_is_never_drawn_and_costs_nothing() -> None:
    logits = torch.tensor([[0.3, -torch.inf, 0.1, -torch.inf]]).expand(200, -1)
    batch = batch_of([[0] * 100 + [1] * 100])
    for spec in (SHEET, EXACT):
        assert losses(spec, batch, logits).isfinite().all()
        found = gradient(lambda at, s=spec: losses(s, batch, at), logits)
        assert found.isfinite().all()
        assert not found[:, 1].any()
        assert not found[:, 3].any()


@pytest.mark.parametrize("spec", [SHEET | {"kappa": 1.3}, EXACT | {"kappa": 1.3}, SHEET | {"beta": 0.5}], ids=str)
def test_gradients_are_those_of_finite_differences(spec: Any) -> None:
    check_gradient(spec, batch_of([[0, 3, 1], [4, 5]]), MIXED)


@pytest.mark.parametrize("spec", [SHEET, EXACT], ids=str)
def test_extremes_are_finite_and_nothing_costs_nothing(spec: Any) -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [0.0, 0.0, 0.0]])
    batch = batch_of([[0, 0, 0]])
    assert losses(spec, batch, logits).isfinite().all()
    assert gradient(lambda at: losses(spec, batch, at), logits).isfinite().all()
    assert losses(spec, batch_of([[]]), torch.zeros(0, 3)).shape == (0,)


def test_two_terms_with_other_options_draw_apart() -> None:
    names = [build_objective(SHEET | {"draws": draws}).terms[0].needs[0].name for draws in (4, 8)]
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "'draws' has to be 1 or more, found 0"),
        ({"beta": 1.5}, "'beta' has to be 1 or less, found 1.5"),
        ({"kappa": 0}, "'kappa' has to be above 0, found 0"),
        ({"estimator": "expected"}, "'estimator' has to be 'sample' or 'exact'"),
    ],
)
def test_a_mistake_in_an_option_is_named(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_objective({"name": "otr", **options})
