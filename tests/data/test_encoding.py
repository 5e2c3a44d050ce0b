"""What is stored comes back, what is dropped is counted, and a stale or half-written store is never read."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from posttrain.data import Sample, assistant, token_store, user
from posttrain.data import encoding as encoding_module
from posttrain.data.encoding import encode
from posttrain.data.readers import fingerprint, read_samples
from posttrain.data.rendering import Rendering, render, render_pair
from posttrain.errors import UserError

CHAT = Rendering(max_length=256)


def _samples(count: int) -> list[Sample]:
    return [Sample((user(f"The cat {number}"),), (assistant("sat " * (1 + number % 3)),)) for number in range(count)]


@pytest.fixture
def counted(monkeypatch):
    """How often samples were rendered."""
    calls = []
    original = encoding_module.render_batch

    def render_batch(samples, *arguments):
        calls.append(len(samples))
        return original(samples, *arguments)

    monkeypatch.setattr(encoding_module, "render_batch", render_batch)
    return calls


@pytest.mark.parametrize("cached", [True, False])
def test_sequences_come_back_as_they_were_rendered(make_tokenizer, tmp_path, cached):
    tokenizer, samples = make_tokenizer("chatml"), _samples(7)
    dataset = encode(samples, tokenizer, CHAT, tmp_path if cached else None)
    assert len(dataset) == 7
    for sample, sequence in zip(samples, dataset, strict=True):
        expected = render(sample, tokenizer, CHAT)
        for name in ("tokens", "target", "origin"):
            assert np.array_equal(getattr(sequence, name), getattr(expected, name))
            assert getattr(sequence, name).dtype == getattr(expected, name).dtype
        assert sequence.sample_id == sample.id
    assert dataset.lengths.tolist() == [len(sequence) for sequence in dataset]
    assert dataset.targets.tolist() == [sequence.targets for sequence in dataset]
    assert np.array_equal(dataset[-1].tokens, dataset[6].tokens)
    with pytest.raises(IndexError):
        dataset[7]


def test_tokens_stay_on_disk(make_tokenizer, tmp_path):
    dataset = encode(_samples(3), make_tokenizer("chatml"), CHAT, tmp_path)
    base = dataset[0].tokens
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not dataset[0].tokens.flags.writeable


def test_pairs_come_back_as_they_were_rendered(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer("chatml")
    samples = [replace(sample, rejected=(assistant("no"),)) for sample in _samples(3)]
    dataset = encode(samples, tokenizer, CHAT, tmp_path, pairs=True)
    assert (len(dataset), dataset.report.kept) == (6, 3)
    for place, sample in enumerate(samples):
        for sequence, expected in zip(
            (dataset[2 * place], dataset[2 * place + 1]), render_pair(sample, tokenizer, CHAT), strict=True
        ):
            assert np.array_equal(sequence.tokens, expected.tokens)
            assert (sequence.group, sequence.scalars) == (expected.group, expected.scalars)


def test_rows_without_a_rejected_answer_are_no_pairs(make_tokenizer, tmp_path):
    with pytest.raises(UserError, match="no preference pair: 3 of 3 rows") as caught:
        encode(_samples(3), make_tokenizer("chatml"), CHAT, tmp_path, pairs=True)
    assert "there is no rejected answer" in str(caught.value)
    assert "-> the objective compares answers" in str(caught.value)


def test_the_report_counts_every_row(make_tokenizer, tmp_path):
    long = Sample((user("The"),), (assistant("cat " * 400),), meta={"row": 41})
    bad = Sample((user("The"),), (assistant("sat<|im_end|>"),), meta={"row": 42})
    samples = [*_samples(4), *_samples(2), long, bad]
    tokenizer = make_tokenizer("chatml")
    report = encode(samples, tokenizer, CHAT, tmp_path, max_refused=0.2).report
    assert (report.rows, report.kept, report.duplicates, report.truncated) == (8, 4, 2, 0)
    assert report.refused == {"overlong": 1, "end-of-turn token inside the turn": 1}
    (example,) = report.examples["end-of-turn token inside the turn"]
    assert (example.row, example.id) == (42, bad.id)
    sequences = [render(sample, tokenizer, CHAT) for sample in samples[:4]]
    assert report.tokens == sum(len(sequence) for sequence in sequences)
    assert report.trained_tokens == sum(sequence.targets for sequence in sequences)
    cut = encode(samples[:-1], tokenizer, replace(CHAT, overlong="truncate"), deduplicate=False).report
    assert (cut.rows, cut.kept, cut.duplicates, cut.truncated) == (7, 7, 0, 1)


def test_a_report_lists_so_many_examples_at_most(make_tokenizer, monkeypatch):
    monkeypatch.setattr("posttrain.data.encoding._EXAMPLES", 20)
    samples = [Sample((user(str(number)),), (assistant("sat<|im_end|>"),)) for number in range(30)]
    report = encode([*samples, *_samples(1)], make_tokenizer("chatml"), CHAT, max_refused=1.0).report
    assert report.refused == {"end-of-turn token inside the turn": 30}
    assert len(report.examples["end-of-turn token inside the turn"]) == 20


def test_too_many_refusals_are_an_error_that_lists_them(make_tokenizer, tmp_path):
    samples = [*_samples(9), Sample((user("The"),), (assistant("sat<|im_end|>"),), meta={"row": 10})]
    tokenizer = make_tokenizer("chatml")
    with pytest.raises(UserError) as caught:
        encode(samples, tokenizer, CHAT, tmp_path)
    text = str(caught.value)
    assert "1 of 10 rows (10.0%) cannot be trained on; allowed are 5.0%" in text
    assert f"row 10 ({samples[-1].id}): the content of turn 2 of 2 holds '<|im_end|>'" in text
    assert "-> take the end-of-turn token out of the content" in text
    assert list(tmp_path.iterdir()) == []
    encode(samples, tokenizer, CHAT, tmp_path, max_refused=0.1)
    with pytest.raises(UserError, match=r"allowed are 5\.0%"):  # also when it comes from the cache
        encode(samples, tokenizer, CHAT, tmp_path)


def test_overlong_rows_and_duplicates_take_no_part_in_the_refused_share(make_tokenizer):
    long = [Sample((user(str(number)),), (assistant("cat " * 400),)) for number in range(5)]
    report = encode([*_samples(3), *_samples(3), *long], make_tokenizer("chatml"), CHAT).report
    assert (report.kept, report.duplicates, report.refused) == (3, 3, {"overlong": 5})


def test_nothing_kept_is_an_error_with_counts(make_tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"none of the 3 rows can be trained on\n  overlong: 3 of 3 rows"):
        encode(_samples(3), make_tokenizer("chatml"), replace(CHAT, max_length=4), tmp_path)
    with pytest.raises(UserError, match="none of the 0 rows"):
        encode([], make_tokenizer("chatml"), CHAT)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_the_same_request_opens_the_stored_data_set(make_tokenizer, tmp_path, counted):
    tokenizer = make_tokenizer("chatml")
    first = encode(_samples(5), tokenizer, CHAT, tmp_path)
    tokenizer.backend_tokenizer.enable_truncation(2)  # as an earlier call with truncation leaves it behind
    second = encode(_samples(5), make_tokenizer("chatml"), CHAT, tmp_path)
    assert encode(_samples(5), tokenizer, CHAT, tmp_path).folder == first.folder
    assert counted == [5]
    assert second.report == first.report
    assert [np.array_equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True)] == [True] * 5


def test_every_option_the_template_the_tokenizer_and_the_data_change_the_key(make_tokenizer, tmp_path):
    requests = [
        (_samples(5), make_tokenizer("chatml"), CHAT, {}),
        (_samples(6), make_tokenizer("chatml"), CHAT, {}),
        (_samples(5), make_tokenizer("chatml"), replace(CHAT, max_length=255), {}),
        (_samples(5), make_tokenizer("chatml"), replace(CHAT, loss_on="all"), {}),
        (_samples(5), make_tokenizer("chatml"), replace(CHAT, overlong="truncate"), {}),
        (_samples(5), make_tokenizer("chatml"), replace(CHAT, append_eos=False), {}),
        (_samples(5), make_tokenizer("chatml"), replace(CHAT, template="none"), {}),
        (_samples(5), make_tokenizer("chatml"), replace(CHAT, template_options={"a": 1}), {}),
        (_samples(5), make_tokenizer("trims"), CHAT, {}),
        (_samples(5), make_tokenizer("chatml", bos=True), CHAT, {}),
        (_samples(5), make_tokenizer("chatml", eos="<|endoftext|>"), CHAT, {}),
        (_samples(5), make_tokenizer("chatml"), CHAT, {"deduplicate": False}),
        (_samples(5), make_tokenizer("chatml"), CHAT, {"content": "named"}),
    ]
    more = make_tokenizer("chatml")
    more.add_tokens(["cat"])
    requests.append((_samples(5), more, CHAT, {}))
    folders = [encode(samples, *rest, tmp_path, **options).folder for samples, *rest, options in requests]
    assert len(set(folders)) == len(requests)


def test_a_stream_and_a_list_of_the_same_samples_share_their_store(make_tokenizer, tmp_path):
    first = encode(iter(_samples(5)), make_tokenizer("chatml"), CHAT, tmp_path)
    assert encode(_samples(5), make_tokenizer("chatml"), CHAT, tmp_path).folder == first.folder
    assert len(list(tmp_path.iterdir())) == 1


def test_named_content_is_not_read_when_it_is_stored(make_tokenizer, tmp_path):
    def unreadable():
        raise AssertionError("read although stored")
        yield

    encode(iter(_samples(5)), make_tokenizer("chatml"), CHAT, tmp_path, content="file")
    assert len(encode(unreadable(), make_tokenizer("chatml"), CHAT, tmp_path, content="file")) == 5


def test_a_failure_leaves_nothing_behind(make_tokenizer, tmp_path):
    def failing():
        yield from _samples(3)
        raise UserError("rows.jsonl, line 4: broken")

    with pytest.raises(UserError, match="line 4"):
        encode(failing(), make_tokenizer("chatml"), CHAT, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_user_error_and_leaves_nothing_behind(make_tokenizer, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_store.StoreWriter, "add", full)
    with pytest.raises(UserError, match="No space left on device"):
        encode(_samples(3), make_tokenizer("chatml"), CHAT, tmp_path)
    assert list(tmp_path.iterdir()) == []


_KILLED = """
import os, sys
sys.path.insert(0, {folder!r})
from pathlib import Path
from conftest import _tokenizer
from posttrain.data import Sample, assistant, user
from posttrain.data.encoding import encode
from posttrain.data.rendering import Rendering

def samples():
    for number in range(3000):
        if number == 2500:
            os.kill(os.getpid(), 9)
        yield Sample((user(f"The cat {{number}}"),), (assistant("sat"),))

encode(samples(), _tokenizer("chatml"), Rendering(256), Path({cache!r}), content="killed")
"""


def test_what_a_killed_process_left_is_never_read_and_is_removed_later(make_tokenizer, tmp_path, counted):
    script = _KILLED.format(folder=os.path.dirname(__file__), cache=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == -9
    (left,) = tmp_path.iterdir()
    assert (left / "tokens.bin").stat().st_size > 0
    dataset = encode(_samples(3), make_tokenizer("chatml"), CHAT, tmp_path, content="killed")
    assert (len(dataset), counted) == (3, [3])
    assert left.exists()  # it may be another process that is still at work
    os.utime(left, (0, 0))
    encode(_samples(4), make_tokenizer("chatml"), CHAT, tmp_path)
    assert not left.exists()


def test_a_damaged_store_is_made_again(make_tokenizer, tmp_path, counted):
    dataset = encode(_samples(3), make_tokenizer("chatml"), CHAT, tmp_path)
    path = dataset.folder / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-4])
    again = encode(_samples(3), make_tokenizer("chatml"), CHAT, tmp_path)
    assert counted == [3, 3]
    assert len(again[2].tokens) == again.lengths[2]
    (again.folder / "store.json").write_text(json.dumps({"pairs": False}))
    assert len(encode(_samples(3), make_tokenizer("chatml"), CHAT, tmp_path)) == 3


def test_two_processes_that_encode_the_same_end_with_one_store(make_tokenizer, tmp_path):
    def with_a_faster_neighbour():
        yield from _samples(2)
        encode(_samples(3), make_tokenizer("chatml"), CHAT, tmp_path)
        yield _samples(3)[2]

    slow = encode(with_a_faster_neighbour(), make_tokenizer("chatml"), CHAT, tmp_path)
    assert len(slow) == 3
    assert list(tmp_path.iterdir()) == [slow.folder]


def test_progress_counts_the_rows_read(make_tokenizer, monkeypatch):
    monkeypatch.setattr(encoding_module, "_BATCH_ROWS", 4)
    seen = []
    encode([*_samples(10), *_samples(2)], make_tokenizer("chatml"), CHAT, progress=seen.append)
    assert seen == [4, 8, 12]


def test_long_samples_are_rendered_in_small_batches(make_tokenizer, counted, monkeypatch):
    monkeypatch.setattr(encoding_module, "_BATCH_CHARACTERS", 4000)
    samples = [Sample((user(f"{number}" * 1200),), (assistant("sat"),)) for number in range(4)]
    encode([*samples, *_samples(2)], make_tokenizer("chatml"), Rendering(4096))
    assert counted == [2, 2, 2]


def test_gsm8k_is_encoded_without_a_single_refusal(make_tokenizer, shared_data, tmp_path):
    path = str(shared_data / "gsm8k" / "test.jsonl")
    dataset = encode(read_samples(path), make_tokenizer("marks"), Rendering(4096), tmp_path, content=fingerprint(path))
    assert (dataset.report.rows, dataset.report.kept, dataset.report.refused) == (1319, 1319, {})
    assert 0.3 < dataset.report.trained_tokens / dataset.report.tokens < 0.7


def test_answers_that_are_labelled_by_chosen_are_single_answers(make_tokenizer, tmp_path):
    samples = [replace(sample, scalars={"chosen": float(row % 2)}) for row, sample in enumerate(_samples(3))]
    dataset = encode(samples, make_tokenizer("chatml"), CHAT, tmp_path, pairs=True)
    assert not dataset.pairs
    assert [sequence.scalars for sequence in dataset] == [{"chosen": 0.0}, {"chosen": 1.0}, {"chosen": 0.0}]


def test_the_last_trained_tokens_are_those_of_every_turn_across_windows(make_tokenizer, monkeypatch):
    monkeypatch.setattr("posttrain.data.token_store._WINDOW", 2)
    dataset = encode(_samples(5), make_tokenizer("chatml"), CHAT)
    expected = []
    for sequence in dataset:
        trained = [*sequence.target.tolist(), False]
        expected += [sequence.tokens[at] for at in range(len(sequence)) if trained[at] and not trained[at + 1]]
    assert np.concatenate(list(dataset.last_trained_tokens())).tolist() == expected
