"""`GeneratedTask`: what every task that makes up its problems has in common."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from random import Random
from typing import Any, Generic, Literal, TypeVar, get_args

from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError, nearest
from posttrain.rewards import Score
from posttrain.tasks.answers import verify_number
from posttrain.tasks.task import Difficulty, Task

Part = Literal["train", "test", "any"]
"""Which problems are drawn: one in eight belongs to `test`, the others to `train`, whatever the seed."""

TEST_ONE_IN = 8

_SHARE: dict[Part, float] = {"train": 1 - 1 / TEST_ONE_IN, "test": 1 / TEST_ONE_IN, "any": 1.0}

P = TypeVar("P")


class GeneratedTask(ABC, Generic[P]):
    """A task whose problems `P` are drawn at random.

    A subclass names its `styles` and says how one problem is drawn, asked, worked and answered; this class does the
    seeding, keeps the problems distinct and divides them into a training and a test part. The part of a problem hangs
    on a hash of its `canonical` text alone, so that no seed, difficulty or style puts it on the other side.
    """

    name: str
    styles: tuple[str, ...]

    def __init__(self, *, part: Part = "any") -> None:
        self.part = part

    @abstractmethod
    def problem(self, rng: Random, difficulty: Difficulty) -> P:
        """Draw one problem."""

    @abstractmethod
    def prompt(self, problem: P) -> str:
        """The question. Two problems are distinct if their prompts are."""

    @abstractmethod
    def demonstration(self, problem: P, style: str) -> str:
        """The text of an assistant turn that solves the problem. Draws nothing at random but from the problem."""

    @abstractmethod
    def answer(self, problem: P) -> str:
        """What `verify` compares with."""

    def canonical(self, problem: P) -> str:
        """The text whose hash decides the part: the same for problems that are really the same."""
        return self.prompt(problem)

    def details(self, problem: P) -> Mapping[str, Any]:
        """What goes into `Sample.meta` besides `difficulty`, `style` and `part`."""
        return {}

    def verify(self, sample: Sample, answer: str) -> Score:
        """Score one answer as a number; tasks with other answers override it."""
        return verify_number(sample, answer)

    def samples(
        self, count: int, seed: int, *, difficulty: Difficulty = "in", style: str | None = None
    ) -> list[Sample]:
        """`count` distinct problems with demonstrations; a smaller `count` gives the first of them.

        Raises `UserError` for an unknown style or difficulty, and where the task cannot make so many problems.
        """
        style = checked_style(self, count, difficulty, style)
        problems = self._problems(count, Random(f"{self.name} {difficulty} {seed}"), difficulty)
        return [self._sample(problem, difficulty, style) for problem in problems]

    def _problems(self, count: int, rng: Random, difficulty: Difficulty) -> list[P]:
        problems: list[P] = []
        seen: set[str] = set()
        misses = 0
        while len(problems) < count:
            problem = self.problem(rng, difficulty)
            prompt = self.prompt(problem)
            if prompt not in seen and self._wanted(problem):
                problems.append(problem)
                seen.add(prompt)
                misses = 0
                continue
            misses += 1
            # Of n equally likely problems the last one is missed 20 n times in a row once in e^20 runs.
            if misses > 2_000 + 20 * len(problems) / _SHARE[self.part]:
                raise UserError(
                    f"task '{self.name}' has only about {len(problems)} distinct problems of difficulty '{difficulty}' "
                    f"in part '{self.part}', but {count} were asked for; ask for fewer"
                )
        return problems

    def _wanted(self, problem: P) -> bool:
        return self.part == "any" or part_of(self.canonical(problem)) == self.part

    def _sample(self, problem: P, difficulty: Difficulty, style: str) -> Sample:
        meta = {"difficulty": difficulty, "style": style, "part": part_of(self.canonical(problem))}
        return Sample(
            prompt=(user(self.prompt(problem)),),
            response=(assistant(self.demonstration(problem, style)),),
            answer=self.answer(problem),
            task=self.name,
            meta={**meta, **self.details(problem)},
        )


def checked_style(task: Task, count: int, difficulty: Difficulty, style: str | None) -> str:
    """The style that a call of `samples` means; raises `UserError` where its arguments are none that `task` knows."""
    if count < 0:
        raise UserError(f"task '{task.name}' was asked for {count} samples; give 0 or more")
    if difficulty not in get_args(Difficulty):
        known = nearest(str(difficulty), get_args(Difficulty))
        raise UserError(f"task '{task.name}' has no difficulty '{difficulty}': {known}")
    if style is not None and style not in task.styles:
        raise UserError(f"task '{task.name}' has no style '{style}': {nearest(style, task.styles)}")
    return task.styles[0] if style is None else style


def part_of(canonical: str) -> Literal["train", "test"]:
    """The part that a problem belongs to, by its canonical text: the same in every process."""
    digest = hashlib.blake2b(canonical.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest) % TEST_ONE_IN == 0 else "train"
