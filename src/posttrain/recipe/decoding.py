"""What a user may write of how answers are drawn."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from posttrain.recipe.strict import Strict, refuse_unread


class Thinking(Strict):
    """When the model's thinking ends, while an answer is drawn."""

    stop: str = Field("</think>", min_length=1, description="the text of the token that ends it")
    temperature: float = Field(1.0, gt=0, description="of that token alone: above 1 earlier, below 1 later")
    reference: Literal["max", "raw"] = Field("max", description="what its logit is scaled from: the best logit, or 0")
    budget: int | None = Field(None, ge=0, description="tokens of thinking, after which the stop is forced")
    cue: str = Field("", description="forced behind a forced stop")
    continuations: int = Field(0, ge=0, description="so many stops are replaced by 'continuation'")
    continuation: str = Field("Wait", min_length=1, description="what thinking goes on with")

    @model_validator(mode="after")
    def _is_read(self) -> "Thinking":
        if not self.model_fields_set & {"temperature", "budget", "continuations"}:
            raise ValueError("'thinking' has no effect without temperature, budget or continuations: leave it out")
        if self.temperature == 1:
            refuse_unread(self, ("reference",), "at thinking.temperature 1")
        if self.budget is None:
            refuse_unread(self, ("cue",), "without thinking.budget")
        if self.continuations == 0:
            refuse_unread(self, ("continuation",), "without thinking.continuations")
        return self


class Drawn(Strict):
    """How answers are drawn, wherever a stage generates; all but the temperature."""

    n: PositiveInt = Field(1, description="answers for each problem")
    top_k: int = Field(0, ge=0, description="0 is off")
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1)
    max_new_tokens: PositiveInt = 256
    stop: list[str] = Field([], description="strings that end an answer")
    thinking: Thinking | None = Field(None, description="when thinking ends: a temperature of its end, or budgets")
    slots: PositiveInt = Field(64, description="answers drawn at the same time")

    @model_validator(mode="after")
    def _ends_have_effect(self) -> "Drawn":
        if not all(self.stop):
            raise ValueError("'stop' has an empty string, which would end every answer at once: take it out")
        thinking = self.thinking
        if thinking is not None and thinking.budget is not None and thinking.budget >= self.max_new_tokens:
            raise ValueError(
                f"thinking.budget {thinking.budget} has no effect: an answer ends at max_new_tokens "
                f"{self.max_new_tokens} anyway"
            )
        return self


class Decoding(Drawn):
    """How answers are drawn that are not learned from, at one temperature."""

    temperature: float = Field(0.0, ge=0, description="0 is greedy")

    @model_validator(mode="after")
    def _draws_differ(self) -> "Decoding":
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n is {self.n}, but at temperature 0 all draws are the same: set temperature, or n to 1")
        if self.temperature == 0:
            refuse_unread(self, ("top_k", "top_p", "min_p"), "at temperature 0")
        if self.temperature == 0 and self.thinking is not None and self.thinking.temperature != 1:
            raise ValueError("thinking.temperature has no effect at temperature 0: set temperature, or thinking.budget")
        return self
