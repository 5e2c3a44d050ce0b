"""What stands between two drawn turns is what the template would have written there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import Sample, assistant, user
from posttrain.data.continuation import continuation
from posttrain.data.rendering import Rendering, render, render_prompt
from posttrain.errors import UserError

CHAT = Rendering(max_length=4096)
_words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(
    lambda text: text.strip() and "<" not in text
)


def _drawn(tokenizer, question, answer) -> tuple[list[int], list[int]]:
    """The prompt's tokens, and those of an answer with the token that ends it."""
    sequence = render(Sample((question,), (answer,)), tokenizer, CHAT)
    return sequence.tokens[~sequence.target].tolist(), sequence.tokens[sequence.target].tolist()


def _whole(tokenizer, *turns) -> list[int]:
    return render_prompt(Sample(turns), tokenizer, CHAT).tolist()


@pytest.mark.parametrize("template", ["chatml", "marks", "strips_thinking", "trims", "eos_at_end", "alternates"])
@settings(deadline=None, max_examples=30)
@given(answer=_words, said=_words)
def test_a_users_reply_is_written_as_the_template_does(make_tokenizer, template, answer, said):
    tokenizer = make_tokenizer(template)
    prompt, drawn = _drawn(tokenizer, user("The cat"), assistant(answer))
    between = continuation(tokenizer, CHAT, user(said))
    assert prompt + drawn + between == _whole(tokenizer, user("The cat"), assistant(answer), user(said))


@pytest.mark.parametrize("template", ["tools", "tools_and_eos_at_end", "chatml", "calls_end_otherwise"])
def test_a_tools_result_is_written_as_the_template_does(make_tokenizer, template):
    tokenizer, result = make_tokenizer(template), {"role": "tool", "content": " 31\n"}
    answer = assistant("sat")
    if template != "chatml":
        answer = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    prompt, drawn = _drawn(tokenizer, user("The cat"), answer)
    assert prompt + drawn + continuation(tokenizer, CHAT, result) == _whole(tokenizer, user("The cat"), answer, result)


def test_a_turn_that_was_cut_off_is_ended_first(make_tokenizer):
    for template in ("chatml", "no_end"):
        tokenizer = make_tokenizer(template)
        ended, cut = (continuation(tokenizer, CHAT, user("why"), ended=ended) for ended in (True, False))
        assert cut == [tokenizer.convert_tokens_to_ids("<|im_end|>"), *ended]


def test_earlier_reasoning_that_the_template_would_drop_stays_as_it_was_drawn(make_tokenizer):
    tokenizer = make_tokenizer("strips_thinking")
    prompt, drawn = _drawn(tokenizer, user("a"), assistant("<think>b</think>c"))
    text = tokenizer.decode(prompt + drawn + continuation(tokenizer, CHAT, user("d")), skip_special_tokens=False)
    assert "<think>b</think>c<|im_end|>\n<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n" in text


def test_options_of_the_template_count(make_tokenizer):
    tokenizer = make_tokenizer("empty_thinking")
    quiet = Rendering(4096, template_options={"enable_thinking": False})
    added = continuation(tokenizer, quiet, user("a"))[len(continuation(tokenizer, CHAT, user("a"))) :]
    assert tokenizer.decode(added) == "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("name", "end", "role"),
    [
        ("qwen2_5", "<|im_end|>", "tool"),
        ("qwen3", "<|im_end|>", "tool"),
        ("qwen3", "<|im_end|>", "user"),
        ("llama3_1", "<|eot_id|>", "tool"),
        ("gemma3", "<turn>", "user"),
        ("phi3", "<|end|>", "user"),
    ],
)
def test_templates_of_released_models_are_continued_exactly(released_tokenizer, name, end, role):
    tokenizer = released_tokenizer(name, end)
    reply = {"role": role, "content": "31"}
    chat = (user("The cat"), assistant("sat"), reply)
    prompt = _whole(tokenizer, user("The cat"))
    drawn = tokenizer(f"sat{end}", add_special_tokens=False)["input_ids"]
    assert prompt + drawn + continuation(tokenizer, CHAT, reply) == _whole(tokenizer, *chat)


def test_what_cannot_be_written_is_a_user_error(make_tokenizer):
    result = {"role": "tool", "content": "31"}
    with pytest.raises(UserError, match="leaves out a turn of role 'tool'"):
        continuation(make_tokenizer("drops_results"), CHAT, result)
    with pytest.raises(UserError, match=r"refuses a turn of role 'tool' .*roles must alternate"):
        continuation(make_tokenizer("alternates"), CHAT, result)
    with pytest.raises(UserError, match="template is 'none'"):
        continuation(make_tokenizer(None), Rendering(64, template="none"), result)


def test_a_reply_may_hold_the_token_that_ends_turns(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    ids = continuation(tokenizer, CHAT, user("a<|im_end|>b"))
    assert np.count_nonzero(np.array(ids) == tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
