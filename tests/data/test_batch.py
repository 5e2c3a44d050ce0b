import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps import random_sequence, random_step, steps

from posttrain.data import Sequence
from posttrain.data.batch import Batch, Layout, collate, micro_batches

LAYOUTS = st.sampled_from(["padded", "packed"])


def named(batch: Batch, step: list[Sequence]) -> dict[tuple[str, int], int]:
    """(sample, position) -> index of the target token."""
    keys = zip(batch.sequence.tolist(), batch.position.tolist(), strict=True)
    return {(step[s].sample_id, position): index for index, (s, position) in enumerate(keys)}


@given(steps(), LAYOUTS)
def test_the_state_that_predicts_a_token_stands_just_before_it(step: list[Sequence], layout: Layout) -> None:
    batch = collate(step, layout=layout)
    ids = batch.rows.input_ids.flatten()
    assert torch.equal(ids[batch.where + 1], batch.tokens)


@given(steps(), LAYOUTS)
def test_target_tokens_keep_their_sequence_position_and_values(step: list[Sequence], layout: Layout) -> None:
    batch = collate(step, layout=layout)
    assert len(batch.tokens) == sum(sequence.targets for sequence in step)
    for n, (s, position) in enumerate(zip(batch.sequence.tolist(), batch.position.tolist(), strict=True)):
        assert step[s].target[position]
        assert batch.tokens[n] == step[s].tokens[position]
        assert batch.origin[n] == step[s].origin[position]
        assert batch.column("weight")[n] == step[s].columns["weight"][position]
    assert batch.sample_ids == tuple(sequence.sample_id for sequence in step)
    assert torch.allclose(batch.scalar("reward"), torch.tensor([s.scalars["reward"] for s in step]))


@given(steps())
def test_padded_rows_hold_one_sequence_each_and_padding_after_it(step: list[Sequence]) -> None:
    rows = collate(step, pad_id=999).rows
    assert rows.position_ids is None
    for row, sequence in zip(rows.input_ids, step, strict=True):
        assert row[: len(sequence)].tolist() == sequence.tokens.tolist()
        assert (row[len(sequence) :] == 999).all()


@given(steps())
def test_packed_positions_start_again_at_every_sequence(step: list[Sequence]) -> None:
    rows = collate(step, layout="packed").rows
    assert rows.position_ids is not None
    assert rows.input_ids.shape == rows.position_ids.shape == (1, sum(len(sequence) for sequence in step))
    assert rows.position_ids[0].tolist() == [position for sequence in step for position in range(len(sequence))]


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_corrupted_inputs_are_read_and_the_true_tokens_are_asked_for(layout: Layout) -> None:
    tokens, inputs = np.array([1, 2, 3], np.int32), np.array([1, 9, 3], np.int32)
    target, origin = np.array([False, True, True]), np.zeros(3, np.uint8)
    batch = collate([Sequence(tokens, target, origin, "a", inputs=inputs)], layout=layout)
    assert batch.rows.input_ids[0].tolist() == [1, 9, 3]
    assert batch.tokens.tolist() == [2, 3]


def test_a_column_or_scalar_that_a_sequence_lacks_is_0_there() -> None:
    target, origin = np.array([False, True]), np.zeros(2, np.uint8)
    both, one = np.array([0, 1], np.float32), np.array([0, 2], np.float32)
    tokens = np.array([1, 2], np.int32)
    first = Sequence(tokens, target, origin, "a", columns={"both": both, "one": one}, scalars={"r": 1.0, "x": 2.0})
    second = Sequence(tokens, target, origin, "b", columns={"both": both}, scalars={"r": 3.0})
    batch = collate([first, second])
    assert batch.column("both").tolist() == [1, 1]
    assert batch.column("one").tolist() == [2, 0]
    assert batch.scalar("r").tolist() == [1, 3]
    assert batch.scalar("x").tolist() == [2, 0]
    with pytest.raises(KeyError, match=r"no column 'two' \(there are: both, one\)"):
        batch.column("two")
    with pytest.raises(KeyError, match=r"no scalar 'y' \(there are: r, x\)"):
        batch.scalar("y")


def test_sums_and_means_by_sequence_are_zero_where_a_sequence_has_no_target() -> None:
    origin = np.zeros(3, np.uint8)
    tokens = np.arange(3, dtype=np.int32)
    targets = [[False, True, True], [False, False, False], [False, False, True]]
    batch = collate([Sequence(tokens, np.array(t), origin, str(i)) for i, t in enumerate(targets)])
    values = torch.tensor([1.0, 3.0, 5.0])
    assert batch.sum_by_sequence(values).tolist() == [4, 0, 5]
    assert batch.mean_by_sequence(values).tolist() == [2, 0, 5]


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_batch_without_any_target_is_empty_but_whole(layout: Layout) -> None:
    batch = collate(random_step(0, [3, 1], trained=0.0), layout=layout)
    assert len(batch.tokens) == len(batch.where) == len(batch.key) == len(batch.column("weight")) == 0
    assert batch.tokens.dtype == batch.where.dtype == batch.sequence.dtype == batch.key.dtype == torch.int64
    assert batch.mean_by_sequence(torch.zeros(0)).tolist() == [0, 0]


def test_a_batch_of_no_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        collate([])


def test_sequences_without_a_group_are_groups_of_their_own() -> None:
    rng = np.random.default_rng(0)
    step = [random_sequence(rng, 3, group=group) for group in ("x", "", "x", "", "y")]
    batch = collate(step)
    assert batch.group.tolist() == [0, 1, 0, 2, 3]
    assert batch.groups == 4


@given(steps(), LAYOUTS)
def test_keys_name_tokens_whatever_batch_they_are_in(step: list[Sequence], layout: Layout) -> None:
    whole = collate(step, layout=layout)
    part = list(reversed(step))[: max(1, len(step) // 2)]
    batch = collate(part)
    index = named(whole, step)
    for name, n in named(batch, part).items():
        assert batch.key[n] == whole.key[index[name]]
    assert len(set(whole.key.tolist())) == len(whole.key)


def test_two_rollouts_of_one_prompt_have_different_keys() -> None:
    rng = np.random.default_rng(0)
    batch = collate([random_sequence(rng, 5, "sample", trained=1.0, group="prompt") for _ in range(2)])
    assert len(set(batch.key.tolist())) == len(batch.key) == 8


def test_extras_of_several_sequences_are_joined_along_their_first_dimension() -> None:
    tokens, target, origin = np.array([1, 2], np.int32), np.array([False, True]), np.zeros(2, np.uint8)
    images = [np.full((n, 4), n, np.float32) for n in (2, 1)]
    with_images = [Sequence(tokens, target, origin, str(i), extras={"pixel_values": x}) for i, x in enumerate(images)]
    text_only = Sequence(tokens, target, origin, "text")
    pixels = collate([with_images[0], text_only, with_images[1]]).rows.extras["pixel_values"]
    assert torch.equal(pixels, torch.tensor([2.0, 2.0, 1.0])[:, None].expand(3, 4))


def test_every_tensor_of_a_batch_moves_to_the_device() -> None:
    batch = collate(random_step(0, [3, 4]), layout="packed").to(torch.device("meta"))
    tensors = [batch.tokens, batch.where, batch.group, batch.rows.input_ids, batch.rows.position_ids, batch.key]
    assert all(t is not None and t.device.type == "meta" for t in [*tensors, *batch.columns.values()])
    assert batch.sample_ids == ("sample0", "sample1")


@given(steps(longest=30, most=12), st.integers(1, 60), LAYOUTS, st.booleans())
def test_micro_batches_cut_a_step_without_loss_and_within_the_budget(
    step: list[Sequence], budget: int, layout: Layout, keep_groups: bool
) -> None:
    parts = micro_batches(step, budget, layout=layout, keep_groups=keep_groups)
    assert sorted(index for part in parts for index in part) == list(range(len(step)))
    for part in parts:
        size = collate([step[index] for index in part], layout=layout).rows.input_ids.numel()
        items = {step[index].group or index for index in part} if keep_groups else set(part)
        assert size <= budget or len(items) == 1
    if keep_groups:
        groups = [{step[index].group for index in part if step[index].group} for part in parts]
        assert sum(len(group) for group in groups) == len(set().union(*groups))


def test_sequences_of_like_length_share_a_micro_batch() -> None:
    step = random_step(0, [2, 10, 2, 10, 2, 10])
    assert sorted(micro_batches(step, 20)) == [[0, 2, 4], [1, 3], [5]]


def test_padding_is_traded_for_micro_batches_at_a_32nd_of_the_budget() -> None:
    step = random_step(0, [10, 12, 12, 30])
    assert micro_batches(step, 320) == [[0, 1, 2], [3]]  # 2 tokens of padding are cheaper than one more start, 54 not
    assert micro_batches(step, 3200) == [[0, 1, 2, 3]]  # where starts are dear, all go together
    assert micro_batches(step, 32) == [[3], [1, 2], [0]]


@given(steps(longest=30, most=8), st.integers(1, 200))
def test_no_cut_of_sorted_sequences_is_cheaper(step: list[Sequence], budget: int) -> None:
    lengths = sorted(len(sequence) for sequence in step)

    def cost(parts: list[list[int]]) -> float:
        return sum(max(part) * len(part) + budget / 32 for part in parts)

    def cuts(lengths: list[int]) -> list[list[list[int]]]:
        firsts = (lengths[:n] for n in range(1, len(lengths) + 1))
        allowed = [first for first in firsts if len(first) == 1 or max(first) * len(first) <= budget]
        return [[first, *rest] for first in allowed for rest in cuts(lengths[len(first) :])] if lengths else [[]]

    found = cost([[len(step[index]) for index in part] for part in micro_batches(step, budget)])
    assert found == pytest.approx(min(cost(parts) for parts in cuts(lengths)))


def test_the_largest_micro_batch_comes_first() -> None:
    step = random_step(0, [2, 3, 9, 9, 9, 20])
    areas = [max(len(step[row]) for row in part) * len(part) for part in micro_batches(step, 30)]
    assert areas == sorted(areas, reverse=True)
