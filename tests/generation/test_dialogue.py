"""Dialogues are one sequence: what the model drew, and between its turns what the template makes of the replies."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import CONTEXT, build, tokenizer

from posttrain.data import Sample, assistant, user
from posttrain.data.rendering import Rendering, render_prompt
from posttrain.errors import UserError
from posttrain.generation import Completion, Prompt, Sampling
from posttrain.generation.dialogue import converse
from posttrain.generation.local import LocalEngine

TOKENIZER = tokenizer()
CHAT = Rendering(CONTEXT)
SAMPLING = Sampling(max_new_tokens=64)
SAMPLES = [Sample((user(text),)) for text in ("2+3", "What is it?", "why")]
PROMPTS = [Prompt(render_prompt(sample, TOKENIZER, CHAT)) for sample in SAMPLES]


class Script:
    """An engine that says what it is told to: `says(context text, sample)`; ended by the end of a turn, or not."""

    def __init__(self, says, ended=True):
        self.says, self.ended, self.calls = says, ended, []

    def __call__(self, prompts, n, sampling):
        self.calls.append(prompts)
        found = []
        for index, prompt in enumerate(prompts):
            for sample in range(n):
                text = self.says(TOKENIZER.decode(prompt.tokens), sample)
                ids = TOKENIZER(text + ("<|im_end|>" if self.ended else ""), add_special_tokens=False)["input_ids"]
                logprobs = -np.arange(1, len(ids) + 1, dtype=np.float32)
                tokens = np.array(ids, dtype=np.int32)
                found.append(Completion(index, sample, tokens, logprobs, 2 * logprobs, "stop", text))
        return found


def talk(generate, environment, n=1, turns=3, **options):
    arguments = {"samples": SAMPLES, "tokenizer": TOKENIZER, "rendering": CHAT, "sampling": SAMPLING} | options
    sampling = arguments.pop("sampling")
    return converse(generate, PROMPTS, n, sampling, environment=environment, turns=turns, **arguments)


def counting(sample, turns):
    """Replies to every turn with how many there were."""
    return user(f"after {len(turns)}")


def test_a_dialogue_is_what_the_template_writes_of_its_turns():
    dialogues = talk(Script(lambda context, sample: f"said {sample}"), counting, n=2)
    assert [(d.prompt, d.sample) for d in dialogues] == [(p, s) for p in range(3) for s in range(2)]
    for dialogue in dialogues:
        said = assistant(f"said {dialogue.sample}")
        last = assistant("said 0") if dialogue.sample == 0 else dialogue.turns[-1]
        assert dialogue.turns[:2] == (said, user("after 1"))
        assert dialogue.turns[-1] == last
        chat = Sample((*SAMPLES[dialogue.prompt].prompt, *dialogue.turns))
        whole = render_prompt(chat, TOKENIZER, CHAT).tolist()
        mine = [*PROMPTS[dialogue.prompt].tokens.tolist(), *dialogue.tokens.tolist()]
        assert mine == whole[: len(mine)]
        assert TOKENIZER.decode(dialogue.tokens[~dialogue.drawn]).count("after") == 2


def test_log_probs_stand_at_drawn_tokens_alone():
    for dialogue in talk(Script(lambda context, sample: "yes"), counting):
        per_turn = [-1.0, -2.0, -3.0, -4.0]
        assert dialogue.logprobs[dialogue.drawn].tolist() == per_turn * 3
        assert not dialogue.logprobs[~dialogue.drawn].any()
        assert np.array_equal(dialogue.sampling_logprobs, 2 * dialogue.logprobs)
        assert dialogue.drawn.sum() == 12
        assert (dialogue.text, dialogue.finish_reason) == ("yes", "stop")


def test_the_environment_ends_each_dialogue_for_itself():
    script = Script(lambda context, sample: "yes")
    dialogues = talk(script, lambda sample, turns: "31" if sample is SAMPLES[1] and len(turns) < 3 else None, turns=9)
    assert [len(dialogue.turns) for dialogue in dialogues] == [1, 3, 1]
    assert dialogues[1].turns[1] == {"role": "tool", "content": "31"}
    assert [len(prompts) for prompts in script.calls] == [3, 1]


def test_a_turn_that_runs_out_of_tokens_or_room_ends_the_dialogue():
    script = Script(lambda context, sample: "yes")
    longest = max(len(prompt.tokens) + len(d.tokens) for prompt, d in zip(PROMPTS, talk(script, counting), strict=True))
    small = replace(CHAT, max_length=longest - 5 + SAMPLING.max_new_tokens)
    dialogues = talk(script, counting, rendering=small)
    assert [(len(d.turns), d.finish_reason) for d in dialogues] == [(5, "stop"), (3, "length"), (5, "stop")]
    assert all(dialogue.drawn[-1] for dialogue in dialogues)

    def cut(prompts, n, sampling):
        return [replace(completion, finish_reason="length") for completion in script(prompts, n, sampling)]

    assert [(len(d.turns), d.finish_reason) for d in talk(cut, counting)] == [(1, "length")] * 3


def test_a_turn_that_a_stop_string_ended_is_closed_by_the_environment():
    dialogue = talk(Script(lambda context, sample: "yes", ended=False), counting, turns=2)[0]
    assert TOKENIZER.decode(dialogue.tokens[~dialogue.drawn]).startswith("<|im_end|>\n")


def test_every_turn_begins_with_what_is_forced():
    script = Script(lambda context, sample: "yes")
    dialogue = talk(script, counting, turns=2, forced="So ")[0]
    assert [turn["content"] for turn in dialogue.turns] == ["So yes", "after 1", "So yes"]
    assert TOKENIZER.decode(script.calls[1][0].tokens).endswith("assistant\nSo ")


def test_later_turns_see_what_is_left_to_see():
    script = Script(lambda context, sample: "because yes")
    cut = len("because ")
    dialogue = talk(script, counting, turns=2, seen=lambda tokens: tokens[cut:])[0]
    context = TOKENIZER.decode(script.calls[1][0].tokens)
    assert "because" not in context
    assert "assistant\nyes<|im_end|>" in context
    assert TOKENIZER.decode(dialogue.tokens).count("because") == 2


def test_draws_are_the_same_whatever_else_is_in_the_call():
    engine = LocalEngine(build("qwen2"), TOKENIZER)
    keyed = [replace(prompt, key=place + 7) for place, prompt in enumerate(PROMPTS)]
    options = {"environment": counting, "tokenizer": TOKENIZER, "rendering": CHAT, "turns": 3}
    short = Sampling(max_new_tokens=8)

    def stopped(prompts, n, sampling):
        return [replace(completion, finish_reason="stop") for completion in engine.generate(prompts, n, sampling)]

    together = converse(stopped, keyed, 2, short, samples=SAMPLES, **options)
    alone = converse(stopped, keyed[1:2], 2, short, samples=SAMPLES[1:2], **options)
    assert [d.tokens.tolist() for d in together[2:4]] == [d.tokens.tolist() for d in alone]
    assert together[2].tokens.tolist() != together[3].tokens.tolist()


def test_log_probs_are_those_of_one_forward_pass_over_the_dialogue():
    model = build("qwen2")
    engine = LocalEngine(model, TOKENIZER)

    def stopped(prompts, n, sampling):
        return [replace(completion, finish_reason="stop") for completion in engine.generate(prompts, n, sampling)]

    for dialogue in talk(stopped, counting, sampling=Sampling(max_new_tokens=8)):
        prompt = PROMPTS[dialogue.prompt].tokens
        tokens = torch.from_numpy(np.concatenate([prompt, dialogue.tokens]).astype(np.int64))
        with torch.no_grad():
            logprobs = model(input_ids=tokens[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logprobs.gather(-1, tokens[len(prompt) :, None])[:, 0].numpy()
        np.testing.assert_allclose(dialogue.logprobs[dialogue.drawn], expected[dialogue.drawn], atol=1e-4)


def test_a_reply_that_the_template_does_not_know_is_a_user_error():
    mute = tokenizer()
    mute.chat_template = mute.chat_template.replace("for message in messages", "for message in messages[:2]", 1)
    with pytest.raises(UserError, match="leaves out a turn of role 'user'"):
        talk(Script(lambda context, sample: "yes"), counting, tokenizer=mute)
