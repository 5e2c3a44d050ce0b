"""The in-process engine: answers drawn by the very model that is being trained.

Every prompt is read once for its `n` samples. Running answers sit in a fixed pool of slots; one that ends makes room
for a waiting one before the next forward pass, and when none waits the pool shrinks: no pass carries a dead row.
Left out: paged memory and prefix sharing between different prompts (a server does that better).
"""

import math
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.errors import UserError
from posttrain.generation.engine import Completion, Prompt, Sampling
from posttrain.generation.readiness import check_prompt, compare, context_length, plain_model, ready
from posttrain.generation.sampling import check, draw, stream
from posttrain.generation.slots import SlotCache, StepMasks
from posttrain.generation.stopping import StopStrings, answer_text, end_tokens
from posttrain.generation.thinking import ThinkingTokens, Thoughts


class LocalEngine:
    """Draws answers with `model` as it is at the call: same weights, same device, nothing copied.

    `slots`: how many answers run at once. `prefill_tokens`: how many prompt tokens, padding included, one forward pass
    reads. `progress` is called with the number of tokens drawn since its last call, `drawn` with every finished answer.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int = 64,
        prefill_tokens: int = 2048,
        progress: Callable[[int], None] | None = None,
        drawn: Callable[[Completion], None] | None = None,
    ) -> None:
        if slots < 1 or prefill_tokens < 1:
            raise UserError(f"an engine needs at least 1 slot and 1 prefill token, found {slots} and {prefill_tokens}")
        self.model = model
        self.tokenizer = tokenizer
        self.slots = slots
        self.prefill_tokens = prefill_tokens
        self.progress = progress
        self.drawn = drawn
        self._stops: dict[tuple[str, ...], StopStrings] = {}
        self._compared = False

    def generate(self, prompts: List[Prompt], n: int, sampling: Sampling) -> list[Completion]:
        """`n` completions for each prompt, ordered by prompt, then by sample.

        Raises `UserError` for a prompt without tokens or without room for an answer, for `sampling` values that cannot
        be drawn with, and for models that keep something else than keys and values of past tokens. The first call
        compares some of its log-probs with those of a plain forward pass, so that no unknown architecture is drawn from
        wrongly.
        """
        check(sampling)
        if n < 1:
            raise UserError(f"{n} samples of each prompt were asked for; at least 1 is needed")
        model = plain_model(self.model)
        context = context_length(model)
        for index, prompt in enumerate(prompts):
            check_prompt(index, prompt, context)
        with ready(model):
            completions = _Run(self, model, prompts, n, sampling, context).completions()
            if completions and not self._compared:
                longest = max(completions, key=lambda completion: len(completion.tokens))
                compare(model, prompts[longest.prompt], longest)
                self._compared = True
        return completions

    def stop_strings(self, stops: tuple[str, ...], vocabulary: int) -> StopStrings | None:
        """The detector of `stops`, made once; None without stop strings."""
        if stops and stops not in self._stops:
            self._stops[stops] = StopStrings(self.tokenizer, stops, vocabulary)
        return self._stops.get(stops)


@dataclass(slots=True, eq=False)
class _Answer:
    """One answer on its way. `length` counts the tokens whose keys and values are in the cache."""

    prompt: int
    sample: int
    length: int
    limit: int
    uniforms: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    reason: Literal["stop", "length"] | None = None
    thoughts: Thoughts = field(default_factory=Thoughts)


class _Run:
    """One call of `LocalEngine.generate`."""

    def __init__(
        self,
        engine: LocalEngine,
        model: PreTrainedModel,
        prompts: List[Prompt],
        n: int,
        sampling: Sampling,
        context: int,
    ) -> None:
        self.engine, self.model, self.prompts, self.n, self.sampling = engine, model, prompts, n, sampling
        self.device = model.device
        self.ends = end_tokens(model, engine.tokenizer, sampling)
        rules = sampling.thinking
        self.thinking = None if rules is None else ThinkingTokens(rules, engine.tokenizer)
        config = model.config.get_text_config(decoder=True)
        self.stops = engine.stop_strings(sampling.stop, config.vocab_size)
        self.masks = StepMasks(config, model.dtype)
        self.context = context
        # Neighbours of one length: little padding in a prefill, and rows of a like length in the pool.
        self.unread = deque(sorted(range(len(prompts)), key=lambda index: -len(prompts[index].tokens)))
        self.waiting: deque[tuple[_Answer, SlotCache, int]] = deque()
        self.live: list[_Answer] = []
        self.finished: list[Completion] = []
        longest = max((len(prompt.tokens) for prompt in prompts), default=0)
        wanted = sum(len(prompt.numbers(n)) for prompt in prompts)
        self.pool = SlotCache(min(engine.slots, wanted), longest + min(sampling.max_new_tokens, 128))

    def completions(self) -> list[Completion]:
        self._refill([])
        while self.live:
            tokens = torch.tensor([answer.tokens[-1] for answer in self.live], device=self.device)
            self._draw(self.live, self._step(self.pool, tokens, [answer.length for answer in self.live]))
            for answer in self.live:
                answer.length += 1
            self._refill([row for row, answer in enumerate(self.live) if answer.reason])
        return sorted(self.finished, key=lambda completion: (completion.prompt, completion.sample))

    def _step(self, cache: SlotCache, tokens: Tensor, lengths: list[int]) -> Tensor:
        """Logits `[R, V]` after `tokens[R]`, each appended behind the `lengths[R]` cached tokens of its row."""
        positions = torch.tensor(lengths, device=self.device)
        cache.step(positions, max(lengths) + 1)
        output = self.model(
            input_ids=tokens[:, None],
            position_ids=positions[:, None],
            attention_mask=self.masks(positions, cache.columns),
            past_key_values=cache,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _draw(self, answers: list[_Answer], logits: Tensor) -> None:
        """Append one token to each of `answers` and say which of them end with it."""
        uniforms = None
        if self.sampling.temperature > 0:
            values = np.array([answer.uniforms.random() for answer in answers], dtype=np.float32)
            uniforms = torch.from_numpy(values).to(self.device)
        changed = None
        if self.thinking is not None:
            changed = self.thinking.scaled(logits, [answer.thoughts for answer in answers])
        drawn = draw(logits, uniforms, self.sampling, changed)
        if self.thinking is not None and self.thinking.forces:
            drawn = self._forced(self.thinking, answers, logits, drawn)
        # One tensor (ids are exact in float32 up to 2^24), for one wait for the device a step.
        tokens, logprobs, sampling_logprobs = torch.stack([part.float() for part in drawn]).tolist()
        if math.isnan(sum(logprobs)):
            raise FloatingPointError("the model's logits are NaN: its weights are, or its precision overflows")
        for answer, token, logprob, sampling_logprob in zip(answers, tokens, logprobs, sampling_logprobs, strict=True):
            answer.tokens.append(int(token))
            answer.logprobs.append(logprob)
            answer.sampling_logprobs.append(sampling_logprob)
            if self.thinking is not None:
                self.thinking.follow(answer.thoughts, answer.tokens)
            answer.reason = self._reason(answer)
        if self.engine.progress is not None:
            self.engine.progress(len(answers))

    def _forced(
        self, thinking: ThinkingTokens, answers: list[_Answer], logits: Tensor, drawn: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What was drawn (tokens and both log-probs, `[R]` each), with forced tokens in their places."""
        tokens, logprobs, sampling_logprobs = drawn
        for row, (answer, token) in enumerate(zip(answers, tokens.tolist(), strict=True)):
            continued = answer.thoughts.continued
            forced = thinking.forced(token, answer.thoughts, answer.tokens)
            if forced is not None:
                tokens[row], logprobs[row] = forced, logits[row].float().log_softmax(-1)[forced]
                if answer.thoughts.continued == continued:  # else there was a chance: that of the stop
                    sampling_logprobs[row] = 0.0
        return tokens, logprobs, sampling_logprobs

    def _reason(self, answer: _Answer) -> Literal["stop", "length"] | None:
        if answer.tokens[-1] in self.ends or (self.stops is not None and self.stops.completed(answer.tokens)):
            return "stop"
        return "length" if len(answer.tokens) == answer.limit else None

    def _refill(self, ended: list[int]) -> None:
        """Give the rows of `ended` answers, and rows that were never used, to waiting answers; close the gaps left."""
        self._finish([self.live[row] for row in ended])
        free = deque(ended)
        while len(free) + self.pool.slots - len(self.live) > 0 and (self.waiting or self._prefill()):
            source = self.waiting[0][1]
            rows: list[int] = []
            source_rows: list[int] = []
            while self.waiting and self.waiting[0][1] is source and (free or len(self.live) < self.pool.slots):
                answer, _, source_row = self.waiting.popleft()
                if free:
                    rows.append(free.popleft())
                    self.live[rows[-1]] = answer
                else:
                    rows.append(len(self.live))
                    self.live.append(answer)
                source_rows.append(source_row)
            longest = max(self.live[row].length for row in rows)
            self.pool.copy_rows(source, self._rows(source_rows), self._rows(rows), longest)
        self._close_gaps(list(free))

    def _close_gaps(self, gaps: list[int]) -> None:
        """Move the last live rows into `gaps` (ascending) and drop the rest."""
        kept = len(self.live) - len(gaps)
        dead = set(gaps)
        moved = [row for row in range(kept, len(self.live)) if row not in dead]
        targets = gaps[: len(moved)]
        if moved:
            longest = max(self.live[row].length for row in moved)
            self.pool.copy_rows(self.pool, self._rows(moved), self._rows(targets), longest)
        for source, target in zip(moved, targets, strict=True):
            self.live[target] = self.live[source]
        del self.live[kept:]

    def _prefill(self) -> bool:
        """Read the next prompts and draw the first token of all their samples. False when no prompt is left."""
        while self.unread and not self.waiting:
            batch = [self.unread.popleft()]
            width = len(self.prompts[batch[0]].tokens)
            while (
                self.unread
                and len(batch) < self.engine.slots
                and (len(batch) + 1) * width <= self.engine.prefill_tokens
            ):
                batch.append(self.unread.popleft())
            cache = SlotCache(len(batch), width)
            logits = self._read([self.prompts[index].tokens for index in batch], cache)
            answers = [
                (self._answer(index, sample), row)
                for row, index in enumerate(batch)
                for sample in self.prompts[index].numbers(self.n)
            ]
            for start in range(0, len(answers), self.engine.slots):
                chunk = answers[start : start + self.engine.slots]
                self._draw([answer for answer, _ in chunk], logits[self._rows([row for _, row in chunk])])
            self._finish([answer for answer, _ in answers if answer.reason])
            self.waiting.extend((answer, cache, row) for answer, row in answers if not answer.reason)
        return bool(self.waiting)

    def _read(self, prompts: list[Any], cache: SlotCache) -> Tensor:
        """Fill `cache` with `prompts`, one a row, and return the logits `[R, V]` behind each.

        All but the last tokens in one causal pass, padded on the right; then the last ones as a decoding step, so that
        the head sees one position of each prompt.
        """
        width = len(prompts[0]) - 1
        if width:
            tokens = np.zeros((len(prompts), width), dtype=np.int64)
            for row, prompt in enumerate(prompts):
                tokens[row, : len(prompt) - 1] = prompt[:-1]
            cache.prefill()
            positions = torch.arange(width, device=self.device).expand(len(prompts), width)
            self.model(
                input_ids=torch.from_numpy(tokens).to(self.device),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        last = torch.tensor([int(prompt[-1]) for prompt in prompts], device=self.device)
        return self._step(cache, last, [len(prompt) - 1 for prompt in prompts])

    def _answer(self, prompt: int, sample: int) -> _Answer:
        asked = self.prompts[prompt]
        length = len(asked.tokens)
        limit = min(self.sampling.max_new_tokens, self.context - length)
        key = prompt if asked.key is None else asked.key
        return _Answer(prompt, sample, length, limit, stream(self.sampling.seed, key, sample))

    def _rows(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self.device)

    def _finish(self, answers: list[_Answer]) -> None:
        for answer in answers:
            self.finished.append(self._completion(answer))
            if self.engine.drawn is not None:
                self.engine.drawn(self.finished[-1])

    def _completion(self, answer: _Answer) -> Completion:
        assert answer.reason is not None
        return Completion(
            prompt=answer.prompt,
            sample=answer.sample,
            tokens=np.array(answer.tokens, dtype=np.int32),
            logprobs=np.array(answer.logprobs, dtype=np.float32),
            sampling_logprobs=np.array(answer.sampling_logprobs, dtype=np.float32),
            finish_reason=answer.reason,
            text=answer_text(self.engine.tokenizer, answer.tokens, self.ends),
        )
