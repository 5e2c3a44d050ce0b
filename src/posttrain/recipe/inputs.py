"""What a user may write of models and data sets in a recipe."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

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
