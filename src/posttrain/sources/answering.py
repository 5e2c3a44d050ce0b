"""Questions become scored answers: drawn behind a prompt, or behind the beginning of a demonstration too."""

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from posttrain.data import Origin, Sample
from posttrain.data.step import Step
from posttrain.generation import Completion, Prompt, Sampling
from posttrain.rewards import Attempt, Moment, Reward, Score, Verify
from posttrain.rewards.attempt import Ask
from posttrain.sources.beginnings import Beginning, Begun, Visit
from posttrain.sources.rollout import Group, Question, Rollout, RolloutSettings
from posttrain.sources.weighing import add

Generate = Callable[[List[Sample], List[Prompt], int, Sampling, Step], List[Completion]]
"""`(samples, prompts, n, sampling, step)` -> `n` completions for each prompt, of the policy as it is in that step.
Every rank calls it at least once a round, also without a prompt."""
Given = list[list[int]]
"""For each question how many tokens of its demonstration each answer begins with."""

_NONE = np.zeros(0, np.float32)
_NOTHING = Completion(0, 0, _NONE.astype(np.int32), _NONE, _NONE, "stop", "")
"""What is drawn behind a whole demonstration."""


@dataclass(frozen=True)
class Answering:
    """Draws the answers to questions and scores them.

    `ask`: the models that rewards may ask. `beginning`: with how much of a demonstration answers begin, and `text`
    says what these tokens are; None: every answer is the policy's own from the first token on.
    """

    settings: RolloutSettings
    generate: Generate
    reward: Reward
    verify: Verify
    ask: Callable[[Step], Ask] | None = None
    beginning: Beginning | None = None
    text: Callable[[npt.NDArray[np.int32]], str] = lambda tokens: ""

    def groups(self, asked: List[Question], places: List[int], step: Step, temperature: float) -> list[Group]:
        """`settings.n` scored answers to each question, which is asked at a place of the run."""
        sampling = replace(self.settings.sampling, seed=step.seed, temperature=temperature)
        rounds = 1 if self.beginning is None else self.beginning.rounds
        groups: list[Group] = [[] for _ in asked]
        for part in range(rounds):
            given = self._given(asked, places, part, self.settings.n // rounds, step)
            drawn = self._scored(asked, places, given, sampling, step, part)
            self._tell(drawn, places, part, step)
            for group, more in zip(groups, drawn, strict=True):
                group += more
        apart = self.beginning is not None and self.beginning.apart
        groups = [
            [replace(r, draw=draw, place=place, branch=r.attempt.begun * apart) for draw, r in enumerate(group)]
            for group, place in zip(groups, places, strict=True)
        ]
        return self._beside_greedy(groups, asked, places, step) if self.settings.greedy else groups

    def _given(self, asked: List[Question], places: List[int], part: int, draws: int, step: Step) -> Given:
        beginning = self.beginning
        if beginning is None:
            return [[0] * draws for _ in asked]
        given = []
        for question, place in zip(asked, places, strict=True):
            tokens = range(len(question.demonstration) + 1)
            cuts = tokens if beginning.unit == "token" else (0, *question.steps)
            rng = np.random.default_rng([step.seed, stream_key(question.sample, place), part])
            counts = beginning.lengths(Visit(question.sample.id, place), len(cuts) - 1, draws, step, rng)
            given.append([cuts[count] for count in counts])
        return given

    def _tell(self, groups: List[Group], places: List[int], part: int, step: Step) -> None:
        """Let the beginning hear, on every rank, what came of all ranks' answers; logged as `reward/round1` ..."""
        if self.beginning is None:
            return
        own = [
            Begun(Visit(r.attempt.sample.id, place), r.attempt.begun, r.size, r.score.value)
            for group, place in zip(groups, places, strict=True)
            for r in group
            if r.score.error is None
        ]
        if self.beginning.rounds > 1:
            add(step, f"reward/round{part + 1}", sum(begun.reward for begun in own), len(own))
        last = part == self.beginning.rounds - 1
        self.beginning.hear([begun for share in step.gather(own) for begun in share], last)

    def _scored(
        self, asked: List[Question], places: List[int], given: Given, sampling: Sampling, step: Step, part: int = 0
    ) -> list[Group]:
        """An answer for each beginning of each question, with their rewards."""
        with step.lap("time/generate"):
            drawn = self._drawn(asked, places, given, sampling, step, part)
        attempts = [
            [self._attempt(question, completion, sampling, count) for count, completion in answers]
            for question, answers in zip(asked, drawn, strict=True)
        ]
        with step.lap("time/reward"):
            moment = Moment(step.progress, time_limit=self.settings.time_limit)
            if self.ask is not None:
                moment = replace(moment, ask=self.ask(step))
            scores = self.reward(attempts, moment)
        return [
            [
                Rollout(attempt, score, draw, size=len(question.demonstration) if self.beginning is not None else 0)
                for draw, (attempt, score) in enumerate(zip(*both, strict=True))
            ]
            for question, *both in zip(asked, attempts, scores, strict=True)
        ]

    def _drawn(
        self, asked: List[Question], places: List[int], given: Given, sampling: Sampling, step: Step, part: int
    ) -> list[list[tuple[int, Completion]]]:
        """(given tokens, completion) of each question. As many draws behind as many prompts are one call.

        Behind the whole of a demonstration nothing is drawn.
        """
        wanted: dict[int, list[tuple[int, int]]] = {}
        found: list[list[tuple[int, Completion]]] = [[] for _ in asked]
        for index, counts in enumerate(given):
            size = len(asked[index].demonstration)
            for count in sorted(set(counts)):
                if count and count == size:
                    found[index] += [(count, _NOTHING)] * counts.count(count)
                else:
                    wanted.setdefault(counts.count(count), []).append((index, count))
        for draws, begun in sorted((wanted or {1: []}).items(), reverse=True):
            prompts = [
                Prompt(
                    np.concatenate([asked[index].tokens, asked[index].demonstration[:count]]).astype(np.int32),
                    stream_key(asked[index].sample, places[index], *([part, count] if part or count else [])),
                )
                for index, count in begun
            ]
            completions = self.generate([asked[index].sample for index, _ in begun], prompts, draws, sampling, step)
            for row, (index, count) in enumerate(begun):
                found[index] += [(count, completion) for completion in completions[row * draws : (row + 1) * draws]]
        return [sorted(answers, key=lambda answer: answer[0]) for answers in found]

    def _attempt(self, question: Question, completion: Completion, sampling: Sampling, count: int) -> Attempt:
        before, own, opening = question.demonstration[:count], completion.drawn, ""
        if count:
            own = np.arange(count + len(completion.tokens)) >= count
            opening = self.text(_without_end(before, sampling))
        return Attempt(
            sample=question.sample,
            text=opening + completion.text,
            tokens=np.concatenate([before, completion.tokens]).astype(np.int32),
            logprobs=np.concatenate([np.zeros(count), completion.sampling_logprobs]).astype(np.float32),
            finish_reason=completion.finish_reason,
            verify=self.verify,
            prompt=question.tokens,
            drawn=own,
            temperature=sampling.temperature or 1.0,
            begun=count,
            begun_as=Origin.HINT if self.beginning is None else self.beginning.origin,
            opening=opening,
        )

    def _beside_greedy(self, groups: list[Group], asked: List[Question], places: List[int], step: Step) -> list[Group]:
        """With the reward of the greedy answer; where that has none, the group cannot be compared with it."""
        greedy = replace(self.settings.sampling, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, thinking=None)
        found = self._scored(asked, places, [[0] for _ in asked], greedy, step)
        return [_beside(group, baseline[0].score) for group, baseline in zip(groups, found, strict=True)]


def stream_key(sample: Sample, *place: int) -> int:
    """Names the random stream of the question at a place of the run: the same on any rank, another at each visit."""
    name = "/".join(map(str, (sample.prompt_id, *place)))
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) >> 1


def _without_end(tokens: npt.NDArray[np.int32], sampling: Sampling) -> npt.NDArray[np.int32]:
    """As the text of a drawn answer: without what ends a turn."""
    ends = np.isin(tokens, sampling.stop_tokens)
    return tokens[: len(tokens) - int(ends[::-1].cumprod().sum())]


def _beside(group: Group, greedy: Score) -> Group:
    if greedy.error is None:
        return [replace(rollout, baseline=greedy.value) for rollout in group]
    error = f"the greedy answer got no reward: {greedy.error}"
    return [replace(rollout, score=replace(rollout.score, error=error)) for rollout in group]
