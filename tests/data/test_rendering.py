"""Masks are exact, and what cannot be masked is refused with its reason."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import Origin, Sample, Sequence, assistant, user
from posttrain.data.rendering import (
    Rendering,
    render,
    render_batch,
    render_pair,
    render_prompt,
    template_notes,
    turn_end_tokens,
)
from posttrain.data.turns import Refusal
from posttrain.errors import UserError

CHAT = Rendering(max_length=4096)
EVERY = Rendering(max_length=4096, loss_on="all")
PLAIN = Rendering(max_length=4096, template="none")


def _sample(*contents: str) -> Sample:
    turns = [(user, assistant)[place % 2](content) for place, content in enumerate(contents)]
    return Sample(tuple(turns[:-1]), tuple(turns[-1:]))


def _trained(tokenizer, sequence) -> str:
    assert isinstance(sequence, Sequence), sequence
    return tokenizer.decode(sequence.tokens[sequence.target], skip_special_tokens=False)


def _all_text(tokenizer, sequence) -> str:
    return tokenizer.decode(sequence.tokens, skip_special_tokens=False)


# No control characters, no surrogates; contents start with something that cannot merge with the line break before it.
_words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(
    lambda text: text.strip() and "<" not in text
)


@pytest.mark.parametrize("template", ["chatml", "marks", "eos_at_end", "alternates"])
@settings(deadline=None, max_examples=40)
@given(contents=st.lists(_words, min_size=2, max_size=7).filter(lambda items: len(items) % 2 == 0))
def test_the_trained_text_is_every_answer_and_its_end_of_turn_token(make_tokenizer, template, contents):
    tokenizer = make_tokenizer(template)
    sample = _sample(*contents)
    assert _trained(tokenizer, render(sample, tokenizer, EVERY)) == "".join(
        f"{answer}<|im_end|>" for answer in contents[1::2]
    )
    assert _trained(tokenizer, render(sample, tokenizer, CHAT)) == f"{contents[-1]}<|im_end|>"


@settings(deadline=None, max_examples=40)
@given(contents=st.tuples(_words, _words))
def test_a_template_that_trims_trains_the_trimmed_answer(make_tokenizer, contents):
    tokenizer = make_tokenizer("trims")
    sample = _sample(contents[0], f" \n{contents[1]} \n")
    text = _trained(tokenizer, render(sample, tokenizer, CHAT))
    assert text == contents[1].strip() + "<|im_end|>"


@settings(deadline=None, max_examples=40)
@given(contents=st.lists(_words, min_size=2, max_size=6).filter(lambda items: len(items) % 2 == 0))
def test_marks_and_prefix_differences_give_the_same_sequences(make_tokenizer, contents):
    sample = _sample(*contents)
    marks, differences = (render(sample, make_tokenizer(name), EVERY) for name in ("marks", "chatml"))
    assert np.array_equal(marks.tokens, differences.tokens)
    assert np.array_equal(marks.target, differences.target)


def test_a_sequence_is_the_rendered_chat_up_to_its_last_target(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    sequence = render(_sample("The cat", "sat"), tokenizer, CHAT)
    assert _all_text(tokenizer, sequence) == "<|im_start|>user\nThe cat<|im_end|>\n<|im_start|>assistant\nsat<|im_end|>"
    assert sequence.target[-1]
    assert (sequence.tokens.dtype, sequence.target.dtype, sequence.origin.dtype) == (np.int32, np.bool_, np.uint8)
    assert np.array_equal(sequence.origin, np.where(sequence.target, Origin.DEMONSTRATION, Origin.PROMPT))
    assert sequence.sample_id == _sample("The cat", "sat").id


def test_training_sees_the_tokens_of_the_generation_prompt(make_tokenizer):
    for name in ("chatml", "marks", "trims", "eos_at_end"):
        tokenizer, sample = make_tokenizer(name), _sample("The cat", "sat")
        sequence = render(sample, tokenizer, CHAT)
        assert np.array_equal(render_prompt(sample, tokenizer, CHAT), sequence.tokens[~sequence.target])


def test_trailing_turns_after_the_last_answer_are_cut_and_not_trained(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    sample = Sample((user("The cat"),), (assistant("sat"), user("and then?")))
    assert _all_text(tokenizer, render(sample, tokenizer, CHAT)).endswith("assistant\nsat<|im_end|>")


def test_an_answer_that_merges_with_the_generation_prompt_is_refused(make_tokenizer):
    for name in ("chatml", "marks"):
        tokenizer = make_tokenizer(name)
        assert len(tokenizer("\n\n")["input_ids"]) == 1
        refusal = render(_sample("The cat", "\nsat"), tokenizer, CHAT)
        assert isinstance(refusal, Refusal)
        assert refusal.reason == "the token prefix changes when a turn is added"
        assert "before turn 2 of 2" in refusal.detail


def test_a_template_that_deletes_the_thought_to_be_learned_is_refused(make_tokenizer):
    """Sheet 5, pitfalls: the student would learn bare answers, and its loss would still fall."""
    tokenizer = make_tokenizer("strips_every_thought")
    refusal = render(_sample("a", "<think>b</think>c"), tokenizer, CHAT)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "the chat template leaves something out"
    assert "turn 2 of 2 has a thought" in refusal.detail
    assert _trained(tokenizer, render(_sample("a", "c"), tokenizer, CHAT)) == "c<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused_only_where_those_are_trained(make_tokenizer):
    tokenizer = make_tokenizer("strips_thinking")
    sample = _sample("a", "<think>b</think>c", "d", "<think>e</think>f")
    refusal = render(sample, tokenizer, EVERY)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "the token prefix changes when a turn is added"
    assert "turn 2 of 4 changes when later turns are added" in refusal.detail
    last = render(sample, tokenizer, CHAT)
    assert _trained(tokenizer, last) == "<think>e</think>f<|im_end|>"
    assert "assistant\nc<|im_end|>" in _all_text(tokenizer, last)


def test_a_template_without_end_of_turn_is_refused(make_tokenizer):
    refusal = render(_sample("The cat", "sat"), make_tokenizer("no_end"), CHAT)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "turn not ended"


def test_content_that_brings_its_end_along_is_accepted_where_the_template_has_none(make_tokenizer):
    tokenizer = make_tokenizer("no_end")
    sequence = render(_sample("The cat", "sat<|im_end|>"), tokenizer, CHAT)
    assert _trained(tokenizer, sequence) == "sat<|im_end|>"


def test_marks_that_leave_out_the_end_of_turn_are_refused(make_tokenizer):
    refusal = render(_sample("The cat", "sat"), make_tokenizer("marks_without_end"), CHAT)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "turn not ended"
    assert "'<|im_end|>'" in refusal.detail


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_content_that_holds_an_end_of_turn_token_is_refused(make_tokenizer, end):
    tokenizer = make_tokenizer("chatml", eos=end)
    refusal = render(_sample("The cat", f"sat{end}"), tokenizer, CHAT)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "end-of-turn token inside the turn"


def test_the_end_of_turn_is_found_where_the_end_of_sequence_is_another_token(make_tokenizer):
    tokenizer = make_tokenizer("chatml", eos="<|endoftext|>")
    assert _trained(tokenizer, render(_sample("The cat", "sat"), tokenizer, CHAT)) == "sat<|im_end|>"
    assert turn_end_tokens(tokenizer, CHAT) == {0, 2}
    assert turn_end_tokens(tokenizer, PLAIN) == {0}


def test_a_chat_that_the_template_refuses_is_a_refusal_and_its_neighbours_are_rendered(make_tokenizer):
    tokenizer = make_tokenizer("alternates")
    bad = Sample((user("a"), user("b")), (assistant("c"),))
    first, second, third = render_batch([_sample("a", "b"), bad, _sample("c", "d")], tokenizer, CHAT)
    assert isinstance(second, Refusal)
    assert second.reason == "the chat template refuses the chat"
    assert "roles must alternate" in second.detail
    assert _trained(tokenizer, first.sequence) == "b<|im_end|>"
    assert _trained(tokenizer, third.sequence) == "d<|im_end|>"
    with pytest.raises(UserError, match="roles must alternate"):
        render_prompt(bad, tokenizer, CHAT)


def test_samples_without_an_answer_or_without_a_question_are_refused(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    assert render(Sample((user("a"),)), tokenizer, CHAT).reason == "no trained token"
    assert render(Sample((), (assistant("a"),)), tokenizer, CHAT).reason == "nothing comes before the answer"


def test_tools_reach_the_template_and_their_results_are_of_the_environment(make_tokenizer):
    tokenizer = make_tokenizer("tools")
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = (
        user("1 + 30?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "31"},
        {"role": "tool", "content": "42"},
    )
    sample = Sample(turns, (assistant("The 31"),), tools=({"name": "add"},))
    sequence = render(sample, tokenizer, EVERY)
    assert _all_text(tokenizer, sequence).startswith('<|im_start|>system\n[{"name": "add"}]')
    call_text = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>'
    assert _trained(tokenizer, sequence) == f"{call_text}The 31<|im_end|>"
    environment = tokenizer.decode(sequence.tokens[sequence.origin == Origin.ENVIRONMENT])
    assert environment == "<|im_start|>tool\n31<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n"


def test_a_call_of_a_tool_may_end_its_turn_in_another_way(make_tokenizer):
    tokenizer = make_tokenizer("calls_end_otherwise")
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    sample = Sample((user("a"), call, user("b")), (assistant("c"),))
    text = _trained(tokenizer, render(sample, tokenizer, EVERY))
    assert text == '[{"function": {"name": "add", "arguments": {}}}]</tool_call>c<|im_end|>'
    assert tokenizer.convert_ids_to_tokens(sorted(turn_end_tokens(tokenizer, CHAT))) == ["<|im_end|>", "</tool_call>"]


def test_what_closes_the_whole_chat_is_no_end_of_turn(make_tokenizer):
    tokenizer = make_tokenizer("tools_and_eos_at_end")
    assert tokenizer.convert_ids_to_tokens(list(turn_end_tokens(tokenizer, CHAT))) == ["<|im_end|>"]


def test_a_template_that_leaves_out_tools_calls_or_results_is_refused(make_tokenizer):
    tokenizer, tools = make_tokenizer("chatml"), make_tokenizer("tools")
    with_tools = Sample((user("a"),), (assistant("b"),), tools=({"name": "add"},))
    refusal = render(with_tools, tokenizer, CHAT)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "the chat template leaves something out"
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    refusal = render(Sample((user("a"),), (call,)), tokenizer, CHAT)
    assert isinstance(refusal, Refusal)
    assert "turn 2 of 2 is empty but for its end; it has the fields content, role, tool_calls" in refusal.detail
    assert _trained(tools, render(Sample((user("a"),), (call,)), tools, CHAT)).endswith("</tool_call><|im_end|>")


def test_a_template_that_drops_the_results_of_tools_is_refused(make_tokenizer):
    tokenizer = make_tokenizer("drops_results")
    sample = Sample((user("a"), assistant("b"), {"role": "tool", "content": "31"}), (assistant("c"),))
    refusal = render(sample, tokenizer, CHAT)
    assert isinstance(refusal, Refusal)
    assert "does not write the result of a tool, turn 3 of 4" in refusal.detail


@pytest.mark.parametrize(
    ("name", "end"),
    [("qwen2_5", "<|im_end|>"), ("qwen2_5_training", "<|im_end|>"), ("llama3_1", "<|eot_id|>"), ("gemma3", "<turn>")],
)
def test_templates_of_released_models_are_masked_exactly(released_tokenizer, name, end):
    tokenizer = released_tokenizer(name, end)
    sequence = render(_sample("The cat", "sat", "and", "then"), tokenizer, EVERY)
    assert _trained(tokenizer, sequence) == f"sat{end}then{end}"


def test_samples_with_and_without_tools_go_in_one_batch(make_tokenizer):
    tokenizer = make_tokenizer("tools")
    with_tools = Sample((user("a"),), (assistant("b"),), tools=({"name": "add"},))
    together = render_batch([_sample("a", "b"), with_tools, _sample("c", "d")], tokenizer, CHAT)
    alone = [
        render_batch([sample], tokenizer, CHAT)[0] for sample in (_sample("a", "b"), with_tools, _sample("c", "d"))
    ]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.sequence.tokens, other.sequence.tokens)


def test_overlong_samples_are_dropped_cut_or_an_error(make_tokenizer):
    tokenizer, sample = make_tokenizer("chatml"), _sample("The cat", "sat on the mat, and then the cat ate.")
    whole = render(sample, tokenizer, CHAT)
    limit = len(whole) - 3
    dropped = render(sample, tokenizer, Rendering(max_length=limit))
    assert isinstance(dropped, Refusal)
    assert dropped.reason == "overlong"
    assert f"{len(whole)} tokens, allowed are {limit}" in dropped.detail
    cut = render_batch([sample], tokenizer, Rendering(max_length=limit, overlong="truncate"))[0]
    assert cut.truncated
    assert np.array_equal(cut.sequence.tokens, whole.tokens[:limit])
    assert cut.sequence.targets == whole.targets - 3
    with pytest.raises(UserError, match="raise max_length"):
        render(sample, tokenizer, Rendering(max_length=limit, overlong="error"))
    assert not render_batch([sample], tokenizer, Rendering(max_length=len(whole), overlong="error"))[0].truncated


def test_a_cut_in_a_later_question_ends_with_the_last_target_before_it(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    first = render(_sample("The cat", "sat"), tokenizer, EVERY)
    cut = Rendering(len(first) + 3, loss_on="all", overlong="truncate")
    sequence = render(_sample("The cat", "sat", "and then?", "The cat ate."), tokenizer, cut)
    assert np.array_equal(sequence.tokens, first.tokens)


def test_a_cut_that_leaves_no_trained_token_is_a_refusal(make_tokenizer):
    refusal = render(_sample("The cat " * 20, "sat"), make_tokenizer("chatml"), Rendering(8, overlong="truncate"))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "no trained token"


def test_a_pair_shares_its_group_and_trains_only_the_responses(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    sample = Sample((user("a"), assistant("b"), user("c")), (assistant("good"),), (assistant("bad"),))
    chosen, rejected = render_pair(sample, tokenizer, EVERY)
    assert _trained(tokenizer, chosen) == "good<|im_end|>"
    assert _trained(tokenizer, rejected) == "bad<|im_end|>"
    assert chosen.group == rejected.group == sample.id
    assert (chosen.scalars, rejected.scalars) == ({"chosen": 1.0}, {"chosen": 0.0})


def test_a_pair_with_a_bad_side_is_refused_and_the_side_is_named(make_tokenizer):
    sample = Sample((user("a"),), (assistant("good"),), (assistant("\nbad"),))
    refusal = render_pair(sample, make_tokenizer("chatml"), CHAT)
    assert isinstance(refusal, Refusal)
    assert refusal.detail.startswith("rejected: ")
    alone = render_pair(_sample("a", "b"), make_tokenizer("chatml"), CHAT)
    assert alone == Refusal("no preference pair", "there is no rejected answer")


def test_a_tokenizer_without_a_chat_template_is_a_user_error(make_tokenizer):
    tokenizer = make_tokenizer(None)
    with pytest.raises(UserError, match="template: none"):
        render(_sample("a", "b"), tokenizer, CHAT)
    with pytest.raises(UserError, match="template: none"):
        render_prompt(_sample("a", "b"), tokenizer, CHAT)


def test_a_template_that_inserts_text_before_the_answer_is_noted(make_tokenizer):
    tokenizer = make_tokenizer("empty_thinking")
    assert _trained(tokenizer, render(_sample("a", "b"), tokenizer, CHAT)).startswith("<think>")
    assert "'<think>\\n\\n</think>\\n\\n'" in template_notes(tokenizer, CHAT)[0]
    without = Rendering(4096, template_options={"enable_thinking": False})
    assert _trained(tokenizer, render(_sample("a", "b"), tokenizer, without)) == "b<|im_end|>"
    assert template_notes(tokenizer, without) == []
    assert template_notes(make_tokenizer("chatml"), CHAT) == []


@settings(deadline=None, max_examples=60)
@given(question=_words, answer=_words)
def test_plain_text_is_prompt_then_trained_response_and_end_of_sequence(make_tokenizer, question, answer):
    tokenizer = make_tokenizer(None)
    sequence = render(_sample(question, answer), tokenizer, PLAIN)
    assert _all_text(tokenizer, sequence) == f"{question}{answer}<|im_end|>"
    assert _trained(tokenizer, sequence) == f"{answer}<|im_end|>"
    prompt = render_prompt(_sample(question, answer), tokenizer, PLAIN)
    assert np.array_equal(prompt, sequence.tokens[~sequence.target])


def test_plain_text_options(make_tokenizer):
    tokenizer = make_tokenizer(None, bos=True)
    no_end = Rendering(4096, template="none", append_eos=False)
    assert _all_text(tokenizer, render(_sample("The", "cat"), tokenizer, no_end)) == "<|endoftext|>Thecat"
    only_text = Sample((), (assistant("The cat"),))
    assert _trained(tokenizer, render(only_text, tokenizer, PLAIN)) == "The cat<|im_end|>"
    assert not render(only_text, make_tokenizer(None), PLAIN).target[0]
    assert render(_sample("a", "b", "c", "d"), tokenizer, PLAIN).reason == "more than one turn without a template"
    with pytest.raises(UserError, match="append_eos: false"):
        render(_sample("a", "b"), make_tokenizer(None, eos=None), PLAIN)


@pytest.mark.parametrize("rendering", [CHAT, PLAIN])
def test_a_forced_beginning_follows_the_unchanged_prompt(make_tokenizer, rendering):
    tokenizer, sample = make_tokenizer("chatml"), _sample("The cat", "sat")
    prompt = render_prompt(sample, tokenizer, rendering)
    for text in ("sat on", "\n\nsat", " the"):
        forced = render_prompt(sample, tokenizer, rendering, forced=text)
        assert np.array_equal(forced[: len(prompt)], prompt)
        assert tokenizer.decode(forced[len(prompt) :], skip_special_tokens=False) == text


def test_wrong_options_are_named():
    with pytest.raises(UserError, match="overlong is 'trunc': did you mean 'truncate'"):
        Rendering(100, overlong="trunc")
    with pytest.raises(UserError, match="max_length is 1"):
        Rendering(1)
