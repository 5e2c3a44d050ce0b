"""What a user may write of answers that are given by way of plans."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from posttrain.recipe.strict import Strict, refuse_unread


class Revise(Strict):
    """A plan is written anew when its execution comes to no answer, and that is carried out in its place."""

    rounds: PositiveInt = Field(3, description="how often at most")
    ask: str = Field(
        "{question}\n\nThis is a plan for it:\n\n{plan}\n\nCarrying it out led to no answer; it ended with:\n\n"
        "{execution}\n\nWrite a better plan.",
        description="what the model is asked",
    )
    excerpt: PositiveInt = Field(2000, description="so many characters of the execution are shown, the last ones")
    temperature: float = Field(0.3, ge=0)
    alike: float = Field(
        0.85,
        ge=0,
        le=1,
        description="one that shares more of its words with the old plan is not carried out: a plan that was drawn and "
        "not carried out yet takes its place, as long as there are any",
    )

    @model_validator(mode="after")
    def _shows_what_failed(self) -> "Revise":
        if any(part not in self.ask for part in ("{question}", "{plan}", "{execution}")):
            raise ValueError("'ask' has to show {question}, {plan} and {execution}")
        return self


class Plans(Strict):
    """Answers by way of plans: many plans are drawn of each problem, few of them carried out; those elect one answer.

    How the executions are drawn says the stage itself (greedily, by default).
    """

    k: PositiveInt = Field(16, description="plans for each problem")
    select: Literal["all", "random", "clusters", "judge", "given"] = Field(
        "all",
        description="which are carried out: all, one at random, that in the middle of each cluster, the one that the "
        "model calls the best; 'given': none is drawn, the data's responses bring a plan along",
    )
    clusters: PositiveInt = Field(3, description="of 'clusters': how many; each votes by its size")
    embedding: str = Field("tf-idf", description="of 'clusters': 'tf-idf', or a model of sentence-transformers")
    judge: str = Field(
        "{question}\n\nThese are plans for it:\n\n{plans}\n\nRepeat the best one word for word.",
        description="of 'judge': what the model is asked",
    )
    revise: Revise | None = Field(
        None, description="write a plan anew whose execution came to no answer: {rounds: 3} as in the paper"
    )
    temperature: float = Field(0.9, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: PositiveInt = Field(512, description="of a plan; one that is cut off is closed, and carried out")
    opened: str = Field("<EXPLORATION>", description="what every answer is made to begin with")
    end: str = Field("</EXPLORATION>", min_length=1, description="what ends a plan")
    execute: str = Field("<EXECUTION>", description="what an execution begins with, behind the end of its plan")

    @model_validator(mode="after")
    def _is_read(self) -> "Plans":
        if self.select == "given":
            refuse_unread(self, ("k", "temperature", "top_p", "max_new_tokens", "revise"), "with plans that are given")
        elif self.k > 1 and self.temperature == 0:
            raise ValueError(f"{self.k} plans at temperature 0 are all the same: set temperature, or k to 1")
        if self.temperature == 0:
            refuse_unread(self, ("top_p",), "at plans.temperature 0")
        if self.select != "clusters":
            refuse_unread(self, ("clusters", "embedding"), f"with select: {self.select}")
        if self.select != "judge":
            refuse_unread(self, ("judge",), f"with select: {self.select}")
        elif "{plans}" not in self.judge or "{question}" not in self.judge:
            raise ValueError("'judge' has to show both {question} and {plans}")
        return self
