"""Rewards: what an answer is worth to training. Named in recipes, added up, gated.

A reward is one function, of a single attempt, of all attempts at a question, or of all attempts of a round, which are
then scored by models:

    @reward("short")
    def short(attempt: Attempt, *, longest: int = 100) -> float:
        return float(attempt.length <= longest)

    @group_reward("majority")
    def majority(attempts: List[Attempt], progress: float) -> list[float]: ...

    @model_reward("likely", models=("model",))
    def likely(attempts: List[Attempt], ask: Ask, *, model: str) -> list[float]:
        return [float(s.logprobs.sum()) for s in ask(model, [a.sequence for a in attempts], ())]

It has no side effects, and gives a number or a `Score`. What it cannot score it says by an exception or by
`Score.error`: never by a silent 0.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as List
from dataclasses import replace
from typing import Any

from posttrain.errors import UserError
from posttrain.registry import Registry
from posttrain.rewards.attempt import Attempt, Moment
from posttrain.rewards.deadline import deadline
from posttrain.rewards.score import Score

Spec = str | Mapping[str, Any] | List[str | Mapping[str, Any]]
"""What a recipe says of its reward."""
Groups = List[List[Attempt]]
"""The attempts of a round, together by question."""
Reward = Callable[[Groups, Moment], list[list[Score]]]
"""The scores of all attempts of a round, in their order."""

rewards: Registry[Callable[..., Any]] = Registry("reward")
"""Reward functions by the name that a recipe gives them."""
_OF_GROUPS: set[str] = set()
_OF_MODELS: dict[str, tuple[str, ...]] = {}
_OF_JUDGES: set[str] = set()
_USUAL = {"weight": 1.0, "since": 0.0, "until": 1.0}
COMMON = (*_USUAL, "gate")
"""Options that every part has."""


def reward(name: str) -> Callable[[Callable[..., Score | float]], Callable[..., Score | float]]:
    """Decorator: a recipe's `reward: name` is this function of one attempt."""
    return rewards.register(name)


def group_reward(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: a recipe's `reward: name` is this function of all attempts at a question and the run's progress."""
    _OF_GROUPS.add(name)
    return rewards.register(name)


def model_reward(
    name: str, *, models: tuple[str, ...] = (), judges: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: a recipe's `reward: name` is this function of all attempts of a round and of whom it may ask.

    `models`: its options that name models of the recipe ('base', an earlier stage ...). `judges`: they are reward
    models.
    """
    _OF_MODELS[name] = models
    if judges:
        _OF_JUDGES.add(name)
    return rewards.register(name)


def build_reward(spec: Spec) -> Reward:
    """What a recipe says of its reward: a name, `{name: ..., option: value}`, or a list of them to add up.

    Every part also takes `weight` (a factor; 1), `gate` (another reward: where that is 0, this part is, an error of its
    own or not), and `since` and `until` (shares of the run in which it counts). The value is the weighted sum, each
    part is kept by its name.
    """
    if not isinstance(spec, (str, Mapping)) and not spec:
        raise UserError("the reward is an empty list; give at least one part, for example 'task'")
    terms = [_build_part(part) for part in _parts(spec)]
    names = [name for name, _ in terms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"reward '{twice[0]}' is there twice: give their sum as one weight")

    def total(groups: Groups, moment: Moment) -> list[list[Score]]:
        columns = [(name, score(groups, moment)) for name, score in terms]
        return [
            [_added([(name, scores[row][draw]) for name, scores in columns]) for draw in range(len(group))]
            for row, group in enumerate(groups)
        ]

    return total


def reward_names(spec: Spec) -> set[str]:
    """The names of all parts of a reward, their gates included."""
    return {str(part.get("name")) for part in _all_parts(spec)}


def reward_models(spec: Spec, *, judges: bool = False) -> list[str]:
    """The models of the recipe that the parts of a reward ask, each once; `judges`: the reward models among them."""
    named = []
    for part in _all_parts(spec):
        name, options = rewards.options({key: value for key, value in part.items() if key not in COMMON})
        if name in _OF_JUDGES or not judges:
            named += [options[option] for option in _OF_MODELS.get(name, ())]
    return list(dict.fromkeys(named))


def _parts(spec: Spec) -> list[Mapping[str, Any]]:
    parts = [spec] if isinstance(spec, (str, Mapping)) else spec
    return [{"name": part} if isinstance(part, str) else part for part in parts]


def _all_parts(spec: Spec) -> Iterator[Mapping[str, Any]]:
    for part in _parts(spec):
        yield part
        if "gate" in part:
            yield from _all_parts(part["gate"])


def _build_part(spec: Mapping[str, Any]) -> tuple[str, Reward]:
    common = {key: spec[key] for key in COMMON if key in spec}
    name, score = _named({key: value for key, value in spec.items() if key not in COMMON})
    weight, since, until = (_number(name, key, common.get(key, usual)) for key, usual in _USUAL.items())
    if not 0 <= since < until <= 1:
        raise UserError(f"reward '{name}': 'since' and 'until' are shares of the run, found {since} and {until}")
    gate = build_reward(common["gate"]) if "gate" in common else None

    def part(groups: Groups, moment: Moment) -> list[list[Score]]:
        if not since <= moment.progress < until:
            return [[Score(0.0) for _ in group] for group in groups]
        found = _each(lambda one: _times(weight, one), score(groups, moment))
        return found if gate is None else _each(_gated, found, gate(groups, moment))

    return name, part


def _each(function: Callable[..., Score], *scores: list[list[Score]]) -> list[list[Score]]:
    return [[function(*one) for one in zip(*group, strict=True)] for group in zip(*scores, strict=True)]


def _times(factor: float, score: Score) -> Score:
    return replace(score, value=factor * score.value, tokens=tuple(factor * token for token in score.tokens))


def _number(name: str, key: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise UserError(f"reward '{name}': '{key}' must be a number, found {value!r}")
    return float(value)


def _named(spec: Mapping[str, Any]) -> tuple[str, Reward]:
    name, options = rewards.options(spec)
    function = rewards[name]
    if name in _OF_MODELS:
        return name, lambda groups, moment: _of_models(name, function, groups, moment, options)
    if name in _OF_GROUPS:
        return name, lambda groups, moment: [_of_group(name, function, group, moment, options) for group in groups]
    return name, lambda groups, moment: [
        [_scored(lambda a: function(a, **options), attempt, moment) for attempt in group] for group in groups
    ]


def _of_models(
    name: str, function: Callable[..., Any], groups: Groups, moment: Moment, options: Mapping[str, Any]
) -> list[list[Score]]:
    """All attempts at once, so that every rank asks the models as often, in full batches."""
    attempts = [attempt for group in groups for attempt in group]
    scores = iter(_checked(name, attempts, function(attempts, moment.ask, **options)))
    return [[next(scores) for _ in group] for group in groups]


def _of_group(
    name: str, function: Callable[..., Any], attempts: List[Attempt], moment: Moment, options: Mapping[str, Any]
) -> list[Score]:
    try:
        with deadline((moment.time_limit or 0.0) * len(attempts)):
            found = function(attempts, moment.progress, **options)
    except Exception as error:  # whatever it is costs these answers, is counted, and shown with its cause
        return [Score(0.0, error=f"{type(error).__name__}: {error}") for _ in attempts]
    return _checked(name, attempts, found)


def _checked(name: str, attempts: List[Attempt], found: Any) -> list[Score]:
    found = list(found)
    if len(found) != len(attempts):
        raise ValueError(f"reward '{name}' gave {len(found)} scores of {len(attempts)} attempts")
    return [_as_score(value, attempt) for value, attempt in zip(found, attempts, strict=True)]


def _scored(function: Callable[[Attempt], Score | float], attempt: Attempt, moment: Moment) -> Score:
    try:
        with deadline(moment.time_limit or 0.0):
            return _as_score(function(attempt), attempt)
    except Exception as error:  # whatever it is costs this answer, is counted, and shown with its cause
        return Score(0.0, error=f"{type(error).__name__}: {error}")


def _as_score(value: Score | float, attempt: Attempt) -> Score:
    score = _plain(value if isinstance(value, Score) else Score(float(value)))
    if score.tokens and len(score.tokens) != attempt.length:
        raise ValueError(f"{len(score.tokens)} token rewards were given to an answer of {attempt.length} tokens")
    if score.error is None and not math.isfinite(score.value):
        return replace(score, error=f"the reward is {score.value}")
    return score


def _plain(score: Score) -> Score:
    """With Python's numbers in the place of numpy's, with which a checkpoint could not be read again."""
    parts = {name: float(part) for name, part in score.parts.items()}
    return replace(score, value=float(score.value), parts=parts, tokens=tuple(map(float, score.tokens)))


def _gated(score: Score, gate: Score) -> Score:
    if gate.error is not None:
        return replace(score, error=gate.error)
    return score if gate.value > 0 else replace(score, value=0.0, tokens=(), error=None)


def _added(parts: List[tuple[str, Score]]) -> Score:
    """The sum, with every part by its name; the parts of a part and what explains it are kept too."""
    errors = [score.error for _, score in parts if score.error is not None]
    named: dict[str, float] = {}
    info: dict[str, Any] = {}
    for name, score in parts:
        named |= {name: score.value, **{f"{name}/{key}": value for key, value in score.parts.items()}}
        info |= score.info
    by_part = [score.tokens for _, score in parts if score.tokens]
    tokens = tuple(sum(earned) for earned in zip(*by_part, strict=True))
    return Score(sum(score.value for _, score in parts), named, info, errors[0] if errors else None, tokens)
