"""Rollouts: the policy answers questions, rewards score the answers, and the scored answers are what it learns from."""

import hashlib
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from posttrain.advantages import Columns, Outcomes
from posttrain.data import Origin, Sample, Sequence
from posttrain.data.scores import REFERENCE_LOGPROBS
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.generation import Completion, Prompt, Sampling
from posttrain.rewards import Attempt, Reward, Score
from posttrain.rewards.reward import Verify
from posttrain.sources.order import Order

Generate = Callable[[List[Prompt], int, Sampling], list[Completion]]
"""`(prompts, n, sampling)` -> `n` completions for each prompt, of the policy as it is at the call."""


@dataclass(frozen=True)
class Question:
    """A sample, and the tokens that ask for its answer."""

    sample: Sample
    tokens: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Rollout:
    """One scored answer. `draw`: its number among the answers to its question; `advantage`: the mean of its tokens'."""

    attempt: Attempt
    score: Score
    draw: int
    advantage: float = 0.0


@dataclass(frozen=True)
class RolloutSettings:
    """How many questions and answers, how often each answer is learned from, and what is left out.

    - `prompts` questions a round (over all ranks), `n` answers each, drawn as `sampling` says.
    - A round gives `epochs` passes of `mini_batches` optimiser steps each. With more than one step in all, what the
      policy thought of its answers at first (`old_logprobs`) is scored before the first.
    - `refills`: how often questions whose answers are all worth the same are replaced by others (DAPO's dynamic
      sampling); 0 keeps them, with advantage 0.
    - `truncated`: answers that ran out of tokens are learned from (`keep`) or not (`mask`: their rewards still count).
    - `kl_in_reward` β: each token's reward is -β (log π_old - log π_0).
    - `max_errors`: the share of answers without a reward at which the run stops.
    """

    prompts: int
    n: int
    sampling: Sampling
    mini_batches: int = 1
    epochs: int = 1
    refills: int = 0
    truncated: Literal["keep", "mask"] = "keep"
    kl_in_reward: float = 0.0
    max_errors: float = 0.1

    @property
    def updates(self) -> int:
        """Optimiser steps of a round."""
        return self.mini_batches * self.epochs


class Rollouts:
    """Each round asks the next questions, in an order that is a function of the seed; groups stay on one rank.

    Answers are drawn with a stream of their own (seed, step, question, draw), so that they are the same on any number
    of ranks. `record` gets every rollout of a round, scored or not, once.
    """

    def __init__(
        self,
        questions: List[Question],
        settings: RolloutSettings,
        *,
        generate: Generate,
        reward: Reward,
        verify: Verify,
        advantage: Callable[[Outcomes], Columns],
        seed: int,
        record: Callable[[List[Rollout], int], None] = lambda rollouts, step: None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.questions, self.settings = questions, settings
        self.generate, self.reward, self.verify, self.advantage = generate, reward, verify, advantage
        self.record, self.rank, self.ranks = record, rank, ranks
        self._order = Order(len(questions), seed)
        self._tokens = {question.sample.id: question.tokens for question in questions}
        self._asked = 0
        self._waiting: list[list[Sequence]] = []

    def next(self, step: Step) -> list[Sequence]:
        """This rank's share of a step: of a new round where the last one is used up."""
        if not self._waiting:
            self._waiting = self._parts(self._round(step), step)
        return self._waiting.pop(0)

    def another(self, step: Step) -> list[Sequence]:
        """Refused: a second batch would be a second round of questions."""
        raise UserError("this objective reads a second batch of demonstrations, and rollouts have none")

    def state(self) -> dict[str, Any]:
        """How many questions were asked, and what of the last round is still to be learned from."""
        return {"asked": self._asked, "waiting": [[_packed(s) for s in part] for part in self._waiting]}

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Go on from there: with the same number of ranks each takes its own, else groups are dealt out anew."""
        self._asked = states[0]["asked"]
        if len(states) == self.ranks:
            self._waiting = [[_unpacked(row) for row in part] for part in states[self.rank]["waiting"]]
            return
        parts = zip(*(state["waiting"] for state in states), strict=True)
        self._waiting = [self._dealt([_unpacked(row) for share in part for row in share]) for part in parts]

    def _dealt(self, sequences: list[Sequence]) -> list[Sequence]:
        groups = list(dict.fromkeys(sequence.group for sequence in sequences))
        own = set(groups[self.rank :: self.ranks])
        return [sequence for sequence in sequences if sequence.group in own]

    def _round(self, step: Step) -> list[Sequence]:
        """This rank's sequences of a new round, with their advantages."""
        kept: list[list[Rollout]] = []
        dead: list[list[Rollout]] = []
        seen: list[Rollout] = []
        for _ in range(1 + self.settings.refills):
            lacking = self.settings.prompts - sum(step.gather(len(kept)))
            if lacking <= 0:
                break
            groups = self._ask(lacking, step)
            seen += [rollout for group in groups for rollout in group]
            scored = [[rollout for rollout in group if rollout.score.error is None] for group in groups]
            for group in scored:
                (dead if self.settings.refills and _is_dead(group) else kept).append(group)
        self._check_errors(seen, step)
        if not sum(step.gather(len(kept))):  # nothing to tell apart: a step that teaches nothing, and says so
            kept = dead
        rollouts = [rollout for group in kept for rollout in group]
        sequences, advantages = self._weighed(rollouts, [self._sequence(rollout, step) for rollout in rollouts], step)
        by_rollout = {id(rollout): value for rollout, value in zip(rollouts, advantages, strict=True)}
        self.record([replace(rollout, advantage=by_rollout.get(id(rollout), 0.0)) for rollout in seen], step.index)
        _report(step, seen, [*kept, *dead])
        return sequences

    def _ask(self, count: int, step: Step) -> list[list[Rollout]]:
        """The groups of this rank's share of the next `count` questions."""
        places = range(self._asked, self._asked + count)
        self._asked += count
        asked = [self.questions[self._order[place]] for place in places[self.rank :: self.ranks]]
        prompts = [
            Prompt(question.tokens, _key(question.sample, place))
            for question, place in zip(asked, places[self.rank :: self.ranks], strict=True)
        ]
        sampling = replace(self.settings.sampling, seed=step.seed)
        completions = self.generate(prompts, self.settings.n, sampling) if prompts else []
        groups = []
        for index, question in enumerate(asked):
            drawn = completions[index * self.settings.n : (index + 1) * self.settings.n]
            attempts = [self._attempt(question.sample, completion) for completion in drawn]
            scores = self.reward(attempts, step.progress)
            groups.append([Rollout(a, s, draw) for draw, (a, s) in enumerate(zip(attempts, scores, strict=True))])
        return groups

    def _attempt(self, sample: Sample, completion: Completion) -> Attempt:
        return Attempt(
            sample,
            completion.text,
            completion.tokens,
            completion.sampling_logprobs,
            completion.finish_reason,
            self.verify,
        )

    def _check_errors(self, seen: list[Rollout], step: Step) -> None:
        errors = [rollout.score.error for rollout in seen if rollout.score.error is not None]
        shares = step.gather((len(errors), len(seen), errors[:1]))
        failed, total = sum(share[0] for share in shares), sum(share[1] for share in shares)
        if failed > self.settings.max_errors * total:
            self.record(seen, step.index)
            first = next(share[2][0] for share in shares if share[2])
            raise UserError(
                f"{failed} of {total} answers of step {step.index + 1} got no reward, more than max_errors = "
                f"{self.settings.max_errors:g} allows; the first: {first}"
            )

    def _sequence(self, rollout: Rollout, step: Step) -> Sequence:
        attempt = rollout.attempt
        prompt = self._tokens[attempt.sample.id]
        length = len(prompt) + attempt.length
        drawn = np.arange(length) >= len(prompt)
        masked = self.settings.truncated == "mask" and attempt.finish_reason == "length"
        scalars = {"reward": rollout.score.value}
        if self.settings.sampling.temperature != 1:
            scalars["temperature"] = self.settings.sampling.temperature
        return Sequence(
            tokens=np.concatenate([prompt, attempt.tokens]).astype(np.int32),
            target=drawn & (not masked),
            origin=np.where(drawn, Origin.ROLLOUT, Origin.PROMPT).astype(np.uint8),
            sample_id=attempt.sample.id,
            group=f"{attempt.sample.prompt_id}/{step.index}",
            columns={"sampled_logprob": _behind(prompt, attempt.logprobs)},
            scalars=scalars,
        )

    def _weighed(
        self, rollouts: list[Rollout], sequences: list[Sequence], step: Step
    ) -> tuple[list[Sequence], list[float]]:
        """The sequences with the columns of their advantages, and each one's mean advantage."""
        penalty = None
        if self.settings.updates > 1 or self.settings.kl_in_reward:
            sequences = self._with_old(sequences, step)
        if self.settings.kl_in_reward:
            penalty = [-self.settings.kl_in_reward * s.columns["k1"][~_prompt(s)].astype(np.float64) for s in sequences]
        names = {sequence.group: index for index, sequence in enumerate(sequences)}
        columns = self.advantage(
            Outcomes(
                rewards=np.array([rollout.score.value for rollout in rollouts], dtype=np.float64),
                group=np.array([names[sequence.group] for sequence in sequences], dtype=np.int64),
                lengths=np.array([rollout.attempt.length for rollout in rollouts], dtype=np.int64),
                token_rewards=penalty,
                gather=step.gather,
            )
        )
        weighed = []
        for row, sequence in enumerate(sequences):
            prompt = sequence.tokens[_prompt(sequence)]
            added = {name: _behind(prompt, values[row]) for name, values in columns.items()}
            weighed.append(replace(sequence, columns={**sequence.columns, **added}))
        return weighed, [float(np.mean(values)) for values in columns["advantage"]]

    def _with_old(self, sequences: list[Sequence], step: Step) -> list[Sequence]:
        """`old_logprobs` as the trainer itself has them, and `k1` to the reference where the reward needs it."""
        needs = (REFERENCE_LOGPROBS,) if self.settings.kl_in_reward else ()
        whole = [replace(sequence, target=~_prompt(sequence)) for sequence in sequences]
        found = []
        for sequence, scores in zip(sequences, step.score(whole, needs), strict=True):
            prompt = sequence.tokens[_prompt(sequence)]
            old = scores.logprobs.cpu().numpy()
            columns = {**sequence.columns, "old_logprobs": _behind(prompt, old)}
            if needs:
                columns["k1"] = _behind(prompt, old - scores[REFERENCE_LOGPROBS.name].cpu().numpy())
            gap = np.abs(columns["old_logprobs"] - columns["sampled_logprob"])[~_prompt(sequence)]
            _add(step, "sampler_gap", float(gap.sum()), len(gap))
            found.append(replace(sequence, columns=columns))
        return found

    def _parts(self, sequences: list[Sequence], step: Step) -> list[list[Sequence]]:
        """The optimiser steps of a round: groups in a new order each epoch, dealt out to the mini-batches.

        Where fewer groups are left than there are mini-batches, so many steps: none is empty on every rank.
        """
        groups: dict[str, list[Sequence]] = {}
        for sequence in sequences:
            groups.setdefault(sequence.group, []).append(sequence)
        parts: list[list[Sequence]] = []
        count = min(self.settings.mini_batches, max(1, *step.gather(len(groups))))
        for epoch in range(self.settings.epochs):
            order = np.random.default_rng([step.seed, epoch]).permutation(len(groups))
            shuffled = [list(groups.values())[index] for index in order]
            for part in range(count):
                chosen = shuffled[part::count]
                parts.append([sequence for group in chosen for sequence in group])
        return parts


def _is_dead(group: list[Rollout]) -> bool:
    """Are all answers worth the same? Then nothing can be learned from comparing them."""
    return len({rollout.score.value for rollout in group}) < 2


def _key(sample: Sample, place: int) -> int:
    """Names the random stream of a question: the same on any rank; another when it is asked twice in a round."""
    return int.from_bytes(hashlib.blake2b(f"{sample.prompt_id}/{place}".encode(), digest_size=4).digest()) >> 1


def _prompt(sequence: Sequence) -> npt.NDArray[np.bool_]:
    return np.equal(sequence.origin, Origin.PROMPT)


def _behind(prompt: npt.NDArray[np.int32], values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A column of the whole sequence from the values of its drawn tokens."""
    return np.concatenate([np.zeros(len(prompt)), values]).astype(np.float32)


def _add(step: Step, name: str, total: float, count: float) -> None:
    before = step.report.get(name, (0.0, 0.0))
    step.report[name] = (before[0] + total, before[1] + count)


def _report(step: Step, seen: list[Rollout], groups: list[list[Rollout]]) -> None:
    """What a round was like, for the log."""
    for rollout in seen:
        attempt, score = rollout.attempt, rollout.score
        _add(step, "errors", float(score.error is not None), 1)
        _add(step, "length", attempt.length, 1)
        _add(step, "truncated", float(attempt.finish_reason == "length"), 1)
        _add(step, "sampled_entropy", -float(attempt.logprobs.sum()), attempt.length)
        if score.error is None:
            _add(step, "reward", score.value, 1)
            _add(step, "length/rewarded" if score.value > 0 else "length/unrewarded", attempt.length, 1)
            for name, value in score.parts.items():
                _add(step, f"reward/{name}", value, 1)
    for group in groups:
        _add(step, "dead_groups", float(_is_dead(group)), 1)


def _packed(sequence: Sequence) -> dict[str, Any]:
    """Plain values and tensors, as checkpoints keep them."""
    return {field.name: _tensors(getattr(sequence, field.name)) for field in fields(Sequence)}


def _unpacked(row: Mapping[str, Any]) -> Sequence:
    return Sequence(**{name: _arrays(value) for name, value in row.items()})


def _tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return {key: _tensors(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy()
    return {key: _arrays(item) for key, item in value.items()} if isinstance(value, Mapping) else value
