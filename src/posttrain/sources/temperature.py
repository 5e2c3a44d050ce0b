"""The temperature that answers are drawn at: a number, a schedule, or what gives the policy's answers an entropy."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import replace
from typing import Annotated, Any, Protocol

from pydantic import Field

from posttrain.data.scores import ENTROPY_METRIC
from posttrain.data.step import Step
from posttrain.errors import UserError
from posttrain.generation import Prompt, Sampling
from posttrain.registry import Registry
from posttrain.rewards import Attempt
from posttrain.schedules import Schedule, build_schedule, value_at
from posttrain.sources.answering import Generate, stream_key
from posttrain.sources.rollout import Question
from posttrain.sources.weighing import add

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

Entropy = Callable[[float, int], float]
"""`(T, count)` -> H_T in nats of an answer to each of the first `count` questions. Every rank must call it as often."""


class Temperature(Protocol):
    """What says at which temperature a round is drawn; one that may move is logged as `temperature`.

    Every rank must call `at` before each round, and `watch` behind it.
    """

    def at(self, step: Step, entropy: Entropy) -> float:
        """That of the next round, above 0; `entropy` measures what the policy's answers have at another."""
        ...

    def watch(self, step: Step) -> None:
        """A round was drawn at it, and is in the step's report."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; the same on every rank."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


temperatures: Registry[Callable[..., Temperature]] = Registry("temperature")
"""What sets the temperature by what it has measured, by the name that a recipe gives it."""


class ScheduledTemperature:
    """A number, or a schedule."""

    def __init__(self, value: float | Schedule) -> None:
        self.value = value

    def at(self, step: Step, entropy: Entropy) -> float:
        """See `Temperature.at`. Raises `UserError` in a step in which the schedule is not above 0."""
        temperature = value_at(self.value, step)
        if temperature <= 0:
            raise UserError(
                f"rollouts.temperature is {temperature:g} in step {step.index + 1} by its schedule: answers to learn "
                "from are drawn at temperatures above 0"
            )
        if callable(self.value):
            add(step, "temperature", temperature, 1)
        return temperature

    def watch(self, step: Step) -> None:
        """Nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing: it is a function of the step."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


@temperatures.register("entropy")
class EntropyTemperature:
    """The temperature at which the policy's own answers have a mean entropy of about `target` nats a token.

    H_T = -Σ_v p_v log p_v with p = softmax(z / T), averaged over the tokens that the policy draws at T. Before its
    first round a stage draws one answer to each of so many `questions` at every T from `low` to `high` by `spacing`,
    takes the T whose H_T is closest to the target (of equal ones the lowest), and keeps it; with `every` it measures
    again after so many rounds. The rule of AceReason-Nemotron 1.1 (arXiv 2506.13284), whose paper keeps the
    "temperature-adjusted entropy" near 0.3 and gives no formula: definition and procedure are reconstructed.
    """

    def __init__(
        self,
        *,
        target: Positive = 0.3,
        low: Positive = 0.5,
        high: Positive = 1.2,
        spacing: Positive = 0.05,
        questions: Count = 64,
        every: Count | None = None,
    ) -> None:
        if low > high:
            raise UserError(f"temperature 'entropy': low {low:g} is above high {high:g}, which leaves none to try")
        self.target, self.questions, self.every = target, questions, every
        self.grid = [round(low + place * spacing, 6) for place in range(1 + int((high - low) / spacing + 1e-9))]
        self.value: float | None = None
        self._rounds = 0

    def at(self, step: Step, entropy: Entropy) -> float:
        """See `Temperature.at`. Where it was measured, the log has H_T of the chosen one as `tempered_entropy`."""
        if self.value is None or self._rounds == self.every:
            found = {temperature: entropy(temperature, self.questions) for temperature in self.grid}
            self.value, self._rounds = min(self.grid, key=lambda tried: abs(found[tried] - self.target)), 0
            step.report["tempered_entropy"] = (found[self.value], 1)
        self._rounds += 1
        add(step, "temperature", self.value, 1)
        return self.value

    def watch(self, step: Step) -> None:
        """Log as `entropy_outside` whether what was drawn has left the entropy that the temperature was chosen for."""
        shares = step.gather(step.report.get("sampled_entropy", (0.0, 0.0)))
        entropy = sum(share[0] for share in shares) / max(1, sum(share[1] for share in shares))
        add(step, "entropy_outside", float(not self.holds(entropy)), 1)

    def holds(self, entropy: float) -> bool:
        """Is an entropy between two thirds of the target and one and a half times it? (0.2 to 0.45 around 0.3.)"""
        return 2 / 3 * self.target <= entropy <= 1.5 * self.target

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; the same on every rank."""
        return {"value": self.value, "rounds": self._rounds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.value, self._rounds = state["value"], state["rounds"]


def build_temperature(spec: Any) -> Temperature:
    """That of a number, of a schedule's mapping, or of `{name: entropy, ...}`. Raises `UserError` for all else."""
    if isinstance(spec, Mapping) and spec.get("name") in temperatures:
        name, options = temperatures.options(spec)
        return temperatures[name](**options)
    return ScheduledTemperature(build_schedule(spec, "rollouts.temperature, where it is not {name: entropy, ...},"))


def mean_entropy(questions: List[Question], generate: Generate, sampling: Sampling, step: Step) -> float:
    """H_T in nats, the mean over the tokens of one answer to each question, all ranks' together.

    At the temperature of `sampling`, by the policy as it is. Every rank must call it as often, also without a question.
    """
    prompts = [Prompt(question.tokens, stream_key(question.sample)) for question in questions]
    drawn = generate([question.sample for question in questions], prompts, 1, replace(sampling, seed=step.seed), step)
    sequences = []
    for question, completion in zip(questions, drawn, strict=True):
        answer = Attempt(
            sample=question.sample,
            text=completion.text,
            tokens=completion.tokens,
            logprobs=completion.sampling_logprobs,
            finish_reason=completion.finish_reason,
            prompt=question.tokens,
            drawn=completion.drawn,
        )
        sequences.append(replace(answer.sequence, scalars={"temperature": sampling.temperature}))
    entropies = [scores[ENTROPY_METRIC.name].double() for scores in step.score(sequences, (ENTROPY_METRIC,))]
    shares = step.gather((sum(float(values.sum()) for values in entropies), sum(len(values) for values in entropies)))
    total, count = (float(sum(part)) for part in zip(*shares, strict=True))
    return total / max(1.0, count)
