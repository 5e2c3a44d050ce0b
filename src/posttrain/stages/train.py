"""The train stage: a model, a data set and an objective become a better model."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from posttrain.adaptation import adapters
from posttrain.advantages import NEED_VALUES
from posttrain.data.rendering import Rendering, turn_end_tokens
from posttrain.data.scores import VALUES
from posttrain.errors import UserError
from posttrain.objectives import Objective
from posttrain.policy import Policy, Reference, load_tokenizer
from posttrain.policy.loading import bare_model
from posttrain.recipe import Model, Train
from posttrain.recipe.strict import name_of
from posttrain.sources import Transformed, build_transform
from posttrain.stages.answers.judging import check_reward_training, teaches_rewards
from posttrain.stages.context import Context
from posttrain.stages.encoded import rendering_of
from posttrain.stages.models import load_policy
from posttrain.stages.plan import Plan
from posttrain.stages.reference_scores import check_cacheable
from posttrain.stages.round_trip import ROWS, check_saved
from posttrain.stages.shape import Shape, check_one_vocabulary, moved_parameters
from posttrain.stages.supplies.demonstrations import DemonstrationSupply
from posttrain.stages.supplies.mixing import MixedSupply, objective_of
from posttrain.stages.supplies.rollouts import RolloutSupply
from posttrain.stages.supplies.supply import Supply
from posttrain.stages.untrained import emptied_by, leave_untrained
from posttrain.stages.watching import Watcher, check_watch, stop_rule
from posttrain.terminal import Bar
from posttrain.training.checkpoints import CheckpointStore
from posttrain.training.learning_rate import learning_rate_factor
from posttrain.training.loop import Loop, LoopSettings, Progress, train
from posttrain.training.optimisers import build_optimiser
from posttrain.training.sharding import model_state, shard

LARGE_MODEL, HIGH_RATE = 50 * 10**6, 1e-4


def plan_train(context: Context, name: str, stage: Train) -> Plan:
    """Check everything that a train stage will need, and count what it will do. Tokenises (and caches) its data."""
    objective = objective_of(stage)
    for spec in stage.transforms:
        build_transform(spec)
    if stage.adapter is not None:
        adapters.options(stage.adapter)
    if stage.reference is not None:
        context.model(stage.reference)
        if objective.needs_reference:
            check_one_vocabulary(context, stage.init_from, stage.reference)
    if stage.cache_reference:
        check_cacheable(objective)
    _check_critic(context, stage, objective)
    check_reward_training(context, stage, objective)
    build_optimiser([("check", torch.nn.Parameter(torch.zeros(1)))], stage.optimizer, lr=stage.lr)
    _check_sharding(context, stage)
    origin = context.origin(stage.init_from)
    tokenizer, shape = load_tokenizer(origin.path), Shape.of(origin)
    watched = check_watch(context, stage, tokenizer, shape)
    moved = moved_parameters(shape, stage.adapter)
    numbers: dict[str, int | float | str] = {"parameters": shape.parameters}
    if stage.adapter is not None:
        numbers["trained_parameters"] = moved
    memory: dict[str, int | float | str] = {
        "memory": _memory(context.micro_batch_tokens(stage), stage, origin, shape, objective, moved)
    }
    learned = [stage.data] if stage.demonstrations is None else [stage.data, stage.demonstrations.data]
    if writers := sorted({writer for data in learned for writer in context.pending(context.data(data))}):
        note = f"the data come from stage '{', '.join(writers)}': steps and tokens are known once it has run"
        return Plan(numbers | memory, (*watched, note))
    supply = _supply(context, name, stage, objective, tokenizer, rendering_of(stage, shape.model))
    found, notes = supply.numbers()
    return Plan(
        numbers | found | memory,
        (*notes, *_cautions(stage, origin, moved, objective), *watched, *context.ranks.notes),
    )


def _supply(
    context: Context, name: str, stage: Train, objective: Objective, tokenizer: Any, rendering: Rendering
) -> Supply:
    if stage.rollouts is None:
        return DemonstrationSupply(context, name, stage, objective, tokenizer, rendering)
    if stage.demonstrations is not None:
        return MixedSupply(context, name, stage, objective, tokenizer, rendering)
    return RolloutSupply(context, name, stage, stage.rollouts, objective, tokenizer, rendering)


def _check_critic(context: Context, stage: Train, objective: Objective) -> None:
    """A critic is there where its values are read, and learns."""
    learns = any(need == VALUES for term in objective.terms for need in term.needs)
    reads = stage.rollouts is not None and name_of(stage.rollouts.advantage) in NEED_VALUES
    if stage.critic is None and (learns or reads):
        what = "the term 'value'" if learns else "advantage 'gae'"
        raise UserError(f"{what} needs a critic: set 'critic' to 'head', or to the name of a model")
    if stage.critic is not None and not (learns and reads):
        lacking = "the term 'value' in the objective" if not learns else "rollouts with advantage 'gae'"
        raise UserError(f"a critic learns by the term 'value' and is read by advantage 'gae': add {lacking}")
    if stage.critic not in (None, "head"):
        check_one_vocabulary(context, stage.init_from, stage.critic)


def _cautions(stage: Train, model: Model, moved: int, objective: Objective) -> list[str]:
    """What seldom goes well, said before it is tried."""
    notes = []
    if (stage.reference is not None or stage.cache_reference) and not _compares(stage, objective):
        notes.append("the objective asks no reference: 'reference' and 'cache_reference' have no effect")
    if stage.adapter is None and moved > LARGE_MODEL and stage.lr > HIGH_RATE:
        notes.append(f"lr {stage.lr:g} is high for moving all of {moved:,} parameters; 1e-5 is usual, or an adapter")
    if stage.adapter is None and model.dtype == "bfloat16":
        notes.append("bfloat16 weights round small updates away; 'model.dtype: mixed' keeps float32 weights")
    return notes


def run_train(context: Context, name: str, stage: Train) -> dict[str, Any]:
    """Train, save, and compare what was saved with what was trained. Returns the stage's summary.

    Where a curate stage was allowed to leave nothing to train on, and did, the weights stay as they were.
    """
    if emptied := emptied_by(context, stage):
        return leave_untrained(context, name, stage, emptied)
    sharded = _is_sharded(context, stage)
    # Cut block by block on their way to the GPUs, so that no one of them ever holds all the weights.
    objective = objective_of(stage)
    device = torch.device("cpu") if sharded else None
    policy = load_policy(context, stage.init_from, device, reward=teaches_rewards(objective))
    rendering = rendering_of(stage, policy.model)
    supply = _supply(context, name, stage, objective, policy.tokenizer, rendering)
    compares = _compares(stage, objective)
    if compares and stage.cache_reference:
        named = stage.reference or (stage.init_from if sharded else None)
        supply.cache_reference(load_policy(context, named) if named else policy)
    elif compares:
        _set_reference(context, policy, stage)
    if stage.adapter is not None:
        policy = _adapted(policy, stage, context.recipe.seed)
        if compares and not stage.cache_reference and stage.reference is None:
            policy.keep_reference()
    if stage.critic is not None:
        policy.add_critic(None if stage.critic == "head" else load_policy(context, stage.critic).model)
    if sharded:
        if policy.reference is not None and policy.reference.model is not policy.model:
            policy.reference.model.to(context.ranks.device)
        shard(policy, context.ranks)
    steps = stage.steps or supply.steps
    with context.terminal.bar(f"training {name}", steps, "steps") as bar:
        loop = _loop(context, name, stage, policy, objective, supply, steps)
        progress = train(replace(loop, show=_shown_on(bar)))
    del loop  # Adam's moments and the reference leave room for the second model of the round trip
    policy.reference = None
    target = context.folder / "models" / name
    if not policy.is_reward:
        _end_turns(policy, rendering)
    state = model_state(policy, keep=context.ranks.is_main)
    context.ranks.on_main(lambda: policy.save(target, state_dict=state))
    with context.terminal.waiting(f"reading {name} again"):
        return _summary(progress) | supply.summary() | check_saved(policy, target, supply.probe(ROWS), context.ranks)


def _end_turns(policy: Policy, rendering: Rendering) -> None:
    """Let whoever generates with the saved folder stop where a trained turn ends."""
    settings = bare_model(policy.model).generation_config
    before = settings.eos_token_id
    ends = {*(before if isinstance(before, list) else [before]), *turn_end_tokens(policy.tokenizer, rendering)} - {None}
    settings.eos_token_id = sorted(ends)


def _loop(
    context: Context,
    name: str,
    stage: Train,
    policy: Policy,
    objective: Objective,
    supply: Supply,
    steps: int,
) -> Loop:
    fingerprint = context.stage_fingerprint(name)
    folder = context.folder / "checkpoints" / name
    return Loop(
        policy=policy,
        source=Transformed(supply.source(policy), [build_transform(spec) for spec in stage.transforms]),
        objective=objective,
        optimiser=build_optimiser(
            policy.trainable_parameters(),
            stage.optimizer,
            lr=stage.lr,
            weight_decay=stage.weight_decay,
            betas=stage.betas,
            critic_lr_factor=stage.critic_lr_factor,
        ),
        learning_rate=lambda step: stage.lr * _factor(stage, step, steps),
        settings=_settings(context, name, stage, steps, supply.steps_per_epoch),
        journal=context.journal,
        ranks=context.ranks,
        checkpoints=CheckpointStore(folder, fingerprint),
        best=CheckpointStore(folder / "best", fingerprint) if stage.early_stopping else None,
        evaluate=Watcher(context, name, stage, policy) if stage.watch else None,
        should_stop=context.should_stop,
        faults=context.folder / "faults",
    )


def _shown_on(bar: Bar) -> Callable[[int, dict[str, float]], None]:
    def show(step: int, row: dict[str, float]) -> None:
        first = f"reward {row['reward']:.3f}" if "reward" in row else f"loss {row['loss']:.4f}"
        bar.reach(step, f"{first}, {row['tokens_per_second']:,.0f} trained tokens/s")

    return show


def _is_sharded(context: Context, stage: Train) -> bool:
    wanted = stage.sharding == "fsdp" or (stage.sharding == "auto" and context.ranks.launched_with_fsdp)
    return wanted and context.ranks.count > 1


def _check_sharding(context: Context, stage: Train) -> None:
    if not _is_sharded(context, stage):
        return
    if stage.rollouts is not None:
        raise UserError("answers cannot be drawn while the weights are cut over ranks: train with sharding=none")
    if stage.watch is not None and stage.watch.generate:
        raise UserError(
            "answers cannot be drawn while the weights are cut over ranks: set watch.generate=false (the held-out loss "
            "is still measured), add an evaluate stage after this one, or train with sharding=none"
        )
    before = context.recipe.stages.get(stage.init_from)
    rebuilt = context.origin(stage.init_from).weights == "random" or getattr(before, "adapter", None) is not None
    if stage.adapter is not None and rebuilt:
        raise UserError("an adapter on weights that are in no folder cannot be saved from shards: merge them first")
    if stage.optimizer == "adafactor":
        raise UserError("optimizer 'adafactor' cannot be used with sharding: its moments do not follow the weights")


def _compares(stage: Train, objective: Objective) -> bool:
    """Does the loss, or the reward, compare with a reference model?"""
    return objective.needs_reference or (stage.rollouts is not None and stage.rollouts.kl_in_reward > 0)


def _set_reference(context: Context, policy: Policy, stage: Train) -> None:
    if stage.reference is not None:
        policy.reference = Reference.of(load_policy(context, stage.reference))
    elif stage.adapter is None:
        policy.keep_reference()


def _adapted(policy: Policy, stage: Train, seed: int) -> Policy:
    assert stage.adapter is not None
    kind, options = adapters.options(stage.adapter)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = adapters[kind](policy.model, **options)
    return policy.adapted(model)


def _factor(stage: Train, step: int, steps: int) -> float:
    return learning_rate_factor(step, steps, stage.schedule, warmup=stage.warmup, decay=stage.decay, floor=stage.floor)


def _settings(context: Context, name: str, stage: Train, steps: int, steps_per_epoch: float) -> LoopSettings:
    return LoopSettings(
        stage=name,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        token_budget=context.micro_batch_tokens(stage),
        seed=context.recipe.seed,
        gradient_clip=stage.gradient_clip,
        log_every=stage.log_every,
        checkpoint_every=stage.checkpoint_every,
        evaluate_every=stage.watch.every if stage.watch else None,
        early_stopping=stop_rule(stage),
    )


def _summary(progress: Progress) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "loss": progress.last.get("loss"),
        "trained_tokens": progress.tokens,
        "input_tokens": progress.input_tokens,
        "imitated": round(progress.imitated / max(1, progress.step), 4),
    }
    if progress.best is not None:
        summary["best_step"] = progress.best_step
    return summary


def _memory(tokens: int, stage: Train, model: Model, shape: Shape, objective: Objective, moved: int) -> str:
    """An estimate: weights, gradients, Adam's two moments, activations of `tokens` at once, a copy as reference."""
    width = 2 if model.dtype == "bfloat16" else 4
    config = shape.model.config.get_text_config()
    layers, hidden = getattr(config, "num_hidden_layers", 1), getattr(config, "hidden_size", 1)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    weights = shape.parameters * width
    moving = moved * (width + 8)
    second = _compares(stage, objective) and stage.adapter is None and not stage.cache_reference
    copy = weights if second else 0
    per_token = layers * (12 * hidden + 4 * inner) if not model.gradient_checkpointing else (layers + 12) * hidden
    activations = tokens * per_token * (2 if model.dtype != "float32" else 4)
    return f"{math.ceil((weights + moving + copy + activations) / 2**20):,} MiB"
