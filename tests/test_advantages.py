import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from posttrain.advantages import Outcomes, build_advantage, gae, whitened
from posttrain.errors import UserError


def outcomes(rewards, group=None, lengths=None, **more):
    size = len(rewards)
    group = np.zeros(size, int) if group is None else np.array(group)
    lengths = np.ones(size, int) if lengths is None else np.array(lengths)
    return Outcomes(np.array(rewards, dtype=float), group, lengths, **more)


def found(spec, *arguments, **more):
    return np.concatenate(build_advantage(spec)(outcomes(*arguments, **more))["advantage"])


@pytest.mark.parametrize(
    ("spec", "half", "one_of_eight"),
    [
        ({"name": "group", "eps": 0}, 0.866025, (2.474874, -0.353553)),
        ({"name": "group", "std": "population", "eps": 0}, 1.0, (2.645751, -0.377964)),
        ({"name": "group", "std": "none"}, 0.5, (0.875, -0.125)),
        ("leave_one_out", 2 / 3, (1.0, -1 / 7)),
    ],
)
def test_golden_numbers_of_groups(spec, half, one_of_eight):
    assert found(spec, [1, 0, 0, 1]) == pytest.approx([half, -half, -half, half], abs=1e-6)
    first, others = one_of_eight
    assert found(spec, [1] + [0] * 7) == pytest.approx([first] + [others] * 7, abs=1e-6)
    assert found(spec, [0.3] * 5) == pytest.approx([0] * 5, abs=0)
    assert found(spec, [0.7]) == pytest.approx([0], abs=0)


def test_epsilon_is_the_peers_and_may_be_changed():
    assert found("group", [1, 0, 0, 1])[0] == pytest.approx(0.5 / (0.57735027 + 1e-6))
    assert found("group", [1] + [0] * 7)[:2] == pytest.approx([2.474867, -0.353552], abs=1e-6)
    assert found({"name": "group", "eps": 1e-4}, [1, 0, 0, 1])[0] == pytest.approx(0.5 / (0.57735027 + 1e-4))


def test_a_tiny_spread_is_not_blown_up_where_a_smallest_one_is_set():
    rewards = [0.5, 0.501]
    assert abs(found({"name": "group", "eps": 0}, rewards)[0]) == pytest.approx(0.707107, abs=1e-6)
    assert abs(found({"name": "group", "eps": 0, "smallest_std": 0.1}, rewards)[0]) == pytest.approx(0.005)


@example([0.0, 0.0, 2.5e-12], 1.0, 0.0)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0.1, 10), st.floats(-5, 5))
def test_groups_are_centred_and_blind_to_shift_and_scale(rewards, scale, shift):
    values = np.array(rewards)
    advantage = found({"name": "group", "eps": 0}, values)
    assert advantage.sum() == pytest.approx(0, abs=1e-6)
    if values.std() > 1e-3:
        assert found({"name": "group", "eps": 0}, scale * values + shift) == pytest.approx(advantage, abs=1e-5)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_leave_one_out_is_a_multiple_of_the_difference_from_the_mean(rewards):
    size = len(rewards)
    plain = found({"name": "group", "std": "none"}, rewards)
    assert found("leave_one_out", rewards) == pytest.approx(plain * size / (size - 1), abs=1e-9)


def test_groups_do_not_see_each_other_but_the_batch_spread_sees_all():
    rewards, group = [1, 0, 5, 5], [7, 7, 3, 3]
    assert found({"name": "group", "eps": 0}, rewards, group) == pytest.approx([0.707107, -0.707107, 0, 0], abs=1e-6)
    spread = np.std(rewards, ddof=1)
    assert found({"name": "group", "std": "batch", "eps": 0}, rewards, group)[0] == pytest.approx(0.5 / spread)


@pytest.mark.parametrize(("hybrid", "continuation", "prefix"), [(1, 1.0, 0.714286), (0, 0.0, -0.285714)])
def test_golden_numbers_of_split_groups(hybrid, continuation, prefix):
    """Sheet 37, check 4: seven plain answers, and one that begins with two given tokens of three."""
    begun, lengths = np.array([0] * 7 + [2]), np.array([1] * 7 + [3])
    advantage = found("split", [0, 1, 0, 1, 0, 0, 0, hybrid], lengths=lengths, begun=begun)
    plain = [-0.285714, 0.714286, -0.285714, 0.714286, *[-0.285714] * 3]
    assert advantage == pytest.approx([*plain, prefix, prefix, continuation], abs=1e-6)


def test_one_group_has_plain_and_begun_answers():
    """Sheet 37, check 3, the paper's reading; check 8: answers that are worth the same, or begin with nothing."""
    begun = np.array([0] * 7 + [1])
    spec, rewards, lengths = {"name": "group", "std": "none"}, [0] * 7 + [1], np.array([1] * 7 + [2])
    assert found(spec, rewards, lengths=lengths, begun=begun) == pytest.approx([-0.125] * 7 + [0.875] * 2)
    assert not found(spec, [1] * 8, lengths=lengths, begun=begun).any()
    assert found("split", [1, 0, 1, 1], begun=np.zeros(4, int)) == pytest.approx(found(spec, [1, 0, 1, 1]))


def test_answers_behind_one_prefix_are_compared_with_each_other():
    more = {"group": [0, 0, 0, 0, 1], "lengths": np.array([1, 1, 2, 2, 1]), "begun": np.array([0, 0, 1, 1, 0])}
    advantage = found("split", [1, 0, 1, 0, 7], **more)
    assert advantage == pytest.approx([0.5, -0.5, 0.0, 0.5, -0.5, -0.5, 0.0])


def test_reinforce_plus_plus_whitens_the_returns_of_all_tokens():
    # the sheet's token values [1, 1, 0, 0, 0]
    expected = [1.095445, 1.095445, -0.730297, -0.730297, -0.730297]
    assert found("reinforce++", [1, 0], [0, 1], [2, 3]) == pytest.approx(expected, abs=1e-6)
    penalised = found("reinforce++", [1.0], lengths=[2], token_rewards=[np.array([-0.5, -0.25])])
    assert penalised == pytest.approx(whitened([np.array([0.25, 0.75])])[0])
    centred = found({"name": "reinforce++", "group_baseline": True}, [1, 0, 5, 5], [0, 0, 1, 1])
    assert centred == pytest.approx(whitened([np.array([0.5, -0.5, 0, 0])])[0])


def test_whitening_is_over_all_ranks():
    one, two = np.array([1.0, 2.0]), np.array([-1.0])
    whole = np.concatenate(whitened([one, two]))
    assert whole == pytest.approx([0.218218, 0.872872, -1.091089], abs=1e-6)
    shared = whitened([one], lambda value: [value, two])
    assert shared[0] == pytest.approx(whole[:2])
    assert np.concatenate(whitened([np.array([3.0, 3.0])])) == pytest.approx([0, 0])
    assert whitened([np.array([3.0])])[0] == pytest.approx([0])


def test_whitening_is_over_the_tokens_that_are_learned_from():
    # a hint of one token before the first answer, and a second answer that is masked
    learned = [np.array([False, True, True]), np.array([False, False]), np.array([True])]
    for advantage in ({"name": "reinforce++"}, {"name": "gae", "lam": 1.0}):
        more = {"values": [np.zeros(3), np.zeros(2), np.zeros(1)]} if advantage["name"] == "gae" else {}
        given = outcomes([1.0, 5.0, 0.0], [0, 0, 1], [3, 2, 1], learned=learned, **more)
        columns = build_advantage(advantage)(given)["advantage"]
        known = np.concatenate([column[mask] for column, mask in zip(columns, learned, strict=True)])
        assert known == pytest.approx(np.concatenate(whitened([np.array([1.0, 1.0]), np.array([0.0])])))
    assert whitened([np.array([3.0])], learned=[np.array([False])])[0] == pytest.approx([3.0])


def test_golden_numbers_of_generalised_advantages():
    rewards, values = np.array([-0.002, 0.0, 0.997]), np.array([0.2, 0.5, 0.8])
    expected = np.array([0.760792, 0.48715, 0.197])
    assert gae(rewards, values, 1.0, 0.95) == pytest.approx(expected, abs=1e-6)
    columns = build_advantage({"name": "gae", "whiten": False})(
        outcomes([1.0], lengths=[3], token_rewards=[np.array([-0.002, 0, -0.003])], values=[values])
    )
    assert columns["advantage"][0] == pytest.approx(expected, abs=1e-6)
    assert columns["return"][0] == pytest.approx(expected + values, abs=1e-6)
    assert gae(np.array([0, 0, 1.0]), np.zeros(3), 1.0, 0.95) == pytest.approx([0.9025, 0.95, 1])
    assert gae(np.array([0, 0, 1.0]), np.zeros(3), 1.0, 1.0) == pytest.approx([1, 1, 1])


def test_whitening_leaves_the_returns_alone():
    given = outcomes([1.0, 0.0], [0, 1], [2, 2], values=[np.array([0.2, 0.4]), np.array([0.1, 0.0])])
    columns = build_advantage("gae")(given)
    plain = build_advantage({"name": "gae", "whiten": False})(given)
    for ours, theirs in zip(columns["return"], plain["return"], strict=True):
        assert ours == pytest.approx(theirs)
    assert np.concatenate(columns["advantage"]).mean() == pytest.approx(0, abs=1e-12)


def test_rewards_alone_are_rejection_sampling():
    assert found("reward", [1, 0, 1], lengths=[2, 1, 1]) == pytest.approx([1, 1, 0, 1])
    assert found({"name": "reward", "baseline": "batch"}, [1, 0, 1]) == pytest.approx([1 / 3, -2 / 3, 1 / 3])
    assert found({"name": "reward", "whiten": True}, [2, 0]) == pytest.approx([0.707107, -0.707107], abs=1e-6)


def test_what_is_missing_is_said():
    assert found("greedy", [1, 0], baselines=np.array([0.5, 0.5])) == pytest.approx([0.5, -0.5])
    with pytest.raises(UserError, match="greedy answers"):
        found("greedy", [1, 0])
    with pytest.raises(UserError, match="critic"):
        found("gae", [1, 0])
