"""What a user may write of a stage that trains."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from posttrain.recipe.decoding import Decoding
from posttrain.recipe.rollouts import DemonstrationsBeside, RolloutSource
from posttrain.recipe.strict import Piece, Strict, refuse_unread


class Rendered(Strict):
    """How samples become tokens."""

    template: Literal["chat", "none"] = Field("chat", description="'none': plain text")
    template_options: dict[str, Any] = Field(
        {}, description="passed to the chat template: {enable_thinking: false} ..."
    )
    append_eos: bool = Field(True, description="template none: the end-of-text token ends an answer, and is trained")
    loss_on: Literal["last", "all"] = Field("last", description="train the last assistant turn, or every one")
    max_length: PositiveInt | None = Field(None, description="tokens; default: what the model can read")
    overlong: Literal["drop", "truncate", "error"] = Field("drop", description="what happens to longer samples")

    @model_validator(mode="after")
    def _template_reads(self) -> "Rendered":
        if self.template == "none":
            refuse_unread(self, ("template_options",), "with template: none")
        else:
            refuse_unread(self, ("append_eos",), "with template: chat, which ends its turns itself")
        return self


class Watch(Decoding):
    """Evaluation while training: held-out loss, and generated answers scored like everywhere else."""

    data: str = Field(description="name of a data set")
    every: PositiveInt = Field(description="steps between evaluations; one comes before the first step, one at the end")
    count: PositiveInt = Field(100, description="how many of its problems")
    generate: bool = Field(True, description="also draw and score answers (else only the held-out loss)")


class EarlyStop(Strict):
    """Stop when a watched metric no longer improves; the best weights are kept."""

    metric: str = "accuracy"
    patience: PositiveInt = Field(3, description="evaluations without improvement before the stop")
    larger_is_better: bool | None = Field(None, description="default: yes, except for losses, `truncated` and `errors`")


Beta = Annotated[float, Field(ge=0, lt=1)]


class Train(Rendered):
    """Move a model's weights."""

    kind: Literal["train"] = "train"
    init_from: str = Field("base", description="weights to start from: 'base', a name in models, or an earlier stage")
    data: str = Field("train", description="name of a data set")
    objective: str | dict[str, Any] | list[str | dict[str, Any]] = Field(
        "nll", description="a loss, or terms to add up"
    )
    rollouts: RolloutSource | None = Field(
        None, description="learn from the model's own answers to the data's questions, not from the data's responses"
    )
    demonstrations: DemonstrationsBeside | None = Field(
        None, description="with rollouts: also learn from these in every step; terms tell them apart by their 'origins'"
    )
    imitation: Any = Field(
        None,
        description="with demonstrations beside rollouts: what the terms on demonstrations weigh, from 0 to 1 or a "
        "schedule; those on own answers weigh the rest, and what weighs nothing is not drawn",
    )
    transforms: list[Piece] = Field(
        [], description="what happens to a step's samples before the loss, in order, anew at every visit"
    )
    reference: str | None = Field(
        None, description="model to compare with; default: the weights this stage starts from"
    )
    cache_reference: bool = Field(
        False, description="score the data with the reference once, and hold no second model (losses of log-probs)"
    )
    critic: str | None = Field(
        None,
        description="what says the values that advantage 'gae' reads: 'head' on the model's own states, or the name of "
        "a model, of which a copy learns them beside it",
    )
    critic_lr_factor: float = Field(1.0, gt=0, description="the critic's learning rate / lr")
    adapter: Piece | None = Field(None, description="None moves all parameters; 'lora' ...")
    epochs: float = Field(1.0, gt=0)
    steps: PositiveInt | None = Field(None, description="optimiser steps; overrules epochs")
    batch_size: PositiveInt = Field(32, description="samples (a preference pair is one) of a step, over all ranks")
    micro_batch_tokens: PositiveInt | None = Field(
        None, description="tokens computed at once, padding included; null: 1,024 on a CPU, 8,192 on a GPU"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup: float = Field(0.05, ge=0, description="steps; below 1: share of the run")
    decay: float = Field(0.2, gt=0, le=1, description="wsd: share of the run that decays")
    floor: float = Field(0.0, ge=0, le=1, description="last learning rate / peak")
    optimizer: str = Field("adamw", description="adamw, adam, sgd, rmsprop, adafactor")
    weight_decay: float = Field(0.0, ge=0, description="on matrices only")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="Adam's; sgd's momentum is the first")
    gradient_clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null is off")
    log_every: PositiveInt = Field(
        1, description="steps from row to row of metrics.jsonl; what rollouts measured meanwhile is averaged"
    )
    checkpoint_every: PositiveInt | None = Field(100, description="steps; null: only when interrupted")
    sharding: Literal["auto", "none", "fsdp"] = Field(
        "auto", description="cut weights over ranks (FSDP 2); 'auto': if accelerate launch was called with --use_fsdp"
    )
    watch: Watch | None = None
    early_stopping: EarlyStop | None = None

    @model_validator(mode="after")
    def _rollouts_have_their_own_size(self) -> "Train":
        if self.rollouts is not None and self.batch_size != Train.model_fields["batch_size"].default:
            raise ValueError("batch_size has no effect on rollouts: set rollouts.prompts, n and mini_batches")
        if self.rollouts is not None and self.cache_reference:
            raise ValueError("cache_reference scores fixed data, and rollouts are drawn anew: leave it out")
        if self.demonstrations is not None and self.rollouts is None:
            raise ValueError("'demonstrations' stand beside rollouts; without, 'data' names them")
        if self.imitation is not None and self.demonstrations is None:
            raise ValueError("'imitation' weighs demonstrations against own answers: add 'demonstrations' to the stage")
        if self.critic is None:
            refuse_unread(self, ("critic_lr_factor",), "without critic")
        return self

    @model_validator(mode="after")
    def _stopping_needs_watch(self) -> "Train":
        if self.early_stopping and not self.watch:
            raise ValueError("early_stopping needs 'watch': what is measured, and how often")
        return self

    @model_validator(mode="after")
    def _schedule_and_optimiser_read(self) -> "Train":
        if self.schedule != "wsd":
            refuse_unread(self, ("decay",), f"with schedule: {self.schedule}")
        if self.schedule == "constant":
            refuse_unread(self, ("floor",), "with schedule: constant")
        if self.optimizer == "adafactor":
            refuse_unread(self, ("betas",), "with optimizer: adafactor")
        return self
