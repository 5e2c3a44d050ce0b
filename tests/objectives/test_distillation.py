import math
from typing import Any

import pytest
import torch
from gradients import LogitsPolicy, batch_of, check_gradient, gradient, losses
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.errors import UserError
from posttrain.objectives import build_objective

BATCH = batch_of([[0, 3, 1], [4]])
STUDENT = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)) * 2
TEACHER = torch.randn(4, 7, generator=torch.Generator().manual_seed(1)) * 2


def distillation(divergence: str = "jsd", **options: Any) -> dict[str, Any]:
    return {"name": "distillation", "divergence": divergence, **options}


EVERY = [
    distillation("forward_kl"),
    distillation("reverse_kl"),
    distillation("jsd"),
    distillation("jsd", beta=0.1, temperature=0.5),
    distillation("forward_kl", temperature=2.0),
]


def test_both_kls_have_the_numbers_of_sheet_36() -> None:
    student = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]).log()
    teacher = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]).log()
    for divergence, expected in (("forward_kl", [0.092033, 0.057536]), ("reverse_kl", [0.085123, 0.052325])):
        found = losses(distillation(divergence), batch_of([[0, 1]]), student, teacher)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_every_divergence_is_that_of_trl(beta: float, temperature: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer", reason="TRL is an extra")
    divergence = {0: "forward_kl", 1: "reverse_kl"}.get(beta, "jsd")
    spec = distillation(divergence, temperature=temperature, **({"beta": beta} if divergence == "jsd" else {}))

    def theirs(at: Tensor) -> Tensor:
        labels = torch.zeros(1, len(at), dtype=torch.long)
        loss: Tensor = gkd.GKDTrainer.generalized_jsd_loss(at[None], TEACHER[None], labels, beta, temperature)
        return loss

    torch.testing.assert_close(losses(spec, BATCH, STUDENT, TEACHER).mean(), theirs(STUDENT), rtol=1e-5, atol=1e-6)
    found = gradient(lambda at: losses(spec, BATCH, at, TEACHER).mean(), STUDENT)
    torch.testing.assert_close(found, gradient(theirs, STUDENT), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", EVERY, ids=str)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(spec: Any) -> None:
    assert losses(spec, BATCH, STUDENT, STUDENT).abs().max() < 1e-6
    assert gradient(lambda at: losses(spec, BATCH, at, STUDENT), STUDENT).abs().max() < 1e-6


def test_jsd_lies_between_the_kls() -> None:
    """JSD/β tends to forward KL as β tends to 0, and JSD/(1 - β) to reverse KL as β tends to 1."""
    student, teacher = STUDENT.double(), TEACHER.double()
    forward, reverse = (losses(distillation(d), BATCH, student, teacher) for d in ("forward_kl", "reverse_kl"))
    low, high = (losses(distillation(beta=beta), BATCH, student, teacher) for beta in (1e-6, 1 - 1e-6))
    torch.testing.assert_close(low / 1e-6, forward, rtol=1e-3, atol=0)
    torch.testing.assert_close(high / 1e-6, reverse, rtol=1e-3, atol=0)


def test_the_even_jsd_is_symmetric_and_at_most_one_bit() -> None:
    there, back = losses(distillation(), BATCH, STUDENT, TEACHER), losses(distillation(), BATCH, TEACHER, STUDENT)
    torch.testing.assert_close(there, back)
    assert (there < math.log(2)).all()
    apart = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    assert losses(distillation(), batch_of([[0]]), apart[:1], apart[1:]).item() == pytest.approx(math.log(2))


def test_a_high_temperature_makes_the_distributions_alike() -> None:
    warm, hot = (losses(distillation("forward_kl", temperature=t), BATCH, STUDENT, TEACHER) for t in (10.0, 1000.0))
    assert (hot < 1e-3 * warm).all()


@pytest.mark.parametrize("spec", EVERY, ids=str)
def test_gradients_are_those_of_finite_differences(spec: Any) -> None:
    check_gradient(spec, BATCH, STUDENT, TEACHER)


EXTREMES = st.lists(st.sampled_from([0.0, 1.0, 60.0, -60.0, 1e4, -1e4, -torch.inf]), min_size=3, max_size=3)


@settings(deadline=None)
@given(EXTREMES, EXTREMES, st.sampled_from(EVERY))
def test_certain_and_impossible_tokens_and_those_that_both_rule_out_are_finite(
    student: list[float], teacher: list[float], spec: Any
) -> None:
    """What only one of them rules out costs infinitely much in one of the KLs: not here."""
    ruled_out = [max(a, b) == -torch.inf for a, b in zip(student, teacher, strict=True)]
    ours, theirs = (
        torch.tensor(
            [[0.5, *(-torch.inf if out else max(value, -1e4) for value, out in zip(row, ruled_out, strict=True))]]
        )
        for row in (student, teacher)
    )
    assert losses(spec, batch_of([[0]]), ours, theirs).isfinite().all()
    assert gradient(lambda at: losses(spec, batch_of([[0]]), at, theirs), ours).isfinite().all()


def test_what_both_rule_out_counts_nothing() -> None:
    out = torch.full((4, 1), -torch.inf)
    for spec in EVERY:
        found = losses(spec, BATCH, torch.cat([STUDENT, out], -1), torch.cat([TEACHER, out], -1))
        torch.testing.assert_close(found, losses(spec, BATCH, STUDENT, TEACHER))


def test_nothing_costs_nothing() -> None:
    none = torch.zeros(0, 7)
    for spec in EVERY:
        assert losses(spec, batch_of([[], []]), none, none).shape == (0,)


def test_padding_of_the_larger_vocabulary_is_left_out() -> None:
    student, teacher = (torch.randn(4, size, generator=torch.Generator().manual_seed(2)) for size in (300, 302))
    found = losses(distillation("forward_kl"), BATCH, student, teacher)
    torch.testing.assert_close(found, losses(distillation("forward_kl"), BATCH, student, teacher[:, :300]))
    assert losses(distillation("forward_kl"), BATCH, teacher, student).shape == (4,)


def test_a_teacher_with_another_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match=r"the model has 7 tokens and the teacher 9.*share a vocabulary"):
        losses(distillation(), BATCH, STUDENT, torch.zeros(4, 9))


def test_terms_with_other_options_are_kept_apart() -> None:
    specs = [distillation("forward_kl"), distillation("reverse_kl"), distillation("forward_kl", temperature=2.0)]
    needs = tuple(need for term in build_objective(specs).terms for need in term.needs)
    assert len({need.name for need in needs}) == 3
    extra = LogitsPolicy(STUDENT, TEACHER).scores(BATCH, needs).extra
    for spec, need in zip(specs, needs, strict=True):
        torch.testing.assert_close(extra[need.name], losses(spec, BATCH, STUDENT, TEACHER))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (distillation("kl"), "'divergence' .*'forward_kl', 'reverse_kl' or 'jsd'"),
        (distillation(beta=0.0), "'beta' .*above 0"),
        (distillation(temperature=0), "'temperature' .*above 0"),
    ],
)
def test_a_mistake_in_an_option_is_named(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_objective(spec)
