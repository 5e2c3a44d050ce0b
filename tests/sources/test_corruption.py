"""Masked Thought (sheet 34): what the model reads is corrupted, what it learns to write is not."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, tokenizer
from hypothesis import given
from hypothesis import strategies as st
from steps import random_step

from posttrain.data import Origin, Sequence
from posttrain.data.batch import collate
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.objectives import build_objective
from posttrain.policy import Policy
from posttrain.sources import Demonstrations, Transformed, build_transform
from posttrain.sources.corruption import hide, random_tokens


@dataclass
class Words:
    """A tokenizer of 40 tokens, of which 0, 1, 2 and 39 are added ones."""

    added: dict[str, int] = field(default_factory=lambda: {"<s>": 0, "</s>": 1, "<pad>": 2, "<mask>": 39})
    mask_token: str | None = None

    def __len__(self) -> int:
        return 40

    @property
    def added_tokens_decoder(self) -> dict[int, str]:
        return {number: name for name, number in self.added.items()}

    def get_added_vocab(self) -> dict[str, int]:
        return self.added


@dataclass
class Reader:
    tokenizer: Any = field(default_factory=Words)


def step(index: int = 0, total: int = 10, seed: int = 7, words: Words | None = None) -> Step:
    return Step(index, total, seed=seed, policy=Reader(words or Words()))


def sequence(prompt: int = 3, response: int = 5, name: str = "a") -> Sequence:
    target = np.arange(prompt + response) >= prompt
    tokens = np.arange(prompt + response, dtype=np.int32) % 30 + 5
    return Sequence(tokens, target, target.astype(np.uint8), name)


def corrupted(sequences: list[Sequence], at: Step | None = None, **options: Any) -> list[Sequence]:
    return list(build_transform({"name": "corrupt", "ramp": 0, **options})(sequences, at or step()))


def hidden(found: Sequence) -> Any:
    return found.origin == Origin.CORRUPTED


def read(found: Sequence) -> Any:
    return found.tokens if found.inputs is None else found.inputs


# --- the sheet's checks ---


def test_the_rate_rises_over_two_thirds_of_the_run() -> None:
    expected = {0: 0, 100: 0.099751, 200: 0.199501, 399: 0.398005, 400: 0.399002, 401: 0.4, 600: 0.4}
    for index, rate in expected.items():
        assert Step(index, 600).ramped(0.4, 2 / 3) == pytest.approx(rate, abs=1e-6)
        assert Step(index, 9999).ramped(0.4, 400) == pytest.approx(rate, abs=1e-6)  # steps instead of a share
    assert Step(0, 600).ramped(0.4, 0) == 0.4


def test_tokens_below_the_rate_are_hidden_and_labels_stay() -> None:
    tokens = np.array([5, 6, 7, 20, 21, 22, 23, 2], dtype=np.int32)
    target = np.arange(8) >= 3
    uniforms = np.array([0, 0, 0, 0.1, 0.5, 0.39, 0.4, 0.0])
    found = hide(
        Sequence(tokens, target, target.astype(np.uint8), "a"), target & (uniforms < 0.4), np.full(8, 99, np.int32)
    )
    assert read(found).tolist() == [5, 6, 7, 99, 21, 99, 23, 99]
    assert found.tokens.tolist() == tokens.tolist()
    assert found.target.tolist() == target.tolist()


def test_without_a_rate_sequences_are_the_same() -> None:
    rows = [sequence(), sequence(name="b")]
    assert all(found is row for found, row in zip(corrupted(rows, rate=0.0), rows, strict=True))
    assert corrupted(rows, at=step(0), ramp=0.5)[0] is rows[0]  # the first step of a ramp


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_the_prompt_never_changes(rate: float) -> None:
    for found in corrupted([sequence(prompt, 9, f"{prompt}") for prompt in range(1, 9)], rate=rate):
        assert (read(found)[~found.target] == found.tokens[~found.target]).all()
        assert not hidden(found)[~found.target].any()


def test_at_rate_one_every_response_token_is_the_mask() -> None:
    (found,) = corrupted([sequence()], rate=1.0)
    assert read(found)[3:].tolist() == [39] * 5


def test_shares_are_those_of_independent_draws() -> None:
    flags = np.concatenate([hidden(f)[1:] for f in corrupted([sequence(1, 400, str(i)) for i in range(200)], rate=0.4)])
    assert flags.mean() == pytest.approx(0.4, abs=0.01)
    clean = ~flags
    assert (clean[1:] & clean[:-1]).mean() == pytest.approx(0.36, abs=0.01)


def test_logits_before_a_hidden_token_do_not_change() -> None:
    model = build("llama")
    (row,) = random_step(0, [12], trained=1.0)
    change = np.arange(12) == 6
    found = hide(row, change, np.full(12, 3, np.int32))
    clean, dirty = (model(torch.from_numpy(read(s)).long()[None]).logits[0] for s in (row, found))
    assert torch.equal(clean[:6], dirty[:6])
    assert not torch.allclose(clean[6:], dirty[6:])


# --- noise ---


@given(st.lists(st.integers(0, 39), max_size=8, unique=True), st.floats(0, 1, exclude_max=True))
def test_random_tokens_are_ordinary_ones(added: list[int], uniform: float) -> None:
    words = Words({str(number): number for number in added})
    ordinary = [number for number in range(40) if number not in added]
    (found,) = random_tokens(np.array([uniform]), words)
    assert found == ordinary[int(uniform * len(ordinary))]


def test_random_noise_covers_the_vocabulary_evenly() -> None:
    found = corrupted([sequence(1, 36_000)], rate=1.0, random=1.0)[0]
    counts = np.bincount(read(found)[1:], minlength=40)
    assert not counts[[0, 1, 2, 39]].any()
    assert abs(counts[3:39] / 1000 - 1).max() < 0.15


def test_a_share_of_the_hidden_tokens_is_random() -> None:
    found = corrupted([sequence(1, 20_000)], rate=0.5, random=0.3)[0]
    assert (read(found)[hidden(found)] != 39).mean() == pytest.approx(0.3, abs=0.02)


def test_the_prompt_or_all_may_be_hidden_instead() -> None:
    (prompt,), (everything,) = (corrupted([sequence()], rate=1.0, where=where) for where in ("prompt", "all"))
    assert hidden(prompt).tolist() == [True] * 3 + [False] * 5
    assert hidden(everything).all()


def test_a_varied_rate_is_uniform_up_to_the_scheduled_one() -> None:
    long = sequence(1, 4000)
    rates = [hidden(corrupted([long], at=step(seed=seed), rate=0.8, vary=True)[0])[1:].mean() for seed in range(200)]
    assert 0 <= min(rates) < 0.05
    assert 0.75 < max(rates) < 0.83
    assert np.mean(rates) == pytest.approx(0.4, abs=0.05)


def test_what_another_transform_hid_stays_hidden() -> None:
    before = replace(sequence(), inputs=np.zeros(8, np.int32))
    (found,) = corrupted([before], rate=0.5)
    assert set(read(found)) == {0, 39}


# --- draws ---


def test_draws_depend_on_the_step_and_the_sequence_and_on_nothing_else() -> None:
    rows = [sequence(2, 30, name) for name in "abc"]
    together = corrupted(rows)
    for row, found in zip(rows, together, strict=True):
        (alone,) = corrupted([row])
        assert np.array_equal(read(alone), read(found))
    (later,) = corrupted(rows[:1], at=step(seed=8))
    assert not np.array_equal(read(later), read(together[0]))
    assert not np.array_equal(hidden(together[0]), hidden(together[1]))


def test_ranks_and_a_resumed_run_draw_the_same() -> None:
    rows = [sequence(2, 20, str(i)) for i in range(12)]
    chain = [build_transform({"name": "corrupt", "rate": 0.5})]

    def drawn(rank: int, ranks: int, index: int) -> dict[str, list[int]]:
        source = Transformed(Demonstrations(rows, 4, 3, epochs=2, rank=rank, ranks=ranks), chain)
        return {s.sample_id: read(s).tolist() for s in source.next(step(index, 6, seed=index))}

    for index in (5, 1, 3):
        assert drawn(0, 1, index) == drawn(0, 2, index) | drawn(1, 2, index)


# --- the loss ---


def loss(rows: list[Sequence], spec: Any = "nll") -> float:
    objective = build_objective(spec)
    batch = objective.attach(collate(rows, pad_id=258), rows, objective.coefficients(rows))
    return float(objective.loss(Policy(build("llama"), tokenizer()), batch).value.detach())


def test_clean_positions_alone_may_count_in_the_loss() -> None:
    rows = [hide(row, row.target & (np.arange(len(row)) % 2 == 1), row.tokens) for row in random_step(3, [9, 7])]
    kept = [replace(row, target=row.target & (row.origin != Origin.CORRUPTED)) for row in rows]
    origins = ["demonstration", "rollout"]
    assert loss(rows, {"name": "nll", "origins": origins}) == pytest.approx(loss(kept), rel=1e-6)
    assert loss(rows) != pytest.approx(loss(kept), rel=1e-3)


def test_at_rate_one_the_loss_of_a_token_depends_on_question_and_position_alone() -> None:
    row = sequence(3, 6)
    other = replace(row, tokens=np.where(np.arange(9) == 4, 20, row.tokens).astype(np.int32))
    policy = Policy(build("llama"), tokenizer())
    first, second = (
        policy.scores(collate(corrupted([one], rate=1.0), pad_id=258)).logprobs.detach() for one in (row, other)
    )
    assert torch.equal(first[[0, 2, 3, 4, 5]], second[[0, 2, 3, 4, 5]])


# --- the mask token ---


def test_the_mask_token_is_the_tokenizers_own_or_the_one_that_is_named() -> None:
    own = Words({"<own>": 1, "<mask>": 39}, mask_token="<own>")
    assert set(read(corrupted([sequence()], at=step(words=own), rate=1.0)[0])[3:]) == {1}
    assert set(read(corrupted([sequence()], rate=1.0, mask_token="<pad>")[0])[3:]) == {2}


def test_a_tokenizer_without_a_mask_token_is_refused_unless_none_is_needed() -> None:
    bare = step(words=Words({"<pad>": 2, "</s>": 1}))
    with pytest.raises(UserError, match=r"no mask token; give 'mask_token'.*</s>, <pad>"):
        corrupted([sequence()], at=bare)
    with pytest.raises(UserError, match=r"no special token '<pat>': did you mean '<pad>'"):
        corrupted([sequence()], at=bare, mask_token="<pat>")
    assert hidden(corrupted([sequence()], at=bare, rate=1.0, random=1.0)[0])[3:].all()
