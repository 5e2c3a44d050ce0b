"""Key-token weights of TL-Training: numbers of sheet 31, and places in real tokens."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import architectures
import numpy as np
import pytest
from transformers import AutoTokenizer

from posttrain.data import Origin, Sample, Sequence, assistant, user
from posttrain.data.rendering import Rendering, render
from posttrain.data.step import Step
from posttrain.objectives import build_objective
from posttrain.policy import model_path
from posttrain.sources import build_transform
from posttrain.sources.key_tokens import key_offsets, key_weight

TINY = AutoTokenizer.from_pretrained(model_path("tiny"))
BYTES = architectures.tokenizer()
PROMPT = "def get_paper(x)\ndef get_paper_details(x)\ndef get_people(x)\ndef finish(answer)\nGo."
CALL = '<tool_call>\n{"name": "get_paper", "parameters": {"x": "57391024"}}\n</tool_call>'


def sequence_of(response: str, tokenizer: Any, prompt: str = PROMPT) -> Sequence:
    found = render(Sample(prompt=(user(prompt),), response=(assistant(response),)), tokenizer, Rendering(900))
    assert isinstance(found, Sequence)
    return found


def weighted(sequence: Sequence, tokenizer: Any, **options: Any) -> Sequence:
    step = Step(policy=SimpleNamespace(tokenizer=tokenizer))
    return build_transform({"name": "key_tokens", **options})([sequence], step)[0]


def heavy(sequence: Sequence, tokenizer: Any) -> list[str]:
    """The tokens that weigh more than others, each with the four behind it."""
    places = np.flatnonzero(sequence.columns["weight"] > 1)
    return [tokenizer.decode(sequence.tokens[place : place + 5].tolist()) for place in places]


@pytest.mark.parametrize(
    ("name", "others", "offsets"),
    [
        (["get", "P", "apers", "By", "Key", "words"], [["get", "P", "aper", "Details"], ["finish"]], [0, 2]),
        (["finish"], [["get", "P"]], [0]),
        (["get"], [["get", "_", "all"]], [0, 1]),
        (["get", "_", "all"], [["get"]], [0, 1]),
        (["get"], [["get"]], [0]),
        (["get"], [], [0]),
    ],
)
def test_key_offsets_are_those_of_sheet_31(name: list[str], others: list[list[str]], offsets: list[int]) -> None:
    assert key_offsets(name, others) == offsets


@pytest.mark.parametrize(
    ("others", "keys", "weight"), [(22, 2, 9), (18, 2, 9), (49, 1, 9), (7, 2, 3.5), (2, 3, 1), (4, 2, 2), (3, 2, 1.5)]
)
def test_weights_are_those_of_sheet_31(others: int, keys: int, weight: float) -> None:
    assert key_weight(keys, others, 9.0) == weight
    assert key_weight(keys, others, 1.0) == 1


def mean_loss(nll: list[float], weights: list[float], reduction: str = "sequences") -> float:
    """What the reduction makes of per-token losses of one sequence."""
    length = len(nll) + 1
    target = np.arange(length) > 0
    sequence = Sequence(
        tokens=np.zeros(length, np.int32),
        target=target,
        origin=np.where(target, Origin.DEMONSTRATION, 0).astype(np.uint8),
        sample_id="a",
        columns={"weight": np.array([0, *weights], np.float32)},
    )
    objective = build_objective({"name": "nll", "weight_column": "weight", "reduction": reduction})
    (coefficients,) = objective.coefficients([sequence])[0].values()
    return float(coefficients[target] @ np.array(nll))


@pytest.mark.parametrize(("weight", "loss"), [(2.0, 0.4625), (1.0, 0.416667)])
def test_the_loss_is_that_of_sheet_31(weight: float, loss: float) -> None:
    nll = [1, 0.5, 0.2, 0.1, 0.4, 0.3]
    assert mean_loss(nll, [weight, 1, weight, 1, 1, 1]) == pytest.approx(loss, abs=1e-6)


def test_the_first_token_and_the_places_where_names_part_are_key_tokens() -> None:
    found = weighted(sequence_of(CALL, BYTES), BYTES)
    assert heavy(found, BYTES) == ["get_p", 'aper"', '", "p']  # get_pe(ople), get_paper_(details)


def test_key_tokens_and_the_others_have_equal_mass() -> None:
    sequence = weighted(sequence_of(CALL, BYTES), BYTES, w_max=1000.0)
    weights = sequence.columns["weight"][sequence.target]
    assert weights[weights > 1].sum() == pytest.approx((weights == 1).sum())
    assert (weights > 1).sum() == 3
    assert (sequence.columns["weight"][~sequence.target] == 1).all()


def test_the_small_models_tokens_are_compared_as_they_stand_in_the_call() -> None:
    found = weighted(sequence_of(CALL, TINY), TINY)
    texts = heavy(found, TINY)
    assert len(texts) == 3
    assert texts[0].startswith("get")
    assert texts[-1].startswith('", "')


def test_a_name_that_no_other_resembles_has_one_key_token() -> None:
    call = '<tool_call>\n{"name": "finish", "parameters": {"answer": "x"}}\n</tool_call>'
    assert heavy(weighted(sequence_of(call, BYTES), BYTES), BYTES) == ["finis"]


def test_w_max_of_one_leaves_every_weight_at_one() -> None:
    assert (weighted(sequence_of(CALL, TINY), TINY, w_max=1.0).columns["weight"] == 1).all()


@pytest.mark.parametrize("answer", ["Hello.", "<tool_call>{", '<tool_call>{"name": "", "parameters": {}}</tool_call>'])
def test_answers_without_a_readable_call_keep_weight_one(answer: str) -> None:
    assert (weighted(sequence_of(answer, TINY), TINY).columns["weight"] == 1).all()


def test_thoughts_and_replies_do_not_count_into_the_weight() -> None:
    bare = weighted(sequence_of(CALL, BYTES), BYTES, w_max=1000.0)
    around = f"<think> I {'think ' * 30}</think>\n{CALL}\n<response> {'fine ' * 30}</response>"
    full = weighted(sequence_of(around, BYTES), BYTES, w_max=1000.0)
    assert heavy(full, BYTES) == heavy(bare, BYTES)
    assert full.columns["weight"].max() == pytest.approx(bare.columns["weight"].max(), rel=0.02)


def test_bare_json_and_a_tool_called_like_a_key_are_found() -> None:
    prompt = "def name(x)\ndef names(x)"
    found = weighted(sequence_of('{"parameters": {}, "name": "name"}', BYTES, prompt), BYTES)
    assert heavy(found, BYTES) == ['name"', '"}<|im_end|>']


def test_every_call_of_an_answer_has_its_key_tokens() -> None:
    one = '{"name": "get_paper", "parameters": {}}'
    two = '{"name": "finish", "parameters": {}}'
    found = weighted(sequence_of(f"<tool_call>\n{one}\n{two}\n</tool_call>", BYTES), BYTES)
    assert heavy(found, BYTES) == ["get_p", 'aper"', '", "p', "finis"]


def test_every_trained_turn_is_weighted_by_itself() -> None:
    turns = (assistant(CALL), {"role": "tool", "content": "{}"}, assistant("finished"))
    sample = Sample(prompt=(user(PROMPT),), response=turns)
    sequence = render(sample, TINY, Rendering(900, loss_on="all"))
    assert isinstance(sequence, Sequence)
    found = weighted(sequence, TINY).columns["weight"]
    alone = weighted(sequence_of(CALL, TINY), TINY).columns["weight"]
    np.testing.assert_array_equal(found[: len(alone)], alone)
    assert (found[len(alone) :] == 1).all()


def test_tokens_that_decoding_does_not_give_back_are_weighted_where_they_are() -> None:
    sequence = sequence_of(CALL, TINY)
    start = int(sequence.target.argmax())
    name = sequence.tokens.tolist().index(TINY.convert_tokens_to_ids("ge"), start)
    split = [*sequence.tokens[:name], *TINY.convert_tokens_to_ids(["g", "e"]), *sequence.tokens[name + 1 :]]
    target = np.arange(len(split)) >= start
    odd = Sequence(np.array(split, np.int32), target, target.astype(np.uint8), "odd")
    texts = heavy(weighted(odd, TINY), TINY)
    assert texts[0].startswith("get")
    assert len(texts) == 3


def test_real_rows_have_key_tokens_at_the_names_of_their_calls(shared_data: Path) -> None:
    rows = json.loads((shared_data / "toolrl" / "rlla_sft.json").read_text())[:40]
    found = 0
    for row in rows:
        sample = Sample(prompt=(user(f"{row['instruction']}\n{row['input']}"),), response=(assistant(row["output"]),))
        sequence = render(sample, TINY, Rendering(20_000))
        assert isinstance(sequence, Sequence)
        weights = weighted(sequence, TINY).columns["weight"]
        places = np.flatnonzero(weights > 1)
        assert ('"name"' in row["output"]) == bool(len(places))
        if len(places):
            found += 1
            assert TINY.decode(sequence.tokens[: places[0]].tolist()).endswith('{"name": "')
    assert found > 20
