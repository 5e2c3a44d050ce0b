"""docs/unified-view.md: where the data of each recipe come from, and what each loss makes of a token's log-prob.

All losses push log π(token) by a weight: the update is E[Σ_t w_t ∇ log π(y_t)] over the data (sheet of paper 52). The
weights are those of the registered losses, by differentiating them: a vocabulary of two tokens, of which the first is
the trained one, so that every loss is a function of its probability alone.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.data import Origin, Sequence
from posttrain.data.batch import Batch, collate
from posttrain.data.scores import Chunk, Need, TokenScores
from posttrain.objectives import build_objective
from posttrain.objectives.objective import Term
from posttrain.policy.head import chunk_scores
from posttrain.recipe import Curate, Generate, Recipe, Train, read_recipe, shipped_recipes
from posttrain.recipe.strict import name_of

GRID = (0.01, 0.1, 0.5, 0.9)
"""Probabilities of the trained token."""
RATIOS, OLD = (0.5, 1.0, 1.1, 1.25, 4.0), 0.2
"""Of the policy to the one that drew the token, and what that one gave it."""
MARGINS = (-10.0, 0.0, 20.0)
"""How much likelier the chosen answer of a pair has become than the rejected one, in nats."""
REFERENCE = 0.5

DEMONSTRATED: Mapping[str, Any] = {
    **{name: name for name in ("nll", "dft", "chord_phi", "focal", "gem", "sft_kl", "asft", "sft_entropy")},
    **{name: name for name in ("entropy_nll", "poft", "glow", "unlikelihood", "distillation")},
    "iw_sft, ratio: token": {"name": "iw_sft", "ratio": "token"},
    "otr, estimator: exact": {"name": "otr", "estimator": "exact"},
    **{name: name for name in ("luffy", "srft", "grpo")},
}
"""Row -> loss. The last three read an advantage, which is 1."""
DRAWN: Mapping[str, Any] = {name: name for name in ("reinforce", "ppo", "grpo", "gspo", "cispo", "luffy", "srft")} | {
    "grpo, clip_high: 0.28": {"name": "grpo", "clip_high": 0.28},
    "grpo, dual_clip: 3": {"name": "grpo", "dual_clip": 3.0},
}
COMPARED = ("dpo", "robust_dpo", "ipo", "slic", "simpo", "orpo", "cpo")
ELSEWHERE: Mapping[str, str] = {
    "kl": "a hold to the reference, beside another term: its weight does not hang on the reward",
    "entropy_bonus": "a bonus, beside another term: it pushes every token towards the others",
    "clip_cov": "`ppo`, but for a few tokens whose log-prob and advantage vary together, which weigh 0",
    "kl_cov": "`reinforce` with the ratio, but for a few such tokens, which are held to where they were",
    "kto": "single answers, good or bad, against the mean of mismatched ones: β σ'(β (h - z)) each",
    "ift": "`nll` behind prompts into which the model's own predictions are mixed",
    "lfu": "`nll`, and hidden states that stay where they are",
    "bradley_terry": "a reward model, which has no log-probs",
    "outcome": "a verifier of answers, which has no log-probs",
    "value": "a critic, which has no log-probs",
}


@dataclass(frozen=True)
class TwoTokens:
    """A policy over two tokens, `logits[N, 2]`, and its reference."""

    logits: Tensor
    reference: Tensor

    def scores(self, batch: Batch, needs: tuple[Need, ...] = ()) -> TokenScores:
        """Scores of the batch's targets."""
        chunk = Chunk(self.logits, batch.tokens, batch.key, self.reference, batch.step.seed)
        found = chunk_scores(chunk, needs)
        return TokenScores(found.pop("logprobs"), found)


def weights(spec: Any, sequences: list[Sequence], p: list[float], reference: list[float]) -> list[float]:
    """-∂ℓ / ∂log p of each sequence's one target, of which the policy thinks p, before any reduction."""
    (term,) = build_objective(spec).terms
    batch = collate(sequences)
    logits = _logits(p).requires_grad_()
    found = term.function(TwoTokens(logits, _logits(reference)).scores(batch, term.needs), batch)
    loss = found[0] if isinstance(found, tuple) else found
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return [float(-g / (1 - q)) for g, q in zip(gradient[:, 0], p, strict=True)]


def one_token(advantage: float = 1.0, old: float | None = None, chosen: float = 1.0, **more: float) -> Sequence:
    """A prompt token, and the target: drawn with probability `old`, or demonstrated (None)."""
    columns = {"advantage": np.array([0, advantage], np.float32)}
    if old is not None:
        columns["old_logprobs"] = np.array([0, math.log(old)], np.float32)
    origin = Origin.DEMONSTRATION if old is None else Origin.ROLLOUT
    return Sequence(
        tokens=np.array([1, 0], np.int32),
        target=np.array([False, True]),
        origin=np.array([Origin.PROMPT, origin], np.uint8),
        sample_id=f"answer {chosen:g}",
        group="question",
        columns=columns,
        scalars={"chosen": chosen, "negative": 0.0, "reference_score": math.log(REFERENCE), **more},
    )


def of_demonstrations(spec: Any) -> list[float]:
    """Weights at the probabilities of `GRID`; of an answer with advantage 1, where the loss reads that."""
    return [weights(spec, [one_token()], [p], [REFERENCE])[0] for p in GRID]


def of_own_answers(spec: Any, advantage: float) -> list[float]:
    """Weights at the ratios of `RATIOS`."""
    drawn = [(OLD * ratio, one_token(advantage, old=OLD)) for ratio in RATIOS]
    return [weights(spec, [sequence], [p], [REFERENCE])[0] for p, sequence in drawn]


def of_pairs(spec: Any, margin: float) -> tuple[float, float]:
    """Weights of the chosen and of the rejected answer, `margin` nats apart from where the reference has them."""
    chosen, rejected = math.exp(-1.0 + min(0.0, margin)), math.exp(-1.0 - max(0.0, margin))
    pair = [one_token(chosen=1.0), one_token(chosen=0.0)]
    found = weights(spec, pair, [chosen, rejected], [math.exp(-1.0)] * 2)
    return found[0], found[1]


def _logits(p: list[float]) -> Tensor:
    given = torch.tensor(p, dtype=torch.float64)
    return torch.stack([given.log(), (-given).log1p()], -1)


def page() -> str:
    """docs/unified-view.md but for its head."""
    demonstrated = ([f"`{name}`", *_numbers(of_demonstrations(spec))] for name, spec in DEMONSTRATED.items())
    drawn = (
        [f"`{name}`", *_numbers(of_own_answers(spec, 1.0)), *_numbers(of_own_answers(spec, -1.0))]
        for name, spec in DRAWN.items()
    )
    signs = [f"A = {sign}1, r = {ratio:g}" for sign in ("", "-") for ratio in RATIOS]
    pairs = ([f"`{name}`", *(" / ".join(_numbers(of_pairs(name, m))) for m in MARGINS)] for name in COMPARED)
    elsewhere = ([f"`{name}`", why] for name, why in ELSEWHERE.items())
    parts = [
        TEXT["head"],
        TEXT["demonstrated"].format(reference=REFERENCE),
        _table(["loss", *(f"p = {p:g}" for p in GRID)], demonstrated),
        TEXT["drawn"].format(old=OLD),
        _table(["loss", *signs], drawn),
        TEXT["pairs"],
        _table(["loss", *(f"D = {m:g}" for m in MARGINS)], pairs),
        _table(["others", "what it is"], elsewhere),
        TEXT["recipes"],
        _table(["recipe", "data", "loss"], recipe_rows()),
    ]
    return "\n\n".join(parts) + "\n"


TEXT = {
    "head": """# One view of fine-tuning and reinforcement

Every method here moves log-probs of tokens: the direction of an update is E[Σ_t w_t ∇ log π(y_t)]. Methods differ in
where y comes from, and in w, which is not differentiated. The tables have w as the registered losses have it now: they
are differentiated with respect to the log-prob of a token of a vocabulary of two, before any mean over tokens. The view
is that of the survey of [paper 52](methods/52-sft-vs-rl-survey.md), whose page says what holds between the methods.""",
    "demonstrated": """## On demonstrated tokens

w at the policy's probability p of the token. A reference, or teacher, gives it {reference:g}; the other token has the
rest. The last three read the answer's advantage, which is 1: demonstrations among a policy's own answers (`grpo`: the
given part of `prefix-rft`, at the first update). `entropy_nll` goes by the entropy of the whole answer, `poft` by how
likely that is; `glow` has 1 in the first pass.""",
    "drawn": """## On tokens that the policy drew

w at the ratio r = π / π_old, where π_old gave the token {old:g}. In the first update r is 1.""",
    "pairs": """## On pairs, and others

w of the chosen / of the rejected answer, where the first has become likelier than the second by D nats more than the
reference has it. The answers have one token each; of a sum over several tokens all have this weight.""",
    "recipes": """## Where the data come from

Of each recipe the stage `train`, or its last one that trains. In brackets: the origins of the tokens that a term
counts, where it does not count all, and what its mean is over.""",
}


def recipe_rows() -> Iterable[list[str]]:
    """Of every shipped recipe that trains: its name, its data, its losses."""
    for name in shipped_recipes():
        recipe = read_recipe(name)
        trained = {key: stage for key, stage in recipe.stages.items() if isinstance(stage, Train)}
        if trained:
            stage = trained.get("train") or list(trained.values())[-1]
            yield [f"`{name}`", data_of(recipe, stage), loss_of(stage)]


def data_of(recipe: Recipe, stage: Train) -> str:
    """Whose tokens a stage learns from."""
    rules = stage.rollouts
    if rules is None:
        return origin_of(recipe, stage.data)
    parts = ["own answers" if rules.choose == "all" else f"own answers (`choose: {rules.choose}`)"]
    if rules.begin is not None:
        parts.append(f"that begin by `{name_of(rules.begin)}`")
    if rules.demonstrate is not None:
        parts.append(f"or the demonstration, where at most {rules.demonstrate:g} of them are right")
    if stage.demonstrations is not None:
        parts.append("and demonstrations")
    return " ".join(parts)


def origin_of(recipe: Recipe, data: str) -> str:
    """What a data set, or the stage that makes it, holds."""
    stage = recipe.stages.get(data)
    if isinstance(stage, Generate):
        return f"{'' if stage.keep == 'all' else stage.keep + ' '}answers of `{stage.model}`"
    if isinstance(stage, Curate):
        return f"{origin_of(recipe, stage.data)}, {', '.join(f'`{name_of(step)}`' for step in stage.steps)}"
    mixed = recipe.data[data].mix if data in recipe.data else None
    parts = [origin_of(recipe, part.stage) for part in mixed or [] if part.stage is not None]
    return "; ".join(dict.fromkeys(parts)) or "demonstrations"


def loss_of(stage: Train) -> str:
    """Its terms with their weights, and how rewards become advantages."""
    given = stage.objective if isinstance(stage.objective, list) else [stage.objective]
    built = build_objective(stage.objective).terms
    parts = [" + ".join(_term(spec, term) for spec, term in zip(given, built, strict=True))]
    if stage.imitation is not None:
        parts.append(f"demonstrations weigh {_said(stage.imitation)}, the others the rest")
    if stage.rollouts is not None and any("advantage" in term.columns for term in built):
        parts.append(f"advantage {_said(stage.rollouts.advantage)}")
    return "; ".join(parts)


def _term(spec: str | dict[str, Any], term: Term) -> str:
    weight = spec.get("weight", 1) if isinstance(spec, dict) else 1
    origins = sorted(origin.name.lower() for origin in term.origins or ())
    over = term.reduction.kind if term.reduction.length is None else f"constant {term.reduction.length:g}"
    text = f"`{term.name}` ({'; '.join([*origins, over])})"
    return text if weight == 1 else f"{_said(weight)} · {text}"


def _said(piece: Any) -> str:
    if not isinstance(piece, Mapping):
        return f"`{piece}`" if isinstance(piece, str) else f"{piece:g}"
    options = ", ".join(f"{key}: {value}" for key, value in piece.items() if key != "name")
    return f"`{piece['name']}`" + (f" ({options})" if options else "")


def _numbers(values: Iterable[float]) -> list[str]:
    return [f"{value + 0.0:.3g}" if abs(value) > 1e-9 else "0" for value in values]


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
