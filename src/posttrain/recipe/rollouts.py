"""What a recipe says of answers that a policy draws to learn from them, and of the servers that draw answers."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from posttrain.recipe.decoding import Drawn
from posttrain.recipe.strict import Piece, Strict, refuse_unread


class Server(Strict):
    """An OpenAI-compatible server (vLLM, SGLang, `transformers serve` ...) that answers in the model's place."""

    url: str = Field(description="its address, with /v1: http://127.0.0.1:8000/v1")
    model: str = Field(description="the name that it serves the model under")
    dialect: Literal["vllm", "transformers", "openai"] | None = Field(None, description="null: found out by asking")
    api_key_variable: str | None = Field(None, description="name of the environment variable that holds the key")
    concurrency: PositiveInt | None = Field(None, description="requests at once; null: what suits the dialect")


class RolloutServer(Server):
    """A vLLM server that draws a policy's answers while the policy is trained, and is sent its weights each round."""

    sync: Literal["folder", "adapter", "none"] = Field(
        description="how weights reach it: whole models or LoRA adapters in a shared folder, or never (off-policy)"
    )
    folder: str | None = Field(None, description="where weights are written for it; default: in the run folder")
    seen_as: str | None = Field(None, description="the same folder as the server names it, where that differs")
    probe_tolerance: float = Field(
        0.1, gt=0, description="nats a token between its log-probs and the trainer's that its precision explains"
    )
    timeout: float = Field(600.0, gt=0, description="seconds for one request")


class RolloutSource(Drawn):
    """Answers that the model draws itself, scored, as what it learns from. 'data' gives the questions."""

    prompts: PositiveInt = Field(8, description="questions of a round, over all ranks")
    n: PositiveInt = Field(8, description="answers to each question")
    temperature: Annotated[float, Field(gt=0)] | dict[str, Any] = Field(
        1.0, description="a number, a schedule, or {name: entropy, target: 0.3}, which measures what gives that entropy"
    )
    reward: str | dict[str, Any] | list[str | dict[str, Any]] = Field(
        "task", description="a reward, or parts to add up; each takes weight, gate, since and until"
    )
    begin: Piece | None = Field(
        None,
        description="with how much of its demonstration an answer begins: 'prefix', 'hint', 'branch', 'demonstration', "
        "'steps', {name: share, ...}",
    )
    demonstrate: float | None = Field(
        None,
        ge=0,
        le=1,
        description="a question with at most this share of right answers is learned from its demonstration instead",
    )
    collect: PositiveInt | None = Field(
        None, description="once so many such demonstrations are collected they make a step of their own; null: at once"
    )
    advantage: Piece = Field("group", description="how rewards become advantages")
    mini_batches: PositiveInt = Field(1, description="optimiser steps that a round is cut into")
    epochs: PositiveInt = Field(1, description="passes over a round")
    refills: int = Field(
        0, ge=0, description="how often questions whose answers are all worth the same are replaced; 0 keeps them"
    )
    truncated: Literal["keep", "mask"] = Field("keep", description="learn from answers that ran out of tokens, or not")
    learned: PositiveInt | None = Field(None, description="learn from the first so many of n answers; all are scored")
    choose: Literal["all", "right", "best", "pairs"] = Field(
        "all", description="which answers to a question are learned from: pairs are its best and its worst"
    )
    lag: int = Field(0, ge=0, description="rounds between drawing answers and learning from them: off-policy")
    replay: int = Field(
        0, ge=0, description="groups that are kept, to be learned from again in place of some worth the same"
    )
    normalise: bool = Field(False, description="rewards less the mean of all so far, over their spread")
    clip: float | None = Field(None, gt=0, description="rewards are kept within ± this, after 'normalise'")
    kl_in_reward: float = Field(0.0, ge=0, description="each token's reward is this times -(log π_old - log π_0)")
    kl_target: float | None = Field(None, gt=0, description="nats a token; kl_in_reward is moved to keep the KL there")
    kl_horizon: PositiveInt = Field(10_000, description="answers over which kl_in_reward is moved")
    turns: PositiveInt = Field(1, description="the model's turns in a conversation with the task's environment")
    time_limit: float | None = Field(60.0, gt=0, description="seconds that a reward may take for one answer")
    max_errors: float = Field(0.1, ge=0, lt=1, description="share of answers without a reward that stops the run")
    patience: PositiveInt = Field(50, description="rounds in a row without anything to learn from that stop the run")
    server: RolloutServer | None = Field(None, description="a server that draws the answers and is sent the weights")

    @model_validator(mode="after")
    def _parts_fit(self) -> "RolloutSource":
        if self.learned is not None and self.learned > self.n:
            raise ValueError(f"learned {self.learned} is more than the {self.n} answers (n) to a question")
        if self.demonstrate is None:
            refuse_unread(self, ("collect",), "without demonstrate")
        if self.kl_in_reward == 0:
            refuse_unread(self, ("kl_target",), "without kl_in_reward")
        if self.kl_target is None:
            refuse_unread(self, ("kl_horizon",), "without kl_target")
        if self.choose == "pairs" and self.n < 2:
            raise ValueError(f"choose: pairs takes two answers to a question, and n is {self.n}")
        if self.mini_batches > self.prompts:
            raise ValueError(f"mini_batches {self.mini_batches} is more than the {self.prompts} prompts of a round")
        if self.begin is not None and self.turns > 1:
            raise ValueError("answers that 'begin' with a demonstration have one turn: leave 'turns' or 'begin' out")
        if self.server is not None:
            refuse_unread(self, ("slots",), "on a server, which decides that itself")
        return self

    @model_validator(mode="after")
    def _own_tokens(self) -> "RolloutSource":
        if self.thinking is not None and (self.thinking.budget is not None or self.thinking.continuations):
            raise ValueError("forced tokens are none of the policy's own to learn from: of 'thinking' take temperature")
        return self


class DemonstrationsBeside(Strict):
    """Demonstrations that a stage with rollouts learns from in the same steps."""

    data: str = Field(description="name of a data set with responses")
    batch_size: PositiveInt = Field(32, description="samples of a step, over all ranks")
