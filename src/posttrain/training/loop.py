"""The training loop. It knows sources, objectives and optimisers, and no method's name."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from posttrain.errors import UserError
from posttrain.objectives import Objective
from posttrain.policy import Policy
from posttrain.sources import Source
from posttrain.training.checkpoints import CheckpointStore
from posttrain.training.faults import check_finite
from posttrain.training.journal import Journal
from posttrain.training.ranks import Ranks
from posttrain.training.sharding import (
    load_optimiser_state,
    load_trained_weights,
    optimiser_state,
    trained_weights,
    whole,
)
from posttrain.training.step import (
    Records,
    StepResult,
    Stopwatch,
    Sums,
    accumulate_gradients,
    add_metrics,
    begin,
    means,
)

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
    """What the loop keeps from step to step, and a checkpoint from run to run.

    `imitated`: the sum over steps of the share of tokens that others wrote in what all tokens weigh. `evaluated`: the
    last step that was. `memory`: what the objective remembers of samples. `measured`: the newest value of every metric.
    `unwritten`: what the source measured since the last row of metrics was written.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    input_tokens: int = 0
    imitated: float = 0.0
    evaluated: int = -1
    best: float | None = None
    best_step: int = 0
    since_best: int = 0
    last: dict[str, float] = field(default_factory=dict)
    memory: Records = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    unwritten: Sums = field(default_factory=dict)


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
    saved = progress.step if progress else -1
    progress = progress or Progress()
    started = time.perf_counter() - progress.seconds
    while True:
        improved = _evaluate_if_due(loop, progress)
        ended = progress.step >= loop.settings.steps or _is_exhausted(loop, progress)
        stopping = any(loop.ranks.gather(loop.should_stop())) and not ended
        progress.seconds = time.perf_counter() - started
        if progress.step != saved and (stopping or improved or _is_checkpoint_due(loop, progress, ended)):
            _save(loop, progress)
            saved = progress.step
        if ended:
            break
        if stopping:
            raise Interrupted
        row = _one_step(loop, progress)
        progress.seconds = time.perf_counter() - started
        _log(loop, progress, row)
    _load_best(loop, progress)
    return progress


def _one_step(loop: Loop, progress: Progress) -> dict[str, float]:
    """Forward, backward and update of one step; its row of metrics."""
    settings, watch = loop.settings, Stopwatch(loop.policy.device)
    start = time.perf_counter()
    _seed_dropout(settings.seed, progress.step, loop.ranks.rank)
    step = begin(
        progress.step,
        settings.steps,
        progress.step / settings.steps_per_epoch,
        settings.seed,
        policy=loop.policy,
        token_budget=settings.token_budget,
        ranks=loop.ranks,
        draw=lambda: loop.source.another(step),
        memory=progress.memory,
        measured=progress.measured,
        watch=watch,
    )
    with watch.lap("time/source"):
        sequences = loop.source.next(step)
        reported = _reported(step.report, loop.ranks)
        progress.measured.update(means(reported))
        progress.unwritten = add_metrics(progress.unwritten, reported)
    loop.policy.model.train()
    result = accumulate_gradients(
        loop.policy, loop.objective, sequences, settings.token_budget, step, loop.ranks, watch
    )
    with watch.lap("time/optimiser"):
        parameters = [p for _, p in loop.policy.trainable_parameters()]
        loop.ranks.add_gradients(parameters)
        norm = gradient_norm(parameters)
        check_finite(loop.faults, settings.stage, progress.step + 1, result, norm, sequences, loop.ranks)
        rate = _update(loop, progress.step, parameters, norm)
    loop.policy.model.eval()
    measured = _counted(progress, result, norm)
    spent = watch.seconds()
    return {
        **measured,
        **means(progress.unwritten),
        "lr": rate,
        "grad_norm": norm,
        "tokens": result.tokens,
        "input_tokens": result.input_tokens,
        "sequences": result.sequences,
        "micro_batches": result.micro_batches,
        "tokens_per_second": result.tokens / (time.perf_counter() - start),
        **spent,
    }


def _counted(progress: Progress, result: StepResult, norm: float) -> dict[str, float]:
    """Add a step that was taken to the run's progress. Returns its loss and the objective's metrics."""
    progress.step += 1
    progress.tokens += result.tokens
    progress.input_tokens += result.input_tokens
    metrics = {name: value for name, value in result.metrics.items() if name != "imitated"}
    imitated = result.metrics.get("imitated", 0.0)
    progress.imitated += imitated
    for name, values in result.records.items():
        progress.memory.setdefault(name, {}).update(values)
    progress.measured.update({"loss": result.loss, **metrics, "grad_norm": norm})
    mixed = 0 < progress.imitated < progress.step
    return {"loss": result.loss, **metrics, **({"imitated": imitated} if mixed else {})}


def _reported(report: Sums, ranks: Ranks) -> Sums:
    """What a source measured, on all ranks together."""
    joined: Sums = {}
    for share in ranks.gather(report):
        joined = add_metrics(joined, share)
    return joined


def _seed_dropout(seed: int, step: int, rank: int) -> None:
    """Dropout draws from torch's global stream: seeded here, a step is a function of (seed, step, rank) alone."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


def _update(loop: Loop, step: int, parameters: list[nn.Parameter], norm: float) -> float:
    """Clip the gradient, whose norm is `norm`, and step. Returns the learning rate."""
    clip = loop.settings.gradient_clip
    if clip is not None and norm > clip:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], clip / norm)
    rate = loop.learning_rate(step)
    for group in loop.optimiser.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)
    loop.optimiser.step()
    loop.optimiser.zero_grad(set_to_none=True)
    return rate


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    """L2 norm of all gradients together, shards of all ranks included."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return float(whole(torch.nn.utils.get_total_norm(gradients))) if gradients else 0.0


def _log(loop: Loop, progress: Progress, row: dict[str, float]) -> None:
    progress.last = row
    loop.show(progress.step, row)
    if progress.step % loop.settings.log_every == 0 or progress.step == loop.settings.steps:
        head = {"stage": loop.settings.stage, "step": progress.step, "kind": "train"}
        loop.journal.metrics({**head, "seconds": round(progress.seconds, 4), **row})
        progress.unwritten = {}


def _evaluate_if_due(loop: Loop, progress: Progress) -> bool:
    """Evaluate before the first step, at every so many, and after the last. Is this the best so far?"""
    every = loop.settings.evaluate_every
    due = every and (progress.step % every == 0 or progress.step == loop.settings.steps)
    if loop.evaluate is None or not due or progress.evaluated == progress.step:
        return False
    metrics = loop.evaluate(progress.step)
    progress.evaluated = progress.step
    head = {"stage": loop.settings.stage, "step": progress.step, "kind": "evaluation"}
    loop.journal.metrics({**head, "seconds": round(progress.seconds, 4), **metrics})
    rule = loop.settings.early_stopping
    if rule is None:
        return False
    if rule.metric not in metrics:
        raise UserError(
            f"early_stopping.metric '{rule.metric}' is not measured; measured: {', '.join(sorted(metrics))}"
        )
    value = metrics[rule.metric] * (1 if rule.larger_is_better else -1)
    progress.since_best += 1
    if math.isnan(value) or (progress.best is not None and value <= progress.best):
        return False
    progress.best, progress.best_step, progress.since_best = value, progress.step, 0
    return True


def _is_exhausted(loop: Loop, progress: Progress) -> bool:
    rule = loop.settings.early_stopping
    return rule is not None and progress.since_best >= rule.patience


def _is_checkpoint_due(loop: Loop, progress: Progress, ended: bool) -> bool:
    """At every so many steps, and at the end: what comes then (saving, checking) may be cut off too."""
    every = loop.settings.checkpoint_every
    return every is not None and progress.step > 0 and (ended or progress.step % every == 0)


def _save(loop: Loop, progress: Progress) -> None:
    """Write a checkpoint; the best weights first where this step's are, so that it never refers to what is not there.

    What they replace is dropped only then.
    """
    main = loop.ranks.is_main
    sources = loop.ranks.gather(loop.source.state())
    state = {"progress": vars(progress).copy(), "journal": loop.journal.position(), "source": sources}
    weights = trained_weights(loop.policy, keep=main)
    optimiser = optimiser_state(loop.optimiser, keep=main)

    def write() -> None:
        if loop.best is not None and progress.best is not None and progress.best_step == progress.step:
            loop.best.save(progress.step, weights, {}, {})
        if loop.checkpoints is not None:
            loop.checkpoints.save(progress.step, weights, optimiser, state)
            loop.checkpoints.keep_only(progress.step)
        if loop.best is not None:
            loop.best.keep_only(progress.best_step)

    loop.ranks.on_main(write)


def _restore(loop: Loop) -> Progress | None:
    """Put everything back as the newest checkpoint has it; what the journal holds beyond it is cut off."""
    checkpoint = loop.checkpoints.latest() if loop.checkpoints else None
    if checkpoint is None:
        loop.journal.restart_stage()
        return None
    load_trained_weights(loop.policy, checkpoint.weights())
    load_optimiser_state(loop.optimiser, checkpoint.optimiser())
    state = checkpoint.state()
    loop.source.restore(state["source"])
    loop.journal.rewind(state["journal"])
    loop.ranks.wait()
    return Progress(**state["progress"])


def _load_best(loop: Loop, progress: Progress) -> None:
    if loop.best is None or progress.best is None:
        return
    best = loop.best.at(progress.best_step)
    if best is None:
        raise UserError(f"the best weights, of step {progress.best_step}, are no longer in '{loop.best.folder}'")
    load_trained_weights(loop.policy, best.weights())
