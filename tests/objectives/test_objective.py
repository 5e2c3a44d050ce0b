import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from steps import Cut, cuts, on_ranks, random_sequence, random_step, steps
from torch import Tensor

from posttrain.data import Origin, Sequence
from posttrain.data.batch import Batch, Layout, collate
from posttrain.data.scores import ENTROPY, TokenScores
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.objectives import Loss, Objective, Reduction, Term, build_objective, objective
from posttrain.policy import Policy


def focal(scores: TokenScores, batch: Batch) -> Tensor:
    return -((1 - scores.logprobs.exp()) ** 2) * scores.logprobs + 0.1 * scores["entropy"]


def squared_mean(scores: TokenScores, batch: Batch) -> Tensor:
    return batch.mean_by_sequence(scores.logprobs).square()


def softmax_of_group(scores: TokenScores, batch: Batch) -> Tensor:
    sums = batch.mean_by_sequence(scores.logprobs)
    return torch.zeros(batch.groups).index_add(0, batch.group, sums.exp()).log1p()


MEANS = [Reduction("tokens"), Reduction("sequences"), Reduction("groups"), Reduction("constant", 9.0)]
LOSSES: dict[str, Any] = {"token": focal, "sequence": squared_mean, "group": softmax_of_group}


@st.composite
def terms(draw: st.DrawFn) -> Term:
    level = draw(st.sampled_from(["token", "sequence", "group"]))
    return Term(
        name=level,
        function=LOSSES[level],
        needs=(ENTROPY,) if level == "token" else (),
        reduction=draw(st.sampled_from(MEANS if level == "token" else MEANS[1:])),
        level=level,
        origins=draw(st.sampled_from([None, frozenset({Origin.DEMONSTRATION}), frozenset({Origin.ROLLOUT})])),
        where=draw(st.sampled_from([None, None, "reward"])),
        weight_column=draw(st.sampled_from([None, "weight"])),
        weight=draw(st.sampled_from([1.0, 0.3, lambda step: 2.0 * step.progress])),
    )


OBJECTIVES = st.lists(terms(), min_size=1, max_size=3).map(lambda chosen: Objective(*chosen))


@pytest.fixture(scope="module")
def policy() -> Policy:
    """In float64, where splits that differ only in rounding differ by nothing that could hide an error."""
    return Policy(build("llama").double(), tokenizer())


def losses_of(policy: Policy, loss: Objective, step: list[Sequence], cut: Cut, layout: Layout) -> list[Loss]:
    """One loss for each micro-batch of each rank, with its gradient added to `.grad`."""
    rows_of_ranks = on_ranks(
        [[step[i] for part in rank for i in part] for rank in cut],
        lambda share, gather: loss.coefficients(share, gather),
    )
    losses = []
    for rank, rows in zip(cut, rows_of_ranks, strict=True):
        remaining = iter(rows)
        for part in rank:
            chosen = [step[index] for index in part]
            batch = loss.attach(collate(chosen, pad_id=258, layout=layout), chosen, [next(remaining) for _ in part])
            losses.append(loss.loss(policy, replace(batch, step=Step(3, 10))))
            losses[-1].value.backward()  # type: ignore[no-untyped-call]
    return losses


def gradient_of(policy: Policy, loss: Objective, step: list[Sequence], cut: Cut, layout: Layout = "padded") -> Tensor:
    policy.model.zero_grad()
    losses_of(policy, loss, step, cut, layout)
    return torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 5e-7) -> None:
    """The body computes in float64 here, but log-probs leave the head in float32: a few of its roundings remain."""
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), steps(), OBJECTIVES, st.sampled_from(["padded", "packed"]))
def test_the_gradient_is_the_same_for_every_split_of_a_step(
    policy: Policy, data: st.DataObject, step: list[Sequence], loss: Objective, layout: Layout
) -> None:
    cut = data.draw(cuts(step, keep_groups=loss.keeps_groups))
    try:
        expected = gradient_of(policy, loss, step, [[list(range(len(step)))]])
    except UserError:
        with pytest.raises(UserError, match="without a single trained token"):
            gradient_of(policy, loss, step, cut, layout)
        return
    assert_same(gradient_of(policy, loss, step, cut, layout), expected)


@pytest.mark.parametrize("reduction", MEANS, ids=lambda reduction: reduction.kind)
def test_the_gradient_is_the_same_for_every_split_in_float32_too(reduction: Reduction) -> None:
    policy = Policy(build("qwen2"), tokenizer())
    with torch.no_grad():  # halved, a rounding error of the body stays a rounding error of the gradient
        for parameter in policy.model.parameters():
            parameter.mul_(0.5 if parameter.ndim > 1 else 1)
    step = random_step(1, [40, 3, 17, 9, 1, 30, 12])
    loss = Objective(Term("nll", lambda scores, batch: -scores.logprobs, reduction=reduction))
    expected = gradient_of(policy, loss, step, [[list(range(7))]])
    for cut in ([[[i] for i in range(7)]], [[[0, 1], [2]], [[3, 4, 5]], [[6]]], [[[6, 5, 4, 3]], [[2, 1, 0]]]):
        assert_same(gradient_of(policy, loss, step, cut), expected, 1e-6)
        assert_same(gradient_of(policy, loss, step, cut, "packed"), expected, 1e-6)


def numbers(metric: tuple[Tensor, Tensor | None]) -> np.ndarray[Any, Any]:
    return np.array([0.0 if value is None else float(value) for value in metric])


def test_losses_and_metrics_of_micro_batches_add_up_to_those_of_the_step(policy: Policy) -> None:
    def with_metrics(scores: TokenScores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        probabilities = scores.logprobs.exp()
        return -scores.logprobs, {"p": probabilities, "by_sequence": batch.mean_by_sequence(probabilities)}

    step = random_step(2, [9, 4, 12, 1, 7])
    loss = Objective(Term("a", with_metrics, origins=frozenset({Origin.ROLLOUT})), Term("b", with_metrics))
    totals: list[dict[str, np.ndarray[Any, Any]]] = []
    for cut in ([[[0, 1, 2, 3, 4]]], [[[0], [1]], [[2, 3], [4]]]):
        losses = losses_of(policy, loss, step, cut, "padded")
        names = losses[0].metrics
        totals.append({name: np.sum([numbers(part.metrics[name]) for part in losses], axis=0) for name in names})
        totals[-1]["value"] = np.array(sum(float(part.value.detach()) for part in losses))
    assert totals[0].keys() == totals[1].keys()
    for name, expected in totals[0].items():
        np.testing.assert_allclose(totals[1][name], expected, rtol=1e-6, err_msg=name)
    rollouts = sum(int((s.target & (s.origin == Origin.ROLLOUT)).sum()) for s in step)
    counts = {name: float(total[1]) for name, total in totals[0].items() if name != "value"}
    assert counts["a/p"] == rollouts < counts["b/p"] == counts["nll"] == sum(s.targets for s in step)
    assert counts["b/by_sequence"] == sum(s.targets > 0 for s in step)


def test_a_sum_and_a_multiple_of_objectives_have_the_sum_and_multiple_of_their_gradients(policy: Policy) -> None:
    step = random_step(3, [9, 4, 12])
    whole: Cut = [[[0, 1, 2]]]
    demonstrated = build_objective({"name": "nll", "origins": ["demonstration"]})
    rolled_out = build_objective({"name": "nll", "origins": "rollout", "reduction": "sequences"})
    first, second = (gradient_of(policy, part, step, whole) for part in (demonstrated, rolled_out))
    both = gradient_of(policy, 0.9 * demonstrated + 0.1 * rolled_out, step, whole)
    assert_same(both, 0.9 * first + 0.1 * second, 1e-6)
    listed = [
        {"name": "nll", "origins": ["demonstration"], "weight": 0.9},
        {"name": "nll", "origins": ["rollout"], "reduction": "sequences", "weight": 0.1},
    ]
    assert_same(gradient_of(policy, build_objective(listed), step, whole), both)


def test_every_term_is_divided_by_its_own_tokens() -> None:
    step = random_step(4, [50, 50])
    rows = build_objective([{"name": "nll", "origins": ["demonstration"]}, "nll"]).coefficients(step)
    for key in rows[0]:
        assert sum(float(row[key].sum()) for row in rows) == pytest.approx(1)


def test_weights_count_tokens_in_numerator_and_denominator(policy: Policy) -> None:
    step = random_step(5, [20, 10])
    loss = build_objective({"name": "nll", "weight_column": "weight"})
    rows = loss.coefficients(step)
    value = loss.loss(policy, loss.attach(collate(step), step, rows)).value
    batch = collate(step)
    weight = batch.column("weight")
    expected = -(weight * policy.scores(batch).logprobs).sum() / weight.sum()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_loss_over_groups_is_averaged_over_groups(policy: Policy) -> None:
    rng = np.random.default_rng(8)
    step = [random_sequence(rng, 9, str(i), trained=1.0, group=group) for i, group in enumerate("abab")]
    step.append(random_sequence(rng, 5, "silent", trained=0.0))
    loss = Objective(Term("group", softmax_of_group, level="group", reduction=Reduction("groups")))
    batch = loss.attach(collate(step), step, loss.coefficients(step))
    expected = softmax_of_group(policy.scores(batch), batch)[:2].mean()
    assert loss.loss(policy, batch).value.item() == pytest.approx(expected.item(), rel=1e-6)


def labelled(*values: float) -> list[Sequence]:
    step = random_step(8, [9, 14, 6, 11][: len(values)], trained=1.0)
    return [replace(s, scalars={"chosen": value}) for s, value in zip(step, values, strict=True)]


def test_where_counts_the_sequences_that_a_scalar_names(policy: Policy) -> None:
    step = labelled(1, 0, 1)
    chosen, others = ({"name": "nll", "where": where} for where in ("chosen", "not chosen"))
    whole: Cut = [[[0, 1, 2]]]
    expected = gradient_of(policy, build_objective("nll"), [step[0], step[2]], [[[0, 1]]])
    assert_same(gradient_of(policy, build_objective(chosen), step, whole), expected)
    expected = gradient_of(policy, build_objective("nll"), [step[1]], [[[0]]])
    assert_same(gradient_of(policy, build_objective(others), step, whole), expected)


def test_where_weighs_sequences_in_numerator_and_denominator() -> None:
    rows = build_objective({"name": "nll", "where": "chosen"}).coefficients(labelled(3, 0, 1))
    totals = [float(row["0:nll"].sum()) for row in rows]
    assert totals == [pytest.approx(3 * 8 / (3 * 8 + 5)), 0, pytest.approx(5 / (3 * 8 + 5))]


def test_where_weight_column_and_origins_hold_together() -> None:
    step = random_step(9, [30])
    spec = {"name": "nll", "where": "reward", "weight_column": "weight", "origins": ["rollout"]}
    measure = build_objective(spec).terms[0].measure(step[0])
    rollouts = step[0].target & (step[0].origin == Origin.ROLLOUT)
    np.testing.assert_allclose(measure[rollouts], step[0].scalars["reward"] * step[0].columns["weight"][rollouts])
    assert not measure[~rollouts].any()


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_scalar_that_cannot_count_sequences_is_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"scalar 'chosen' of sample sample0 is .* must be 0 or more"):
        build_objective({"name": "nll", "where": "chosen"}).coefficients(labelled(value))


def test_only_sequences_that_a_term_counts_need_what_it_reads() -> None:
    step = random_step(3, [9, 9], trained=1.0)
    origins = [Origin.DEMONSTRATION, Origin.ROLLOUT]
    step = [replace(s, origin=np.full(len(s), o, np.uint8)) for s, o in zip(step, origins, strict=True)]
    term = Term(
        "t", lambda scores, batch: scores.logprobs, origins=frozenset([Origin.ROLLOUT]), scalars=("r",), columns=("c",)
    )
    with pytest.raises(UserError, match="sample sample1 has no scalar 'r'"):
        Objective(term).coefficients(step)
    step[1] = replace(step[1], scalars={"r": 1.0})
    with pytest.raises(UserError, match="sample sample1 has no column 'c'"):
        Objective(term).coefficients(step)
    step[1] = replace(step[1], columns={"c": np.zeros(9, np.float32)})
    assert [bool(row["0:t"].any()) for row in Objective(term).coefficients(step)] == [False, True]


@pytest.mark.parametrize("where", ["choosen", "not choosen"])
def test_a_missing_scalar_is_named(where: str) -> None:
    with pytest.raises(UserError, match="sample sample0 has no scalar 'choosen': did you mean 'chosen'"):
        build_objective({"name": "nll", "where": where}).coefficients(labelled(1))


def test_an_objective_knows_the_scalars_that_it_reads_and_chooses_by() -> None:
    spec = [{"name": "nll", "where": "not rejected"}, {"name": "nll", "where": "kept"}, "simpo"]
    assert build_objective(spec).scalars == {"rejected", "kept", "chosen"}
    assert build_objective(spec).needs_pairs
    assert not build_objective(spec[:2]).needs_pairs


def test_what_terms_must_know_of_a_step_is_prepared_once_for_all_of_them() -> None:
    calls = []

    def longest(sequences: Any, step: Step) -> list[Sequence]:
        calls.append(len(sequences))
        most = max(step.gather(max(len(s) for s in sequences)))
        return [replace(s, scalars={**s.scalars, "longest": float(most)}) for s in sequences]

    terms = [Term(name, lambda scores, batch: -scores.logprobs, prepare=longest) for name in "ab"]
    step = Objective(*terms, Term("c", lambda scores, batch: -scores.logprobs)).prepare(labelled(1, 0), Step())
    assert calls == [2]
    assert {s.scalars["longest"] for s in step} == {14.0}
    assert Objective(Term("c", lambda scores, batch: -scores.logprobs)).prepare(step, Step()) is step


def test_a_metric_is_nan_where_it_has_no_value(policy: Policy) -> None:
    def halves(scores: TokenScores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        some = torch.tensor([2.0, torch.nan, 4.0, 8.0])
        return -scores.logprobs, {"some": some, "none": torch.full((4,), torch.nan)}

    step = random_step(3, [9, 9, 9, 9], trained=1.0)
    step[3] = replace(step[3], target=np.zeros(9, np.bool_))
    loss = Objective(Term("t", halves))
    found = loss.loss(policy, loss.attach(collate(step), step, loss.coefficients(step))).metrics
    assert numbers(found["some"]).tolist() == [6, 2]
    assert numbers(found["none"]).tolist() == [0, 0]


def test_two_terms_of_one_name_keep_their_metrics_apart(policy: Policy) -> None:
    step = random_step(6, [9])
    terms = [{"name": "nll", "origins": ["demonstration"]}, {"name": "nll", "origins": ["rollout"]}]
    loss = build_objective(terms)
    metrics = loss.loss(policy, loss.attach(collate(step), step, loss.coefficients(step))).metrics
    assert {"0:nll/loss", "1:nll/loss", "nll", "imitated"} == set(metrics)


def test_a_term_may_bring_its_own_forward(policy: Policy) -> None:
    def halved(policy: Policy, batch: Batch, needs: object) -> TokenScores:
        return TokenScores(policy.scores(batch).logprobs / 2)

    step = random_step(7, [9, 5])
    plain = Objective(Term("plain", lambda scores, batch: -scores.logprobs))
    own = Objective(Term("own", lambda scores, batch: -scores.logprobs, forward=halved))
    values = []
    for loss in (plain, own, plain + own):
        batch = loss.attach(collate(step), step, loss.coefficients(step))
        values.append(loss.loss(policy, batch).value.item())
    assert values[1] == pytest.approx(values[0] / 2)
    assert values[2] == pytest.approx(values[0] * 1.5)


def test_a_step_without_a_single_counted_token_is_refused_on_every_rank() -> None:
    silent = random_step(0, [5, 6], trained=0.0)
    with pytest.raises(UserError, match="without a single trained token"):
        build_objective("nll").coefficients(silent)
    with pytest.raises(UserError, match="without a single trained token"):
        build_objective({"name": "nll", "origins": ["hint"]}).coefficients(random_step(0, [5, 6]))

    def refusal(share: list[Sequence], gather: Any) -> str:
        with pytest.raises(UserError) as caught:
            build_objective("nll").coefficients(share, gather)
        return str(caught.value)

    assert len(set(on_ranks([silent[:1], silent[1:], []], refusal))) == 1


def test_a_rank_without_targets_takes_part_in_a_step_of_others() -> None:
    shares = [random_step(0, [5], trained=0.0), random_step(0, [5], trained=1.0)]
    rows = on_ranks(shares, lambda share, gather: build_objective("nll").coefficients(share, gather))
    assert not rows[0][0]["0:nll"].any()
    assert rows[1][0]["0:nll"].sum() == pytest.approx(1)


def test_a_loss_of_the_wrong_shape_is_refused(policy: Policy) -> None:
    loss = Objective(Term("mean", lambda scores, batch: -scores.logprobs.mean()))
    step = random_step(0, [5])
    with pytest.raises(ValueError, match=r"'mean' gave \(\), not"):
        loss.loss(policy, loss.attach(collate(step), step, loss.coefficients(step)))


@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf])
def test_a_weight_that_cannot_count_tokens_is_refused(value: float) -> None:
    step = random_step(0, [5], trained=1.0)
    step[0].columns["weight"][2] = value
    with pytest.raises(UserError, match=r"weight column 'weight' of sample sample0 .* negative or not finite"):
        build_objective({"name": "nll", "weight_column": "weight"}).coefficients(step)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "empty list"),
        ("nl", "unknown objective 'nl': did you mean 'nll'"),
        ({"weight": 1.0}, "has no 'name'"),
        ({"name": "nll", "label_smothing": 0.1}, "unknown option 'label_smothing' .* did you mean 'label_smoothing'"),
        ({"name": "nll", "label_smoothing": 1.0}, "'label_smoothing' .*below 1, found 1.0"),
        ({"name": "nll", "label_smoothing": "much"}, "'label_smoothing' has to be a number, found \"much\""),
        ({"name": "nll", "z_loss": -1}, "'z_loss' has to be 0 or more, found -1"),
        ({"name": "nll", "weight": "big"}, "'weight' must be a number, or .*found 'big'"),
        ({"name": "nll", "weight": True}, "'weight' must be a number, or .*found True"),
        ({"name": "nll", "reduction": "mean"}, "reduction 'mean' is none of tokens, sequences, groups"),
        ({"name": "nll", "reduction": {"constant": "long"}}, "needs a length in tokens, found 'long'"),
        ({"name": "nll", "reduction": {"constant": 0}}, "must be a positive number, found 0"),
        ({"name": "nll", "reduction": {"length": 5}}, "is none of tokens"),
        (
            {"name": "nll", "origins": ["demonstrations"]},
            "unknown origin 'demonstrations': did you mean 'demonstration'",
        ),
        ({"name": "nll", "origins": []}, "'origins' is an empty list"),
        ({"name": "nll", "where": 1}, "'where' must be the name of a scalar, or 'not' and one, found 1"),
        ({"name": "nll", "where": "not "}, "'where' must be the name of a scalar"),
    ],
)
def test_a_mistake_in_an_objective_is_named(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_objective(spec)


def test_a_missing_weight_column_is_named() -> None:
    with pytest.raises(UserError, match="no weight column 'wieght': did you mean 'weight'"):
        build_objective({"name": "nll", "weight_column": "wieght"}).coefficients(random_step(0, [5]))


def test_an_option_with_the_name_of_what_every_term_has_is_refused() -> None:
    with pytest.raises(TypeError, match="every term has \\['weight'\\] already"):

        @objective("clashing")
        def clashing(scores: TokenScores, batch: Batch, *, weight: float = 1.0) -> Tensor:
            return scores.logprobs
