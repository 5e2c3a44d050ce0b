"""When thinking ends, as far as decoding decides it: the stop token's own temperature, and forced stops."""

from collections import deque
from collections.abc import Sequence as List
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from posttrain.generation.engine import ThinkingRules


@dataclass(slots=True, eq=False)
class Thoughts:
    """The thinking of one answer: is it still going on, what is forced next, how often it was made to go on."""

    active: bool = True
    forced: deque[int] = field(default_factory=deque)
    continued: int = 0


class ThinkingTokens:
    """`ThinkingRules` in the tokens of one tokenizer. An answer thinks from its first token to its first stop."""

    def __init__(self, rules: ThinkingRules, tokenizer: PreTrainedTokenizerBase) -> None:
        self.rules = rules
        self.stop, self.cue, self.continuation = (
            tokenizer.encode(text, add_special_tokens=False) for text in (rules.stop, rules.cue, rules.continuation)
        )

    @property
    def forces(self) -> bool:
        """May a token be another than the one that was drawn?"""
        return self.rules.budget is not None or self.rules.continuations > 0

    def scaled(self, logits: Tensor, thoughts: List[Thoughts]) -> Tensor | None:
        """`logits[R, V]` with the stop token's temperature in the rows that think; None where nothing changes."""
        rows = [row for row, thought in enumerate(thoughts) if thought.active]
        if self.rules.temperature == 1 or not rows:
            return None
        changed = logits.float().clone()
        at = torch.tensor(rows, device=logits.device)
        changed[at] = with_stop_temperature(changed[at], self.stop[0], self.rules)
        return changed

    def forced(self, token: int, thought: Thoughts, tokens: List[int]) -> int | None:
        """The token that comes behind `tokens` of an answer where `token` was drawn; None: that one."""
        if thought.active and not thought.forced:
            # A continuation of several tokens may reach past the budget.
            if self.rules.budget is not None and len(tokens) >= self.rules.budget:
                thought.forced.extend([*self.stop, *self.cue])
            elif token == self.stop[0] and thought.continued < self.rules.continuations:
                thought.forced.extend(self.continuation)
                thought.continued += 1
        return thought.forced.popleft() if thought.forced else None

    def follow(self, thought: Thoughts, tokens: List[int]) -> None:
        """`tokens` of an answer have got one more: did it end the thinking?"""
        if thought.active and tokens[-1] == self.stop[-1] and list(tokens[-len(self.stop) :]) == self.stop:
            thought.active = False


def with_stop_temperature(logits: Tensor, stop: int, rules: ThinkingRules) -> Tensor:
    """`logits[R, V]` in which the token `stop` has a temperature of its own; see `ThinkingRules`.

    Either form commutes with dividing all logits by a base temperature, so it comes first here.
    """
    origin = logits.max(-1).values if rules.reference == "max" else torch.zeros_like(logits[:, 0])
    changed = logits.clone()
    changed[:, stop] = origin + (logits[:, stop] - origin) / rules.temperature
    return changed
