"""When thinking ends: a temperature of the stop token, forced stops, and stops that are replaced."""

from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from running import small_recipe
from transformers import PreTrainedModel

from posttrain.errors import UserError
from posttrain.generation import Completion, Prompt, Sampling, ThinkingRules
from posttrain.generation.local import LocalEngine
from posttrain.generation.sampling import check, distribution, draw
from posttrain.generation.server import ServerEngine
from posttrain.generation.thinking import ThinkingTokens, Thoughts, with_stop_temperature

TOKENIZER = tokenizer()
STOP, OTHER = "!", "?"
STOP_ID, OTHER_ID = (TOKENIZER.encode(text, add_special_tokens=False)[0] for text in (STOP, OTHER))


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("qwen2")


def prompts(count: int) -> list[Prompt]:
    generator = np.random.default_rng(0)
    return [Prompt(generator.integers(140, 256, size=6).astype(np.int32)) for _ in range(count)]


def drawn(model: PreTrainedModel, rules: ThinkingRules | None, n: int = 8, **more: Any) -> list[Completion]:
    sampling = Sampling(**{"max_new_tokens": 24, "seed": 3, **more}, thinking=rules)
    return LocalEngine(model, TOKENIZER).generate(prompts(2), n, sampling)


def probabilities(logits: list[float], temperature: float, reference: Any = "max", base: float = 1.0) -> list[float]:
    rules = ThinkingRules(temperature=temperature, reference=reference)
    changed = with_stop_temperature(torch.tensor([logits], dtype=torch.float64), len(logits) - 1, rules)
    return (changed / base).softmax(-1)[0].tolist()


# --- the sheet's numbers ---


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.5, [0.7214, 0.2654, 0.0132]),
        (1.0, [0.6652, 0.2447, 0.0900]),
        (2.0, [0.5761, 0.2119, 0.2119]),
        (1e9, [0.4223, 0.1554, 0.4223]),
    ],
)
def test_golden_numbers_of_the_form_that_starts_from_the_best_logit(temperature: float, expected: list[float]) -> None:
    assert probabilities([2, 1, 0], temperature) == pytest.approx(expected, abs=5e-5)


def test_golden_number_at_a_temperature_of_four() -> None:
    assert probabilities([2, 1, 0], 4.0)[-1] == pytest.approx(0.3072, abs=5e-5)


@pytest.mark.parametrize("reference", ["max", "raw"])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 2.0, 8.0, 1e9])
def test_the_ratio_of_other_tokens_never_changes(reference: str, temperature: float) -> None:
    first, second, _ = probabilities([2, 1, 0], temperature, reference)
    assert first / second == pytest.approx(2.71828, abs=1e-5)


def test_golden_numbers_of_both_forms_which_move_in_opposite_directions() -> None:
    for temperature in (0.5, 1.0, 2.0, 8.0):
        assert probabilities([2, 1, 0], temperature, "raw")[-1] == pytest.approx(0.0900, abs=5e-5)
    raw = [probabilities([2, 1, 0.5], temperature, "raw")[-1] for temperature in (0.5, 1.0, 2.0)]
    best = [probabilities([2, 1, 0.5], temperature)[-1] for temperature in (0.5, 1.0, 2.0)]
    assert raw == pytest.approx([0.2119, 0.1402, 0.1127], abs=5e-5)
    assert best == pytest.approx([0.0351, 0.1402, 0.2567], abs=5e-5)


def test_a_constant_added_to_all_logits_changes_the_raw_form_only() -> None:
    for temperature in (0.5, 4.0):
        assert probabilities([102, 101, 100], temperature) == pytest.approx(probabilities([2, 1, 0], temperature))
        shifted = probabilities([102, 101, 100], temperature, "raw")
        assert abs(shifted[-1] - probabilities([2, 1, 0], temperature, "raw")[-1]) > 0.05


def test_towards_zero_the_stop_is_never_drawn_and_the_best_token_is_left_alone() -> None:
    assert probabilities([2, 1, 0], 1e-6)[-1] == 0.0
    assert probabilities([1, 0, 2], 8.0) == pytest.approx(probabilities([1, 0, 2], 1.0))


def test_a_base_temperature_and_the_stops_own_commute() -> None:
    logits, base, own = [2.0, 1.0, -1.0], 0.7, 3.0
    scaled = [value / base for value in logits]
    scaled[2] = max(scaled) + (scaled[2] - max(scaled)) / own
    assert probabilities(logits, own, base=base) == pytest.approx(torch.tensor(scaled).softmax(-1).tolist(), abs=1e-6)


@pytest.mark.parametrize(("hazard", "expected"), [(0.001, 632.3), (0.01, 100.0), (0.05, 20.0)])
def test_a_constant_hazard_with_a_forced_stop_lasts_as_long_as_the_sum_says(hazard: float, expected: float) -> None:
    tokens = ThinkingTokens(ThinkingRules(stop=STOP, budget=1000), TOKENIZER)
    thinking, length = 1.0, 0.0
    for step in range(1000):  # tokens before the stop, and the stop itself
        assert step % 100 or tokens.forced(OTHER_ID, Thoughts(), [OTHER_ID] * step) is None
        length += thinking
        thinking *= 1 - hazard
    assert tokens.forced(OTHER_ID, Thoughts(), [OTHER_ID] * 1000) == STOP_ID
    assert length == pytest.approx(expected, abs=0.05)
    assert length == pytest.approx((1 - (1 - hazard) ** 1000) / hazard)


# --- the engine ---


def test_above_one_thinking_ends_earlier_and_below_one_later(model: PreTrainedModel) -> None:
    lengths = []
    for temperature in (0.2, 1.0, 3.0):
        completions = drawn(model, ThinkingRules(stop=STOP, temperature=temperature), n=40)
        tokens = [completion.tokens.tolist() for completion in completions]
        lengths.append(np.mean([row.index(STOP_ID) if STOP_ID in row else 24 for row in tokens]))
    assert lengths[0] > lengths[1] > lengths[2]


def test_logprobs_are_the_policys_and_sampling_logprobs_of_what_was_drawn_from(model: PreTrainedModel) -> None:
    rules = ThinkingRules(stop=STOP, temperature=5.0)
    sampling = Sampling(temperature=0.8, top_k=40, thinking=rules)
    asked = prompts(2)
    ended = 0
    for completion in drawn(model, rules, temperature=0.8, top_k=40):
        whole = torch.from_numpy(np.concatenate([asked[completion.prompt].tokens, completion.tokens]).astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=whole[None]).logits[0, len(asked[0].tokens) - 1 : -1].float()
        tokens = whole[len(asked[0].tokens) :]
        row = torch.arange(len(tokens))
        np.testing.assert_allclose(completion.logprobs, logits.log_softmax(-1)[row, tokens], atol=1e-4)
        stops = (tokens == STOP_ID).nonzero()
        last = int(stops[0]) if len(stops) else len(tokens) - 1
        ended += last < len(tokens) - 1
        changed = with_stop_temperature(logits, STOP_ID, rules)
        source = torch.where((row <= last)[:, None], changed, logits)  # behind the first stop it is off
        logprobs, ids = distribution(source.log_softmax(-1), sampling)
        assert ids is not None
        expected = torch.full_like(logits, -torch.inf).scatter(-1, ids, logprobs)[row, tokens]
        np.testing.assert_allclose(completion.sampling_logprobs, expected, atol=1e-4)
    assert ended > 3


def test_at_temperature_one_of_the_stop_nothing_changes(model: PreTrainedModel) -> None:
    plain, scaled = drawn(model, None), drawn(model, ThinkingRules(stop=STOP, temperature=1.0))
    assert [c.tokens.tolist() for c in plain] == [c.tokens.tolist() for c in scaled]
    assert all(np.array_equal(a.sampling_logprobs, b.sampling_logprobs) for a, b in zip(plain, scaled, strict=True))


def test_a_budget_forces_the_stop_and_the_cue_and_then_lets_go(model: PreTrainedModel) -> None:
    rules = ThinkingRules(stop=STOP, budget=5, cue="So:")
    forced = TOKENIZER.encode(STOP + "So:", add_special_tokens=False)
    cut = 0
    for completion in drawn(model, rules, temperature=0.7):
        tokens = completion.tokens.tolist()
        if STOP_ID in tokens[:5]:
            continue
        cut += 1
        assert tokens[5 : 5 + len(forced)] == forced
        assert not completion.sampling_logprobs[5 : 5 + len(forced)].any()
        assert (completion.logprobs[5 : 5 + len(forced)] < 0).all()
        assert (completion.sampling_logprobs[5 + len(forced) :] != 0).all()
    assert cut > 8


def test_a_budget_of_nothing_stops_before_the_first_thought(model: PreTrainedModel) -> None:
    for completion in drawn(model, ThinkingRules(stop=STOP, budget=0), temperature=0):
        assert completion.tokens[0] == STOP_ID


def test_a_stop_of_several_tokens_is_forced_whole(model: PreTrainedModel) -> None:
    stop = TOKENIZER.encode("</t>", add_special_tokens=False)
    assert len(stop) > 1
    for completion in drawn(model, ThinkingRules(stop="</t>", budget=4)):
        assert completion.tokens[4 : 4 + len(stop)].tolist() == stop
        assert (completion.sampling_logprobs[4 + len(stop) :] != 0).any()


def test_early_stops_are_replaced_as_often_as_asked(model: PreTrainedModel) -> None:
    free = drawn(model, ThinkingRules(stop=STOP, temperature=50.0), n=20)
    assert sum(STOP_ID in completion.tokens for completion in free) > 20
    rules = ThinkingRules(stop=STOP, temperature=50.0, continuations=2, continuation=OTHER)
    replaced = 0
    for before, completion in zip(free, drawn(model, rules, n=20), strict=True):
        if STOP_ID not in before.tokens:
            continue
        first = before.tokens.tolist().index(STOP_ID)
        replaced += 1
        assert completion.tokens[:first].tolist() == before.tokens[:first].tolist()
        assert completion.tokens[first] == OTHER_ID
        assert completion.sampling_logprobs[first] == pytest.approx(before.sampling_logprobs[first], abs=1e-4)
        if STOP_ID in completion.tokens:
            assert completion.tokens.tolist()[: completion.tokens.tolist().index(STOP_ID)].count(OTHER_ID) >= 2
    assert replaced > 20


def test_rows_that_no_longer_think_are_left_alone() -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    tokens = ThinkingTokens(ThinkingRules(stop=STOP, temperature=4.0), TOKENIZER)
    thoughts = [Thoughts(), Thoughts(active=False), Thoughts()]
    changed = tokens.scaled(logits, thoughts)
    assert changed is not None
    assert torch.equal(changed[1], logits[1])
    assert (changed[[0, 2], STOP_ID] > logits[[0, 2], STOP_ID]).all()
    assert tokens.scaled(logits, thoughts[1:2]) is None
    _, logprobs, _ = draw(logits, torch.rand(3), Sampling(), changed)
    assert logprobs.shape == (3,)


# --- what is refused ---


@pytest.mark.parametrize(
    ("rules", "sampling", "message"),
    [
        (ThinkingRules(temperature=0.0), {}, "thinking.temperature is 0.0"),
        (ThinkingRules(stop=""), {}, "thinking.stop"),
        (ThinkingRules(budget=24), {}, "less than max_new_tokens"),
        (ThinkingRules(continuations=-1), {}, "thinking.continuations"),
        (ThinkingRules(continuations=1, continuation=""), {}, "thinking.continuation "),
        (ThinkingRules(temperature=2.0), {"temperature": 0.0}, "likeliest token"),
    ],
)
def test_rules_that_cannot_be_drawn_by_are_named(rules: ThinkingRules, sampling: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(Sampling(**{"max_new_tokens": 24, **sampling}, thinking=rules))


def test_a_server_refuses_them() -> None:
    engine = ServerEngine("http://127.0.0.1:9/v1", "m", TOKENIZER, dialect="vllm")
    with pytest.raises(UserError, match="no server takes"):
        engine.generate(prompts(1), 1, Sampling(thinking=ThinkingRules(budget=3)))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"thinking": {"stop": "</t>"}}, "no effect without temperature, budget or continuations"),
        ({"thinking": {"temperature": 2}}, "no effect at temperature 0"),
        ({"temperature": 1, "thinking": {"temperature": 1, "reference": "raw"}}, "'reference' has no effect"),
        ({"thinking": {"budget": 8, "continuation": "So"}}, "'continuation' has no effect"),
        ({"thinking": {"continuations": 1, "cue": "So"}}, "'cue' has no effect"),
        ({"thinking": {"budget": 300}}, "ends at max_new_tokens 256 anyway"),
        ({"thinking": {"budget": 8}, "forced": "<think></think>"}, "'forced' ends it already"),
        ({"thinking": {"budget": 8}, "server": {"url": "http://a/v1", "model": "m"}}, "no server takes it"),
    ],
)
def test_settings_without_effect_are_refused(asked: dict[str, Any], message: str, tmp_path: Any) -> None:
    with pytest.raises(UserError, match=message):
        small_recipe(tmp_path, tmp_path, {"test": {"kind": "evaluate", **asked}})


def test_forced_tokens_are_not_learned_from(tmp_path: Any) -> None:
    train = {"kind": "train", "objective": "grpo", "rollouts": {"thinking": {"budget": 4}}}
    with pytest.raises(UserError, match="none of the policy's own"):
        small_recipe(tmp_path, tmp_path, {"train": train})
