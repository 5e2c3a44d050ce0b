"""From rewards to advantages: how much better an answer, or a token of it, was than what was to be expected.

An estimator is one function of the `Outcomes` of a step, and gives columns: arrays `[R]`, one for each answer's drawn
tokens. All have `advantage`; one with a critic adds `return`, what its values are trained towards.

    @advantage("mine")
    def mine(outcomes: Outcomes, *, scale: float = 1.0) -> Columns:
        return {"advantage": outcomes.spread(scale * outcomes.rewards)}
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from posttrain.data.step import Gather, alone
from posttrain.errors import UserError
from posttrain.registry import Registry

Array = npt.NDArray[np.float64]
Columns = Mapping[str, List[Array]]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Outcomes:
    """What `S` answers came to: this rank's share of a step, groups (the answers to one question) whole.

    - `rewards[S]`, finite; `group[S]`: any numbers, equal for the answers to one question.
    - `lengths[S]`: tokens of each answer that are weighed, at least 1: drawn ones, behind the first `begun[S]`, which
      it was given to begin with (None: none).
    - `baselines[S]`: the reward of the greedy answer to the same question, for estimators that ask for it.
    - `token_rewards`: S arrays `[R]`, beside the reward, which comes at the last token: a penalty of the distance to a
      reference, or what moves a reward to the tokens that have earned it (and adds up to 0); None: 0.
    - `values`: S arrays `[R]`, what a critic expected when each token was drawn.
    - `learned`: S arrays `[R]` bool, the tokens that are learned from by their advantage, which whitening is over: no
      hints, and no answers that are masked; None: all.
    - `gather`: all ranks' values, for estimators that compare with the whole step.
    """

    rewards: Array
    group: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    baselines: Array | None = None
    token_rewards: List[Array] | None = None
    values: List[Array] | None = None
    begun: npt.NDArray[np.int64] | None = None
    learned: List[npt.NDArray[np.bool_]] | None = None
    gather: Gather = alone

    def spread(self, values: Array) -> list[Array]:
        """One value an answer, for each of its tokens."""
        return [np.full(length, value) for value, length in zip(values, self.lengths, strict=True)]

    def group_means(self) -> Array:
        """`[S]`: the mean reward of the answer's group."""
        _, index = np.unique(self.group, return_inverse=True)
        return (np.bincount(index, self.rewards) / np.bincount(index))[index]

    def everywhere(self, values: Array) -> Array:
        """The values of all ranks, behind one another."""
        return np.concatenate(self.gather(values))


advantages: Registry[Callable[..., Columns]] = Registry("advantage")
"""Estimators by the name that a recipe gives them."""
advantage = advantages.register
NEED_BASELINE, NEED_VALUES, READ_TOKENS = ("greedy",), ("gae",), ("gae", "reinforce++")
"""Estimators that read a greedy answer's reward, a critic's values, the rewards of single tokens."""


def build_advantage(spec: str | dict[str, Any]) -> Callable[[Outcomes], Columns]:
    """The estimator of a name, or of `{name: ..., option: value}`."""
    name, options = advantages.options(spec)
    return lambda outcomes: advantages[name](outcomes, **options)


@advantage("group")
def group_normalised(
    outcomes: Outcomes,
    *,
    std: Literal["sample", "population", "batch", "none"] = "sample",
    eps: NonNegative = 1e-6,
    smallest_std: NonNegative = 0.0,
) -> Columns:
    """Against the other answers to the question: A = (R - group mean) / (std + eps).

    `std` of the group's rewards: `sample` (divisor G - 1; verl, TRL, OpenRLHF), `population` (the formula of GRPO,
    arXiv 2402.03300, as most read it); `batch`: of all rewards of the step, over ranks; `none`: A = R - mean (Dr.GRPO,
    arXiv 2503.20783). eps: 1e-6 in verl, 1e-4 in TRL. A spread below `smallest_std` counts as that much. A group of
    one, or of equal rewards, has advantage 0 (in verl a group of one has A = R).
    """
    means = outcomes.group_means()
    difference = outcomes.rewards - means
    if std == "none":
        return {"advantage": outcomes.spread(difference)}
    _, index = np.unique(outcomes.group, return_inverse=True)
    count = np.bincount(index)
    if std == "batch":
        rewards = outcomes.everywhere(outcomes.rewards)
        deviation = np.full(len(difference), rewards.std(ddof=1) if len(rewards) > 1 else 0.0)
    else:
        squares = np.bincount(index, difference**2)
        deviation = np.sqrt(squares / np.maximum(1, count - (std == "sample")))[index]
    scale = np.maximum(deviation, smallest_std) + eps
    widest = np.zeros(len(count))
    np.maximum.at(widest, index, np.abs(difference))
    flat = widest[index] <= 1e-12 * np.maximum(1.0, np.abs(means))  # rounding of the mean is no spread
    values = np.divide(difference, scale, out=np.zeros_like(difference), where=~flat & (scale > 0))
    return {"advantage": outcomes.spread(values)}


@advantage("split")
def split(outcomes: Outcomes) -> Columns:
    """Prefix-RFT's other reading: answers that begin with part of a demonstration are not compared with plain ones.

    Plain answers: A = R - their mean. Behind a prefix: A = R - mean of the answers behind it, a single one A = R. The
    prefix itself: (A - mean of the plain ones) / number of answers behind it.

    `dr_grpo_prefix` of the authors' code (arXiv 2507.01679); the paper's own reading is `{name: group, std: none}`. A
    plain answer that is alone has advantage 0; without plain answers their mean counts as 0.
    """
    rewards, size = outcomes.rewards, len(outcomes.rewards)
    begun = np.zeros(size, dtype=np.int64) if outcomes.begun is None else outcomes.begun
    plain = begun == 0
    _, group = np.unique(outcomes.group, return_inverse=True)
    plain_mean = (np.bincount(group, rewards * plain) / np.maximum(1, np.bincount(group, plain)))[group]
    _, index, count = np.unique(np.stack([group, begun]), axis=1, return_inverse=True, return_counts=True)
    alike, behind = (np.bincount(index, rewards) / count)[index], count[index]
    own = np.where(plain | (behind > 1), rewards - alike, rewards)
    given = (own - plain_mean) / behind
    rows = zip(own, given, begun, outcomes.lengths, strict=True)
    return {"advantage": [np.where(np.arange(length) < start, g, a) for a, g, start, length in rows]}


@advantage("leave_one_out")
def leave_one_out(outcomes: Outcomes) -> Columns:
    """RLOO: R minus the mean of the *other* answers to the question; G / (G - 1) times R - group mean.

    Ahmadian et al. (arXiv 2402.14740). A group of one has nothing to compare with: 0.
    """
    _, index, count = np.unique(outcomes.group, return_inverse=True, return_counts=True)
    size = count[index]
    factor = np.where(size > 1, size / np.maximum(1, size - 1), 0.0)
    return {"advantage": outcomes.spread(factor * (outcomes.rewards - outcomes.group_means()))}


@advantage("greedy")
def greedy(outcomes: Outcomes) -> Columns:
    """ReMax (arXiv 2310.10505): R minus the reward of the greedy answer to the same question."""
    if outcomes.baselines is None:
        raise UserError("advantage 'greedy' compares with greedy answers, and nothing drew them")
    return {"advantage": outcomes.spread(outcomes.rewards - outcomes.baselines)}


@advantage("reward")
def reward(outcomes: Outcomes, *, baseline: Literal["none", "batch"] = "none", whiten: bool = False) -> Columns:
    """REINFORCE: R itself, or R minus the mean of the step (`baseline: batch`), and divided by its spread (`whiten`).

    With rewards 1 and 0 and no baseline it is rejection sampling: RAFT, the likelihood of the right answers.
    """
    everywhere = outcomes.everywhere(outcomes.rewards)
    values = outcomes.rewards - (everywhere.mean() if baseline == "batch" else 0.0)
    if whiten:
        values = (outcomes.rewards - everywhere.mean()) / np.sqrt(_variance(everywhere) + 1e-8)
    return {"advantage": outcomes.spread(values)}


@advantage("reinforce++")
def reinforce_plus_plus(outcomes: Outcomes, *, group_baseline: bool = False) -> Columns:
    """REINFORCE++ (arXiv 2501.03262): the sum of rewards from each token on, whitened over the step's tokens.

    `group_baseline`: R minus the group's mean first, which is then whitened (the paper's -baseline variant).
    """
    final = outcomes.rewards - (outcomes.group_means() if group_baseline else 0.0)
    returns = [rewards[::-1].cumsum()[::-1] for rewards in _token_rewards(outcomes, final)]
    return {"advantage": whitened(returns, outcomes.gather, outcomes.learned)}


@advantage("gae")
def generalised(outcomes: Outcomes, *, gamma: Share = 1.0, lam: Share = 0.95, whiten: bool = True) -> Columns:
    """Generalised advantage estimation (arXiv 1506.02438) with a critic's values; the reward comes at the last token.

    δ_t = R_t + γ V_{t+1} - V_t, V = 0 behind the end;  A_t = Σ_l (γλ)^l δ_{t+l};  `return` = A + V, before whitening.
    """
    if outcomes.values is None:
        raise UserError("advantage 'gae' needs a critic's values: add the term 'value' to the objective")
    raw = [
        gae(rewards, values, gamma, lam)
        for rewards, values in zip(_token_rewards(outcomes, outcomes.rewards), outcomes.values, strict=True)
    ]
    returns = [a + values for a, values in zip(raw, outcomes.values, strict=True)]
    return {"advantage": whitened(raw, outcomes.gather, outcomes.learned) if whiten else raw, "return": returns}


def gae(rewards: Array, values: Array, gamma: float, lam: float) -> Array:
    """`[R]` advantages of one answer from its tokens' rewards `[R]` and values `[R]`."""
    following = np.append(values[1:], 0.0)
    delta = rewards + gamma * following - values
    found = np.zeros_like(delta)
    running = 0.0
    for t in reversed(range(len(delta))):
        running = delta[t] + gamma * lam * running
        found[t] = running
    return found


def whitened(
    columns: List[Array], gather: Gather = alone, learned: List[npt.NDArray[np.bool_]] | None = None, eps: float = 1e-8
) -> list[Array]:
    """Mean 0 and (unbiased) variance 1 over all `learned` tokens (None: all) of all ranks, as `masked_whiten` of verl
    and TRL; all 0 where they are equal or only one. The others are moved and scaled by the same numbers."""
    known = columns if learned is None else [column[mask] for column, mask in zip(columns, learned, strict=True)]
    tokens = np.concatenate(gather(np.concatenate([*known, []])))
    if not len(tokens):
        return list(columns)
    scale = np.sqrt(_variance(tokens) + eps)
    return [(column - tokens.mean()) / scale for column in columns]


def _variance(values: Array) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _token_rewards(outcomes: Outcomes, final: Array) -> list[Array]:
    """Each token's own reward, and the answer's at the last one."""
    given = outcomes.token_rewards or [np.zeros(length) for length in outcomes.lengths]
    rewards = [np.array(tokens, dtype=np.float64) for tokens in given]
    for tokens, value in zip(rewards, final, strict=True):
        tokens[-1] += value
    return rewards
