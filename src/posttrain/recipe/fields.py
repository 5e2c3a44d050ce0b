"""What a user may write in a recipe. YAML keys are exactly these field names; anything else is refused."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from posttrain.recipe.decoding import Decoding
from posttrain.recipe.plans import Plans
from posttrain.recipe.rollouts import DemonstrationsBeside, RolloutSource, Server
from posttrain.recipe.strict import Piece, Strict, refuse_unread


class Model(Strict):
    """A model to start from. A plain string in YAML is its `path`."""

    path: str = Field(description="'tiny' (shipped), a save_pretrained folder, a PEFT adapter folder, or a hub name")
    weights: Literal["pretrained", "random"] = Field("pretrained", description="'random' takes the architecture only")
    dtype: Literal["float32", "bfloat16", "mixed"] = Field("float32", description="'mixed': bf16 autocast over float32")
    attention: str = Field("sdpa", description="transformers' attn_implementation")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    compile: bool = Field(False, description="torch.compile the model body")


class Data(Strict):
    """A data set. A plain string in YAML is its `path`. Exactly one of `path`, `task`, `stage` and `mix` is given."""

    path: str | None = Field(None, description="JSONL, JSON, Parquet, CSV, a datasets folder, or a hub name")
    split: str | None = Field(None, description="split of a hub data set or datasets folder")
    shape: str = Field(
        "auto", description="auto, messages, completion, preference, alpaca, sharegpt, question_answer, sample"
    )
    columns: dict[str, str] = Field({}, description="renames columns: theirs -> ours")
    scalars: list[str] = Field([], description="columns of numbers that a loss reads: reference_score, negative ...")
    task: Piece | None = Field(None, description="a task by name: its problems and demonstrations")
    count: PositiveInt | None = Field(None, description="how many samples (of a task); at most how many (of a file)")
    seed: int = Field(0, ge=0, description="which problems of a task")
    difficulty: Literal["in", "harder"] = "in"
    style: str | None = Field(None, description="how a task's demonstrations are written; default: its first style")
    stage: str | None = Field(None, description="the data that an earlier stage of this recipe wrote")
    mix: list["DataField"] | None = Field(None, description="several data sets, one after the other")
    repeat: PositiveInt = Field(1, description="how often each sample comes in one pass: oversampling in a mix")
    verify: Literal["number", "exact", "thought"] = Field(
        "number", description="how answers to a file's questions are compared; thought: the number before '</think>'"
    )
    max_refused: float = Field(0.05, ge=0, le=1, description="share of rows that may be refused before the run is")

    @model_validator(mode="after")
    def _one_origin(self) -> "Data":
        given = [name for name in ("path", "task", "stage", "mix") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, task, stage, mix; found {', '.join(given) or 'none'}")
        if self.task is not None and self.count is None:
            raise ValueError("a task's data need 'count': how many problems")
        kind = given[0]
        unread = [key for key in type(self).model_fields if key not in (*_ALL_DATA, *_READ_BY[kind])]
        refuse_unread(self, unread, f"on data of a '{kind}'")
        return self


_ALL_DATA = ("path", "task", "stage", "mix", "repeat", "max_refused")
_READ_BY = {
    "path": ("split", "shape", "columns", "scalars", "count", "verify"),
    "task": ("count", "seed", "difficulty", "style"),
    "stage": ("count",),
    "mix": (),
}
"""Which keys of a data set are read, by what it is made of."""


def _path_shorthand(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


DataField = Annotated[Data, BeforeValidator(_path_shorthand)]
ModelField = Annotated[Model, BeforeValidator(_path_shorthand)]


class Asked(Decoding):
    """Whom a stage asks, and how questions become prompts."""

    kind: str
    model: str = Field("base", description="'base', a name in models, or an earlier train or merge stage")
    server: Server | None = Field(None, description="answers come from there; of 'model' only the tokenizer is used")
    template: Literal["chat", "none"] = "chat"
    template_options: dict[str, Any] = Field(
        {}, description="passed to the chat template: {enable_thinking: false} ..."
    )
    forced: str = Field("", description="what every answer is made to begin with")

    @model_validator(mode="after")
    def _thinking_is_ours(self) -> "Asked":
        if self.thinking is not None and self.server is not None:
            raise ValueError("'thinking' is for models in this process, and no server takes it: leave one out")
        if self.thinking is not None and self.thinking.stop in self.forced:
            raise ValueError("'thinking' has no effect: 'forced' ends it already")
        return self


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
    larger_is_better: bool | None = Field(None, description="default: yes, except for losses")


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
    log_every: PositiveInt = 1
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


class Evaluate(Asked):
    """Draw answers and score them; of data without right answers, measure how likely the given responses are; of a
    reward model and preference pairs, how often it likes the chosen answer best."""

    kind: Literal["evaluate"] = "evaluate"
    data: str = Field("test", description="name of a data set")
    reference: str | None = Field(
        None, description="also measure how far the answers' distribution is from this model's (kl), and its entropy"
    )
    passed_over: str | None = Field(
        None,
        description="a token that ends thinking, such as '</think>': also measure how often it was among the five "
        "likeliest while another was drawn",
    )
    rerank: str | None = Field(
        None, description="a reward model: also measure how right that answer of n is which it likes best (reranked@k)"
    )
    passes: dict[str, float] = Field(
        {},
        description="parts of the score with the value from which an answer passes, of which pass@k is reported too: "
        "{compiles: 1}",
    )
    turns: PositiveInt = Field(
        1, description="the model's turns in a dialogue with the task's environment, of which the last is scored"
    )
    drop_thinking: bool = Field(False, description="later turns do not see an earlier one up to its '</think>'")
    plans: Plans | None = Field(
        None, description="answer by way of plans: draw many, carry few out, and take the answer that these elect"
    )

    @model_validator(mode="after")
    def _plans_alone(self) -> "Evaluate":
        if self.plans is not None:
            where = "with 'plans', which give one answer by way of several"
            refuse_unread(self, ("n", "turns", "forced", "reference", "passed_over", "rerank", "thinking"), where)
        return self

    @model_validator(mode="after")
    def _model_is_here(self) -> "Evaluate":
        if self.reference is not None and self.server is not None:
            raise ValueError("'reference' compares every token's distribution, which no server gives: leave one out")
        if self.passed_over is not None and self.server is not None:
            raise ValueError("'passed_over' reads every token's distribution, which no server gives: leave one out")
        if self.rerank is not None and self.n == 1:
            raise ValueError("'rerank' chooses among several answers: set n to 2 or more")
        if self.rerank is not None and self.server is not None:
            raise ValueError("'rerank' reads the tokens of answers that were drawn here: leave it or 'server' out")
        return self

    @model_validator(mode="after")
    def _dialogues(self) -> "Evaluate":
        if self.turns == 1:
            refuse_unread(self, ("drop_thinking",), "with turns: 1")
            return self
        if self.template == "none":
            raise ValueError(
                "a dialogue needs a chat template that says where turns end: leave 'template' or 'turns' out"
            )
        for key in ("reference", "passed_over", "rerank"):
            if getattr(self, key) is not None:
                raise ValueError(f"'{key}' is measured along single turns: leave it or 'turns' out")
        return self


class Generate(Asked):
    """Draw answers, and write them as a data set: prompts with the model's own responses."""

    kind: Literal["generate"] = "generate"
    data: str = Field("train", description="name of a data set: its prompts")
    keep: Literal["all", "right", "wrong"] = Field(
        "right", description="by the verifier, which 'all' does without; one row for each kept answer"
    )
    hint: str | None = Field(
        None,
        description="behind questions without a right answer when they are asked once more, with their '{answer}'; "
        "answers that are right then are kept as if there had been none",
    )
    temperature: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _hints_tell_the_answer(self) -> "Generate":
        if self.hint is not None and "{answer}" not in self.hint:
            raise ValueError(f"hint: '{self.hint}' does not tell the answer: write {{answer}} where it should stand")
        if self.keep != "right":
            refuse_unread(self, ("hint",), "without keep: right")
        return self


class Curate(Rendered):
    """Choose, clean or reorder data. How samples become tokens matters where models score them."""

    kind: Literal["curate"] = "curate"
    data: str = Field("train", description="name of a data set")
    models: list[str] = Field([], description="models that the functions ask: stages, names in models, or 'base'")
    steps: list[Piece] = Field(description="curation functions, applied in order")
    apart_from: list[str] = Field(
        [], description="data sets whose questions are taken out before the first function, the test's for example"
    )
    apart_words: int = Field(
        0, ge=0, description="take out what shares so many successive words with them, too (9 is usual); 0 is off"
    )
    when_empty: Literal["stop", "skip"] = Field(
        "stop",
        description="nothing is left: stop the run, or skip the stages that train on it, their weights unchanged",
    )

    @model_validator(mode="after")
    def _apart_from_something(self) -> "Curate":
        if not self.apart_from:
            refuse_unread(self, ("apart_words",), "without apart_from")
        return self


class Merge(Strict):
    """Average weights, or fold an adapter into its base."""

    kind: Literal["merge"] = "merge"
    models: list[str] = Field(min_length=1, description="stages or names in models")
    weights: list[float] | None = Field(None, description="default: equal; divided by their sum")


class Continual(Strict):
    """What a sequence of stages has kept of the tasks that it learned, from the evaluations before this stage."""

    kind: Literal["continual"] = "continual"
    tasks: dict[str, str] = Field(
        min_length=1, description="data set that a task is evaluated on: the stage that learns the task, in their order"
    )
    general: list[str] = Field(
        [], description="data sets of other abilities: the accuracy at the end is compared with that at the start"
    )


Stage = Annotated[Train | Evaluate | Generate | Curate | Merge | Continual, Field(discriminator="kind")]
STAGE_KINDS: dict[str, type[Strict]] = {
    "train": Train,
    "evaluate": Evaluate,
    "generate": Generate,
    "curate": Curate,
    "merge": Merge,
    "continual": Continual,
}


class Recipe(Strict):
    """A chain of stages over named models and data sets."""

    name: str
    description: str = ""
    paper: int | None = Field(None, description="number in `posttrain methods`")
    seed: int = Field(0, ge=0, description="of data order, draws, dropout, new weights")
    out: str | None = Field(None, description="run folder; default: runs/<name>")
    resume: bool = Field(True, description="go on from what the run folder holds; false starts over")
    model: ModelField = Field(Model(path="tiny"), description="the model that stages call 'base'")
    models: dict[str, ModelField] = Field({}, description="models by the names that stages call them")
    data: dict[str, DataField] = Field({}, description="data sets by the names that stages call them")
    stages: dict[str, Stage]
    imports: list[str] = Field([], description="Python files or modules with pieces of your own: objectives, tasks ...")
    trackers: list[str] = Field([], description="tensorboard, wandb, trackio: beside metrics.jsonl")

    @property
    def folder(self) -> str:
        """The run folder."""
        return self.out or f"runs/{self.name}"
