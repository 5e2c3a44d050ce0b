from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import cuts, on_ranks, random_step, steps

from posttrain.data import Sequence
from posttrain.errors import UserError
from posttrain.objectives.objective import Term
from posttrain.objectives.reduction import Level, Measure, Reduction

REDUCTIONS = [Reduction("tokens"), Reduction("sequences"), Reduction("groups"), Reduction("constant", 7.0)]
OF_TOKENS = st.sampled_from(REDUCTIONS)
OF_WHOLES = st.sampled_from(REDUCTIONS[1:])


def measures_of(step: list[Sequence], weighted: bool = False) -> list[Measure]:
    term = Term("any", lambda scores, batch: scores.logprobs, weight_column="weight" if weighted else None)
    return [term.measure(sequence) for sequence in step]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def weighted_mean(pairs: list[tuple[Measure, Measure]]) -> float:
    return sum(float((m * x).sum()) for m, x in pairs) / sum(float(m.sum()) for m, _ in pairs)


def groups_of(step: list[Sequence]) -> list[list[int]]:
    groups: dict[str | int, list[int]] = defaultdict(list)
    for index, sequence in enumerate(step):
        groups[sequence.group or index].append(index)
    return list(groups.values())


def by_definition(reduction: Reduction, step: list[Sequence], measures: list[Measure], losses: list[Measure]) -> float:
    """The number that a reduction's docstring promises for losses `[T]` of each sequence."""
    pairs = list(zip(measures, losses, strict=True))
    counted = [pair for pair in pairs if pair[0].sum() > 0]
    if reduction.kind == "tokens":
        return weighted_mean(counted) if counted else 0.0
    if reduction.kind == "sequences":
        return mean([weighted_mean([pair]) for pair in counted])
    if reduction.kind == "constant":
        return mean([float((m * x).sum()) for m, x in counted]) / float(reduction.length or 0)
    groups = [[pairs[i] for i in group if pairs[i][0].sum() > 0] for group in groups_of(step)]
    return mean([weighted_mean(group) for group in groups if group])


def reduced(coefficients: list[Measure], losses: list[Measure]) -> float:
    return sum(float((c * x).sum()) for c, x in zip(coefficients, losses, strict=True))


@given(steps(), OF_TOKENS, st.booleans(), st.integers(0, 1000))
def test_coefficients_give_the_mean_that_the_reduction_names(
    step: list[Sequence], reduction: Reduction, weighted: bool, seed: int
) -> None:
    measures = measures_of(step, weighted)
    rng = np.random.default_rng(seed)
    losses = [rng.normal(size=len(sequence)) for sequence in step]
    found = reduced(reduction.coefficients(step, measures), losses)
    assert found == pytest.approx(by_definition(reduction, step, measures, losses), rel=1e-12, abs=1e-12)


@given(steps(), OF_WHOLES, st.integers(0, 1000))
def test_a_loss_of_one_value_a_sequence_is_reduced_as_one_token_each(
    step: list[Sequence], reduction: Reduction, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    losses = [rng.normal(size=1) for _ in step]
    ones = [np.array([float(sequence.targets > 0)]) for sequence in step]
    found = reduced(reduction.coefficients(step, measures_of(step), "sequence"), losses)
    assert found == pytest.approx(by_definition(reduction, step, ones, losses), rel=1e-12, abs=1e-12)


@given(steps())
def test_a_loss_of_one_value_a_group_is_averaged_over_the_groups_that_count(step: list[Sequence]) -> None:
    counting = [group for group in groups_of(step) if any(step[i].targets for i in group)]
    for reduction, length in ((Reduction("groups"), 1), (Reduction("sequences"), 1), (Reduction("constant", 7.0), 7)):
        coefficients = reduction.coefficients(step, measures_of(step), "group")
        for group in groups_of(step):
            expected = 1 / (length * len(counting)) if group in counting else 0.0
            assert max(float(coefficients[i][0]) for i in group) == pytest.approx(expected)


@given(
    st.data(), steps(), st.sampled_from([("token", r) for r in REDUCTIONS] + [("sequence", r) for r in REDUCTIONS[1:]])
)
def test_coefficients_are_the_same_however_ranks_share_the_step(
    data: st.DataObject, step: list[Sequence], kind: tuple[Level, Reduction]
) -> None:
    level, reduction = kind
    ranks = [[index for part in parts for index in part] for parts in data.draw(cuts(step, keep_groups=False))]
    expected = reduction.coefficients(step, measures_of(step), level)
    found = on_ranks(
        [[step[index] for index in rank] for rank in ranks],
        lambda share, gather: reduction.coefficients(share, measures_of(share), level, gather),
    )
    for rank, coefficients in zip(ranks, found, strict=True):
        for index, coefficient in zip(rank, coefficients, strict=True):
            np.testing.assert_allclose(coefficient, expected[index], rtol=1e-12)


@pytest.mark.parametrize("level", ["token", "sequence", "group"])
@pytest.mark.parametrize("reduction", REDUCTIONS[1:], ids=lambda r: r.kind)
def test_a_step_without_targets_has_coefficients_of_zero(reduction: Reduction, level: Level) -> None:
    step = random_step(0, [3, 1, 5], trained=0.0)
    coefficients = reduction.coefficients(step, measures_of(step), level)
    assert all(np.isfinite(c).all() and not c.any() for c in coefficients)


@pytest.mark.parametrize("level", ["token", "sequence", "group"])
@pytest.mark.parametrize("reduction", REDUCTIONS[1:], ids=lambda r: r.kind)
def test_a_rank_may_have_no_sequence_at_all(reduction: Reduction, level: Level) -> None:
    step = random_step(0, [3, 4])
    shares: list[list[Sequence]] = [step, []]
    found = on_ranks(shares, lambda share, gather: reduction.coefficients(share, measures_of(share), level, gather))
    assert found[1] == []
    assert sum(float(c.sum()) for c in found[0]) > 0


@pytest.mark.parametrize("level", ["sequence", "group"])
def test_a_mean_over_tokens_of_a_loss_over_wholes_is_refused(level: Level) -> None:
    with pytest.raises(UserError, match=f"'tokens' has no meaning for a loss with one value a {level}"):
        Reduction("tokens").coefficients([], [], level)
    with pytest.raises(UserError, match="use 'sequences'"):
        Term("pairwise", lambda scores, batch: scores.logprobs, level=level)


@pytest.mark.parametrize(("kind", "length"), [("constant", None), ("tokens", 3.0)])
def test_a_length_belongs_to_the_constant_reduction_alone(kind: str, length: float | None) -> None:
    with pytest.raises(UserError, match="'length' belongs to reduction 'constant'"):
        Reduction(kind, length)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0.0, -1.0, float("inf"), float("nan")])
def test_a_constant_length_that_is_no_positive_number_is_refused(length: float) -> None:
    with pytest.raises(UserError, match="must be a positive number"):
        Reduction("constant", length)


def test_a_constant_length_does_not_count_sequences_without_any_measure() -> None:
    step = random_step(1, [6, 9, 4], trained=1.0)
    measures = [step[0].target.astype(float), step[1].target.astype(float), np.zeros(4)]
    alone, mixed = (Reduction("constant", 7.0).coefficients(step[:n], measures[:n]) for n in (2, 3))
    assert [row.sum() for row in mixed] == [*(row.sum() for row in alone), 0]
