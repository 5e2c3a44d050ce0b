"""The training loop. It knows sources, objectives and optimisers, and no method's name."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.errors import UserError
from posttrain.objectives import Objective
from posttrain.policy import Policy
from posttrain.sources import Source
from posttrain.training.checkpoints import CheckpointStore
from posttrain.training.faults import check_finite
from posttrain.training.journal import Journal
from posttrain.training.ranks import Ranks
from posttrain.training.step import Position, StepResult, Stopwatch, accumulate_gradients

Evaluate = Callable[[int], dict[str, float]]
"""Evaluation after some steps: metric name -> value. It writes its answers itself."""


class Interrupted(Exception):
    """The user asked to stop; everything is saved and the same command goes on."""


@dataclass(frozen=True)
class LoopSettings:
    """How long, how often, how careful. `token_budget`: tokens of a micro-batch, padding included."""

    stage: str
    steps: int
    steps_per_epoch: float
    token_budget: int
    seed: int
    gradient_clip: float | None = 1.0
    log_every: int = 1
    checkpoint_every: int | None = None
    evaluate_every: int | None = None
    early_stopping: "EarlyStopping | None" = None


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when `metric` has not improved for `patience` evaluations, and keep the best weights."""

    metric: str
    patience: int = 3
    larger_is_better: bool = True


@dataclass
class Progress:
    """What the loop keeps from step to step, and a checkpoint from run to run."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    input_tokens: int = 0
    best: float | None = None
    best_step: int = 0
    since_best: int = 0
    last: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Loop:
    """The pieces of one training stage. `train` runs them."""

    policy: Policy
    source: Source
    objective: Objective
    optimiser: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    settings: LoopSettings
    journal: Journal
    ranks: Ranks
    checkpoints: CheckpointStore | None = None
    best: CheckpointStore | None = None
    evaluate: Evaluate | None = None
    should_stop: Callable[[], bool] = lambda: False
    show: Callable[[int, dict[str, float]], None] = lambda step, row: None
    faults: Path = Path("faults")


def train(loop: Loop) -> Progress:
    """Run the stage to its end, from its newest checkpoint where there is one.

    Raises `Interrupted` after saving when `should_stop` says so, `NonFinite` when a loss or gradient is not finite, and
    `UserError` for a step without a trained token.
    """
    progress = _restore(loop)
    settings = loop.settings
    if progress.step == 0 and loop.evaluate and settings.evaluate_every:
        _evaluate(loop, progress)
    started = time.perf_counter() - progress.seconds
    while progress.step < settings.steps and not _is_exhausted(loop, progress):
        row = _one_step(loop, progress)
        progress.seconds = time.perf_counter() - started
        _log(loop, progress, row)
        last = progress.step == settings.steps
        if loop.evaluate and settings.evaluate_every and (progress.step % settings.evaluate_every == 0 or last):
            _evaluate(loop, progress)
        stopping = any(loop.ranks.gather(loop.should_stop()))
        due = settings.checkpoint_every and progress.step % settings.checkpoint_every == 0
        if (due or stopping) and not last:
            _save(loop, progress)
        if stopping and not last:
            raise Interrupted
    if loop.best is not None and loop.best.latest() is not None:
        _load_weights(loop.policy, loop.best.latest().weights())  # type: ignore[union-attr]
    return progress


def _one_step(loop: Loop, progress: Progress) -> dict[str, float]:
    """Forward, backward and update of one step; its row of metrics."""
    settings, watch = loop.settings, Stopwatch(loop.policy.device)
    start = time.perf_counter()
    # Dropout draws from torch's global stream: seeding it each step makes the step a function of (seed, step, rank).
    torch.manual_seed((settings.seed * 1_000_003 + progress.step) * 1_009 + loop.ranks.rank)
    with watch.lap("time/source"):
        sequences = loop.source.next(progress.step, loop.policy)
    loop.policy.model.train()
    position = Position(progress.step, settings.steps, progress.step / settings.steps_per_epoch, settings.seed)
    result = accumulate_gradients(
        loop.policy, loop.objective, sequences, settings.token_budget, position, loop.ranks, watch
    )
    with watch.lap("time/optimiser"):
        norm, rate = _update(loop, progress.step, result)
    loop.policy.model.eval()
    progress.step += 1
    progress.tokens += result.tokens
    progress.input_tokens += result.input_tokens
    spent = watch.seconds()
    elapsed = time.perf_counter() - start
    return {
        "loss": result.loss,
        **result.metrics,
        "lr": rate,
        "grad_norm": norm,
        "tokens": result.tokens,
        "input_tokens": result.input_tokens,
        "sequences": result.sequences,
        "micro_batches": result.micro_batches,
        "tokens_per_second": result.tokens / elapsed,
        **spent,
    }


def _update(loop: Loop, step: int, result: StepResult) -> tuple[float, float]:
    """Join the ranks' gradients, check, clip and step. Returns the gradient's norm before clipping and the rate."""
    parameters = [p for _, p in loop.policy.trainable_parameters()]
    loop.ranks.add_gradients(parameters)
    norm = gradient_norm(parameters)
    check_finite(loop.faults, loop.settings.stage, step, result, norm, loop.ranks)
    clip = loop.settings.gradient_clip
    if clip is not None and norm > clip:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], clip / norm)
    rate = loop.learning_rate(step)
    for group in loop.optimiser.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)
    loop.optimiser.step()
    loop.optimiser.zero_grad(set_to_none=True)
    return norm, rate


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    """L2 norm of all gradients together."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0


def _log(loop: Loop, progress: Progress, row: dict[str, float]) -> None:
    progress.last = row
    loop.show(progress.step, row)
    if progress.step % loop.settings.log_every == 0 or progress.step == loop.settings.steps:
        head = {"stage": loop.settings.stage, "step": progress.step, "kind": "train"}
        loop.journal.metrics({**head, "seconds": round(progress.seconds, 4), **row})


def _evaluate(loop: Loop, progress: Progress) -> None:
    assert loop.evaluate is not None
    loop.policy.model.eval()
    metrics = loop.evaluate(progress.step)
    head = {"stage": loop.settings.stage, "step": progress.step, "kind": "evaluation"}
    loop.journal.metrics({**head, "seconds": round(progress.seconds, 4), **metrics})
    rule = loop.settings.early_stopping
    if rule is None:
        return
    if rule.metric not in metrics:
        raise UserError(
            f"early_stopping.metric '{rule.metric}' is not measured; measured: {', '.join(sorted(metrics))}"
        )
    value = metrics[rule.metric] * (1 if rule.larger_is_better else -1)
    if progress.best is None or value > progress.best:
        progress.best, progress.best_step, progress.since_best = value, progress.step, 0
        if loop.best is not None and loop.ranks.is_main:
            loop.best.save(progress.step, _trainable(loop.policy), {}, {})
    else:
        progress.since_best += 1


def _is_exhausted(loop: Loop, progress: Progress) -> bool:
    rule = loop.settings.early_stopping
    return rule is not None and progress.since_best >= rule.patience


def _trainable(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().cpu() for name, p in policy.trainable_parameters()}


def _save(loop: Loop, progress: Progress) -> None:
    if loop.checkpoints is None:
        return
    state: dict[str, Any] = {
        "progress": vars(progress).copy(),
        "source": loop.source.state(),
        "journal": loop.journal.position(),
    }
    if loop.ranks.is_main:
        loop.checkpoints.save(progress.step, _trainable(loop.policy), loop.optimiser.state_dict(), state)
    loop.ranks.wait()


def _restore(loop: Loop) -> Progress:
    checkpoint = loop.checkpoints.latest() if loop.checkpoints else None
    if checkpoint is None:
        return Progress()
    _load_weights(loop.policy, checkpoint.weights())
    loop.optimiser.load_state_dict(checkpoint.optimiser())
    loop.source.restore(checkpoint.state["source"])
    loop.journal.rewind(checkpoint.state["journal"])
    loop.ranks.wait()
    return Progress(**checkpoint.state["progress"])


@torch.no_grad()
def _load_weights(policy: Policy, weights: dict[str, Tensor]) -> None:
    for name, parameter in policy.trainable_parameters():
        parameter.copy_(weights[name])
