"""What a user may write in a recipe. YAML keys are exactly these field names; anything else is refused."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from posttrain.recipe.decoding import Decoding
from posttrain.recipe.inputs import DataField, Model, ModelField
from posttrain.recipe.plans import Plans
from posttrain.recipe.rollouts import Server
from posttrain.recipe.strict import Piece, Strict, refuse_unread
from posttrain.recipe.training import Rendered, Train


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
