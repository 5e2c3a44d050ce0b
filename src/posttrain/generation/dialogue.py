"""Dialogues: the model answers, an environment replies, and the model goes on, as one sequence of tokens."""

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from posttrain.data import Message, Sample, assistant
from posttrain.data.continuation import continuation
from posttrain.data.rendering import Rendering, turn_end_tokens
from posttrain.generation.engine import Completion, Prompt, Sampling

Generate = Callable[[List[Prompt], int, Sampling], list[Completion]]
"""`(prompts, n, sampling)` -> `n` completions for each prompt, ordered by prompt, then by sample."""

Environment = Callable[[Sample, List[Message]], str | Message | None]
"""What is replied to the last of the turns behind a sample's prompt, which is the assistant's: the result of a tool as
text, a turn of another role, or None where the dialogue ends."""


@dataclass(frozen=True)
class Dialogue(Completion):
    """A completion of several turns. `tokens[R]` are all tokens behind the prompt, the environment's among them.

    `drawn[R]` bool: did the model write this token? Log-probs of the others are 0. `turns`: what `tokens` say, without
    the prompt. `text` is that of the model's last turn. `finish_reason` is "length" where a turn was cut off or the
    next one found no room; the dialogue then ends with it.
    """

    turns: tuple[Message, ...] = ()


def converse(
    generate: Generate,
    prompts: List[Prompt],
    n: int,
    sampling: Sampling,
    *,
    samples: List[Sample],
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering,
    turns: int,
    forced: str = "",
    seen: Callable[[List[int]], List[int]] = list,
) -> list[Dialogue]:
    """`n` dialogues of at most `turns` turns of the model for each prompt, ordered by prompt, then by sample.

    `samples[i]` is what `prompts[i]` asks, `sampling.max_new_tokens` the limit of one turn, `rendering.max_length` that
    of prompt and dialogue together. Every turn begins with `forced`, which the prompts hold already. All dialogues that
    still run are continued in one call of `generate`; what a dialogue draws hangs on nothing else in the call.

    `seen` gives what later turns see of the tokens of a turn (an inference that drops earlier reasoning). Where it
    changes them, the tokens of a dialogue are not one sequence that the model has read: do not train on them.

    Raises `UserError` where the template knows no such reply.
    """
    ends = turn_end_tokens(tokenizer, rendering)
    begin: list[int] = tokenizer(forced, add_special_tokens=False)["input_ids"] if forced else []
    room = rendering.max_length - sampling.max_new_tokens

    def replied(talk: _Talk) -> bool:
        """Let the environment reply. False where it ends the dialogue, or no room is left for the next turn."""
        sample = samples[talk.prompt]
        reply = environment(sample, tuple(talk.turns)) if talk.last.finish_reason == "stop" else None
        if reply is None:
            return False
        message: Message = {"role": "tool", "content": reply} if isinstance(reply, str) else reply
        ended = int(talk.last.tokens[-1]) in ends
        between = continuation(tokenizer, rendering, message, tools=sample.tools, ended=ended) + begin
        if len(talk.context) + len(between) > room:
            talk.cut = True
            return False
        talk.tell(message, between)
        return True

    talks = [_Talk(first, prompts[first.prompt].tokens.tolist()) for first in generate(prompts, n, sampling)]
    for talk in talks:
        talk.hear(talk.last, forced, seen)
    running = talks
    for turn in range(1, turns):
        running = [talk for talk in running if replied(talk)]
        if not running:
            break
        asked = [Prompt(np.asarray(t.context, dtype=np.int32), _key(prompts, t, turn)) for t in running]
        for talk, drawn in zip(running, generate(asked, 1, sampling), strict=True):
            talk.hear(drawn, forced, seen)
    return [talk.dialogue() for talk in talks]


class _Talk:
    """A dialogue on its way. `context`: what the model reads next; `last`: its last turn."""

    def __init__(self, first: Completion, prompt: list[int]) -> None:
        self.prompt, self.sample, self.last, self.cut = first.prompt, first.sample, first, False
        self.context = prompt
        self.turns: list[Message] = []
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.sampling_logprobs: list[float] = []
        self.drawn: list[bool] = []

    def hear(self, turn: Completion, forced: str, seen: Callable[[List[int]], List[int]]) -> None:
        """A turn of the model."""
        self.last = turn
        self.turns.append(assistant(forced + turn.text))
        self.context += seen(turn.tokens.tolist())
        self._append(turn.tokens.tolist(), turn.logprobs.tolist(), turn.sampling_logprobs.tolist(), drawn=True)

    def tell(self, reply: Message, between: list[int]) -> None:
        """What the environment replies, as the tokens `between` two turns."""
        self.turns.append(reply)
        self.context += between
        self._append(between, [0.0] * len(between), [0.0] * len(between), drawn=False)

    def _append(self, tokens: list[int], logprobs: list[float], sampling_logprobs: list[float], drawn: bool) -> None:
        self.tokens += tokens
        self.logprobs += logprobs
        self.sampling_logprobs += sampling_logprobs
        self.drawn += [drawn] * len(tokens)

    def dialogue(self) -> Dialogue:
        return Dialogue(
            prompt=self.prompt,
            sample=self.sample,
            tokens=np.array(self.tokens, dtype=np.int32),
            logprobs=np.array(self.logprobs, dtype=np.float32),
            sampling_logprobs=np.array(self.sampling_logprobs, dtype=np.float32),
            finish_reason="length" if self.cut else self.last.finish_reason,
            text=self.last.text,
            drawn=np.array(self.drawn, dtype=np.bool_),
            turns=tuple(self.turns),
        )


def _key(prompts: List[Prompt], talk: _Talk, turn: int) -> int:
    """Names the random stream of a later turn, which stands anywhere in a later call (31 bits)."""
    key = prompts[talk.prompt].key
    name = f"{talk.prompt if key is None else key}/{talk.sample}/{turn}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) >> 1
