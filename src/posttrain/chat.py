"""`posttrain chat`: a conversation with a model, each answer shown as it is drawn."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from rich.text import Text
from transformers import DynamicCache

from posttrain.data import Message, Sample, assistant, user
from posttrain.data.rendering import Rendering, render_prompt, turn_end_tokens
from posttrain.errors import UserError
from posttrain.generation import Sampling
from posttrain.generation.readiness import plain_model
from posttrain.generation.sampling import check, draw, stream
from posttrain.generation.stopping import decode, end_tokens
from posttrain.policy import Policy
from posttrain.terminal import Terminal, harmless

HELP = "/new starts over, /quit ends"


class Conversation:
    """The turns so far. `ask` adds a question and its answer."""

    def __init__(self, policy: Policy, sampling: Sampling, system: str | None = None) -> None:
        check(sampling)
        ends = turn_end_tokens(policy.tokenizer, Rendering(policy.context_length))
        self.policy, self.sampling = policy, replace(sampling, stop_tokens=tuple(sorted(ends)))
        self.opening: list[Message] = [{"role": "system", "content": system}] if system else []
        self.turns: list[Message] = list(self.opening)
        self.finish_reason = "stop"

    def restart(self) -> None:
        """Forget all turns but the system's."""
        self.turns = list(self.opening)

    def ask(self, question: str) -> Iterator[str]:
        """The answer, in pieces as it is drawn. It joins the turns when it is complete or the caller stops listening.

        Raises `UserError`, and leaves the turns as they were, when the conversation has outgrown the model's context.
        """
        asked = [*self.turns, user(question)]
        rendering = Rendering(self.policy.context_length)
        prompt = render_prompt(Sample(tuple(asked)), self.policy.tokenizer, rendering)
        if len(prompt) >= self.policy.context_length:
            raise UserError(
                f"the conversation has {len(prompt)} tokens, but the model reads at most {self.policy.context_length}; "
                "/new starts over"
            )
        said = ""
        try:
            for piece in self._pieces(prompt):
                said += piece
                yield piece
        finally:
            self.turns = [*asked, assistant(said)]

    def _pieces(self, prompt: Any) -> Iterator[str]:
        """Text as soon as its characters are whole (a token may hold a part of one)."""
        tokens: list[int] = []
        shown = ""
        for token in self._tokens(prompt):
            tokens.append(token)
            text = decode(self.policy.tokenizer, tokens)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(shown) :]
                shown = text
        yield decode(self.policy.tokenizer, tokens)[len(shown) :]

    @torch.inference_mode()
    def _tokens(self, prompt: Any) -> Iterator[int]:
        """The drawn tokens without the one that ends the answer. Every answer has a random stream of its own."""
        model = plain_model(self.policy.model)
        ends = end_tokens(model, self.policy.tokenizer, self.sampling)
        uniforms = stream(self.sampling.seed, len(self.turns), 0)
        cache = DynamicCache(config=model.config)
        unread = torch.as_tensor(prompt, dtype=torch.int64, device=self.policy.device)[None]
        self.finish_reason = "length"
        for _ in range(min(self.sampling.max_new_tokens, self.policy.context_length - len(prompt))):
            with self.policy.computing():
                logits = model(input_ids=unread, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            uniform = torch.tensor([uniforms.random()], device=logits.device, dtype=torch.float32)
            unread = draw(logits, uniform, self.sampling)[0][:, None]
            token = int(unread)
            if token in ends:
                self.finish_reason = "stop"
                return
            yield token


def converse(conversation: Conversation, terminal: Terminal) -> None:
    """Read questions until there are no more, or one is `/quit`. Ctrl-C stops an answer; at the prompt it ends."""
    by_hand = sys.stdin.isatty() and terminal.interactive
    if by_hand:
        terminal.console.print(Text(HELP, "dim"))
    for line in _typed() if by_hand else sys.stdin:
        question = line.strip()
        if question == "/quit":
            return
        if question == "/new":
            conversation.restart()
            if terminal.interactive:
                terminal.console.print(Text("a new conversation", "dim"))
        elif question.startswith("/") and by_hand and " " not in question:
            terminal.console.print(Text(f"unknown command {question}: {HELP}", "yellow"))
        elif question:
            _answered(conversation, question, terminal, by_hand)


def _typed() -> Iterable[str]:
    with suppress(ImportError):  # not there on Windows; with it, input() has a history and can be edited
        import readline  # noqa: F401
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def _answered(conversation: Conversation, question: str, terminal: Terminal, by_hand: bool) -> None:
    if not terminal.interactive:
        answer = "".join(conversation.ask(question))
        terminal.line({"question": question, "answer": answer, "finish_reason": conversation.finish_reason})
        return
    if not by_hand:
        terminal.console.print(Text(f"> {question}", "bold"))
    pieces = conversation.ask(question)
    try:
        for piece in pieces:
            print(harmless(piece), end="", flush=True)
        cut = conversation.finish_reason == "length"
    except UserError as error:
        if not by_hand:
            raise
        terminal.console.print(Text(str(error), "red"))
        return
    except KeyboardInterrupt:
        cut = True
    terminal.console.print(Text(" … (cut off)" if cut else "", "dim"))
