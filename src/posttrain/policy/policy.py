"""`Policy`: a model and its tokenizer, as the rest of the house sees them."""

import contextlib
import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial
from torch.func import functional_call

from posttrain.data.batch import Batch, Layout, Rows
from posttrain.data.scores import REWARDS, VALUES, Need, TokenScores
from posttrain.errors import UserError
from posttrain.policy.critic import Critic
from posttrain.policy.head import Head, token_scores
from posttrain.policy.loading import (
    ModelOptions,
    bare_model,
    context_length,
    evaluating,
    find_head,
    is_reward_model,
    load_model,
    load_tokenizer,
    probe_tokens,
)
from posttrain.policy.prefixes import reads_prefixes
from posttrain.policy.states import states_at_targets


class Scorer(nn.Module):
    """Forward = per-token scores. A module of its own, so that wrappers with hooks on `forward` (FSDP) see the body
    and the head as one call."""

    def __init__(self, model: nn.Module, head: Head | None) -> None:
        super().__init__()
        self.model: Any = model
        self.head = head
        self.critic: Critic | None = None

    def forward(
        self,
        batch: Batch,
        needs: tuple[Need, ...],
        reference: "Reference | None",
        embeddings: Tensor | None,
        hidden: Tensor | None = None,
        recompute: bool = True,
    ) -> dict[str, Tensor]:
        """Scores of the batch's target tokens by name, `logprobs` among them; see `Policy.scores`.

        A plain dictionary, because such wrappers look for tensors in what comes out.
        """
        if hidden is None:
            hidden = states_at_targets(self.model, batch, embeddings)
        if self.head is None:
            return _rewards(self.model, hidden, needs)
        logits = None
        if reference is not None and any(need.reference for need in needs):
            with torch.no_grad():
                logits = reference.logits(batch)
        if REWARDS in needs:
            raise UserError("this model has no reward head: name one that was trained with bradley_terry or outcome")
        of_logits = tuple(need for need in needs if need.function is not None)
        scores = token_scores(hidden, self.head, batch, of_logits, logits, recompute=recompute)
        found = {"logprobs": scores.logprobs, **scores.extra}
        if VALUES in needs:
            if self.critic is None:
                raise ValueError("the objective asks for values, but the policy has no critic")
            found["values"] = self.critic(batch, hidden)
        return found


def _rewards(model: Any, hidden: Tensor, needs: tuple[Need, ...]) -> dict[str, Tensor]:
    """What a reward model says: `rewards[N]`. It has no next token, so that log-probs are 0."""
    if other := [need.name for need in needs if need != REWARDS]:
        raise UserError(f"a reward model gives one number, and no {', '.join(other)}: ask a language model")
    with torch.autocast(hidden.device.type, enabled=False):
        score = bare_model(model).score
        rewards: Tensor = score(hidden.to(next(score.parameters()).dtype)).squeeze(-1).float()
    return {"logprobs": torch.zeros_like(rewards), "rewards": rewards}


def _padding(tokenizer: Any) -> int | None:
    """What transformers skips to find the last token of an answer. None where that would skip the end of the answer,
    too: it then reads one answer at a time, and refuses more."""
    pad: int | None = tokenizer.pad_token_id
    return None if pad == tokenizer.eos_token_id else pad


def _words(tokenizer: Any) -> int | None:
    """How many rows of the vocabulary have a token; a head may have more, to make their number round."""
    return None if tokenizer is None else max(tokenizer.get_vocab().values()) + 1


class _LayerStates(nn.Module):
    """Forward = the states of every layer: a module, so that its weights can be replaced for one call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, rows: Rows) -> tuple[Tensor, ...]:
        body = bare_model(self.model).base_model
        read = {"input_ids": rows.input_ids, "position_ids": rows.position_ids, **rows.extras}
        states: tuple[Tensor, ...] = body(**read, use_cache=False, output_hidden_states=True).hidden_states
        return states


def _call(module: nn.Module, parameters: Mapping[str, Tensor] | None, *arguments: Any) -> Any:
    """`module(*arguments)`, where `parameters` stand in for the weights of `module.model`, which are left alone."""
    if parameters is None:
        return module(*arguments)
    return functional_call(module, {f"model.{name}": value for name, value in parameters.items()}, arguments)


class Policy:
    """A Hugging Face model and its tokenizer: `scores(batch, needs)`, `save(folder)`, and a reference."""

    def __init__(self, model: nn.Module, tokenizer: Any, *, layout: Layout = "padded", autocast: bool = False) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.layout = layout
        self.autocast = autocast
        self.base_is_saved = True
        self.is_reward = is_reward_model(model)
        with self.computing():
            self.head = None if self.is_reward else replace(find_head(model), words=_words(tokenizer))
        self.scorer: Any = Scorer(model, self.head)
        self.reference: Reference | None = None
        self._probed: dict[nn.Module, bool] = {}

    @classmethod
    def load(cls, name: str, options: ModelOptions | None = None, device: torch.device | None = None) -> "Policy":
        """The model and tokenizer of a folder, a hub name or a shipped model."""
        options = options or ModelOptions()
        model: Any = load_model(name, options, device)
        if is_reward_model(model):
            bare_model(model).config.pad_token_id = _padding(load_tokenizer(name))
        was_adapter = hasattr(model, "merge_and_unload")
        if was_adapter:  # an adapter that was trained before: further stages start from its sum
            model = model.merge_and_unload().requires_grad_(True)  # PEFT had frozen the base
        packs = options.attention.startswith("flash") or options.attention == "flex_attention"
        policy = cls(
            model,
            load_tokenizer(name),
            layout="packed" if packs else "padded",
            autocast=options.dtype == "mixed",
        )
        policy.base_is_saved = not was_adapter and options.weights == "pretrained"
        if options.compile:
            bare_model(model).base_model.compile(dynamic=True)
        return policy

    @property
    def language_head(self) -> Head:
        """The head that gives the next token. Raises `UserError` for a reward model, which has none."""
        if self.head is None:
            raise UserError("a reward model has no next token to draw or to compare: name a language model")
        return self.head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @property
    def context_length(self) -> int:
        """How many tokens the model can read."""
        return context_length(self.model)

    @property
    def reads_prefixes(self) -> bool:
        """Can the beginnings that sequences share be read once for all of them (see `policy.prefixes`), by this model,
        its reference and a critic of its own?"""
        models = [self.model]
        if self.reference is not None:
            models.append(self.reference.model)
        if self.scorer.critic is not None and self.scorer.critic.model is not None:
            models.append(self.scorer.critic.model)
        for model in models:
            if model not in self._probed:
                with self.computing():
                    self._probed[model] = reads_prefixes(model)
        return all(self._probed[model] for model in models)

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """Where the model is run, by whomever: autocast to bfloat16 for a model with `dtype: mixed`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def adapted(self, model: nn.Module) -> "Policy":
        """The same policy with an adapter on its model."""
        policy = Policy(model, self.tokenizer, layout=self.layout, autocast=self.autocast)
        policy.reference, policy.base_is_saved = self.reference, self.base_is_saved
        return policy

    def scores(
        self,
        batch: Batch,
        needs: tuple[Need, ...] = (),
        embeddings: Tensor | None = None,
        *,
        hidden: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> TokenScores:
        """Scores of the batch's target tokens, with graph where gradients are enabled.

        `reference_logprobs` (and any other quantity of the reference that carries no gradient) come from the batch's
        column of that name where it has one (cached), otherwise from `self.reference`. `embeddings[R, L, d]` replace
        the token embeddings of the batch's rows. `hidden[N, d]` are the states that predict the targets, where they
        are known already. `parameters` (name -> tensor) stand in for the policy's own in this call, and gradients flow
        to them; not with gradient checkpointing, which would compute again with the policy's own.
        """
        if batch.rows.continued is not None and (embeddings is not None or parameters is not None):
            raise ValueError(
                "rows that go on from shared prefixes are read with the model's own weights and embeddings"
            )
        fixed = [need.name for need in needs if need.reference and not need.differentiable]
        cached = {name: batch.columns[name] for name in fixed if name in batch.columns}
        asked = tuple(need for need in needs if need.name not in cached)
        with self.computing():
            scores: dict[str, Tensor] = _call(
                self.scorer, parameters, batch, asked, self.reference, embeddings, hidden, parameters is None
            )
        return TokenScores(scores.pop("logprobs"), {**scores, **cached})

    def states(self, batch: Batch, parameters: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """`[R, L, d]` of every layer, with graph: the embeddings first, the last ones after the final norm.

        `parameters`: as in `scores`.
        """
        with self.computing():
            states: tuple[Tensor, ...] = _call(_LayerStates(self.model), parameters, batch.rows)
        return states

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings `[..., d]` of ids, as `scores(..., embeddings=...)` takes them.

        Every rank must call this as often: a table that is cut over ranks is put together.
        """
        if isinstance(self.scorer, FSDPModule):
            self.scorer.reshard()  # a whole table's gradient would come when those of the pass are summed already
        table = bare_model(self.model).get_input_embeddings()
        # Each rank's gradient is of its own tokens: they are summed on the way back.
        whole = {
            name: parameter.full_tensor(grad_placements=[Partial()])
            for name, parameter in table.named_parameters()
            if isinstance(parameter, DTensor)
        }
        embedded: Tensor = functional_call(table, whole, (ids,)) if whole else table(ids)
        return embedded

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that an optimiser moves; those of a critic begin with `critic.`."""
        yield from ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        if self.scorer.critic is not None:
            yield from ((f"critic.{name}", p) for name, p in self.scorer.critic.named_parameters() if p.requires_grad)

    def add_critic(self, model: nn.Module | None = None) -> None:
        """From now on `values` can be asked for; see `Critic`."""
        self.scorer.critic = Critic(self.model, model)

    def keep_reference(self) -> None:
        """Compare with the model as it is now: adapters off where they change nothing yet, else a frozen copy."""
        with self.computing():
            is_fresh = _adapters_change_nothing(self.model)
        self.reference = Reference.adapters_off(self) if is_fresh else Reference.copy(self)

    def save(self, folder: Path, *, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write a plain `save_pretrained` folder, whole or not at all. An existing one is replaced.

        An adapter's folder names its base; where that base is in no folder (it is the sum of an earlier adapter, or was
        made at random), the two are written as one model. Raises `UserError` when the disk is full.
        """
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        model = self.model
        if hasattr(model, "merge_and_unload") and not self.base_is_saved:
            model = copy.deepcopy(model).merge_and_unload()
        try:
            model.save_pretrained(partial, **({"state_dict": state_dict} if state_dict is not None else {}))
            self.tokenizer.save_pretrained(partial)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) or "os error" in str(
                error
            ):  # safetensors and tokenizers have their own types
                raise UserError(f"cannot write the model to '{folder}': {error}") from error
            raise
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)


class Reference:
    """A frozen model beside the policy: a copy, or the policy's own weights with the adapters off."""

    def __init__(self, model: Any, head: Head, switch: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        self.model, self.head, self._switch = model, head, switch

    @classmethod
    def copy(cls, policy: Policy) -> "Reference":
        """The weights as they are now, frozen and in eval mode."""
        model = copy.deepcopy(policy.model).requires_grad_(False).eval()
        head = policy.language_head
        return cls(model, Head(bare_model(model).get_output_embeddings(), head.scale, head.softcap), _as_is)

    @classmethod
    def of(cls, policy: Policy) -> "Reference":
        """Another policy, frozen: a named model of the recipe."""
        policy.model.requires_grad_(False).eval()
        return cls(policy.model, policy.language_head, _as_is)

    @classmethod
    def adapters_off(cls, policy: Policy) -> "Reference":
        """The base under the policy's adapters: no second copy of the weights."""
        return cls(policy.model, policy.language_head, lambda: _adapters_off(policy.model))

    @torch.no_grad()
    def logits(self, batch: Batch) -> Callable[[slice], Tensor]:
        """Logits `[n, V]` at some of the batch's target tokens; the body runs once, the head once a chunk."""
        with self._switch():
            hidden = states_at_targets(self.model, batch, reader=self)
        # Switching walks over every module: a head without an adapter needs none.
        switch = _as_is if type(self.head.projection) is nn.Linear else self._switch

        def chunk(at: slice) -> Tensor:
            with torch.no_grad(), switch():
                return self.head.logits(hidden[at])

        return chunk


@contextmanager
def _adapters_off(model: Any) -> Iterator[None]:
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with evaluating(model), model.disable_adapter():
            yield
    finally:
        for parameter, requires_grad in trained:  # PEFT makes all adapter weights trainable when it turns them on
            parameter.requires_grad_(requires_grad)


def _as_is() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


@torch.no_grad()
def _adapters_change_nothing(model: Any) -> bool:
    """True for adapters just made; False once trained, for initialisations that change the base, and without any."""
    if not hasattr(model, "disable_adapter"):
        return False
    tokens = probe_tokens(model)
    with evaluating(model):
        with_adapters = model(input_ids=tokens, use_cache=False).logits
    with _adapters_off(model):
        without = model(input_ids=tokens, use_cache=False).logits
    return torch.equal(with_adapters, without)
