"""Rollouts from a server: it draws the answers of the policy that is trained here, and gets its weights each round."""

from collections.abc import Sequence as List
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from posttrain.data import Sequence
from posttrain.errors import UserError
from posttrain.generation import Completion, Prompt, Sampling
from posttrain.generation.server import ServerEngine
from posttrain.generation.weight_sync import AdapterSync, Control, FolderSync, Synchroniser
from posttrain.policy import Policy
from posttrain.policy.loading import evaluating
from posttrain.policy.scoring import scored
from posttrain.recipe import Server
from posttrain.stages.answers.serving import api_key, dialect_of, server_engine
from posttrain.stages.scoring import behind_prompt
from posttrain.training.ranks import Ranks
from posttrain.training.sharding import model_state

Sync = Literal["adapter", "folder", "none"]
"""How weights get to the server: LoRA adapters, whole models, or never."""

PROBES = 8
"""Answers that the server draws to be compared with the trainer."""
PROBE_TOKENS = 32
"""Tokens of each of them at most."""
MOVED = 1e-4
"""Nats a token by which the trainer's log-probs must have changed before a server whose own did not is called stale."""


class ServedPolicy:
    """A policy whose answers a server draws. Every rank has one, and all call `synchronise` as often.

    `probe` is asked after each push, drawn as `sampling` says, and the server's log-probs of what it drew are compared
    with the trainer's: `tolerance` is the mean gap in nats a token that is put down to the server's precision.
    """

    def __init__(
        self,
        policy: Policy,
        engine: ServerEngine,
        synchroniser: Synchroniser | None,
        ranks: Ranks,
        *,
        probe: List[Prompt],
        sampling: Sampling,
        tolerance: float,
    ) -> None:
        self.policy, self.engine, self.synchroniser, self.ranks = policy, engine, synchroniser, ranks
        self.probe, self.tolerance = list(probe)[:PROBES], tolerance
        tokens = min(PROBE_TOKENS, sampling.max_new_tokens)
        # Filters play no part in the trainer's log-probs; the same seed each time, to see that the answers change.
        self.sampling = replace(sampling, max_new_tokens=tokens, top_k=0, top_p=1.0, min_p=0.0, seed=0)
        self.version: int | None = None
        self._last: tuple[list[Completion], npt.NDArray[np.float64]] | None = None

    def synchronise(self, version: int) -> float | None:
        """Bring the weights to the server and compare; the mean gap of the probe's log-probs, None where none is due.

        Nothing happens when `version` is what it was, and no weights are sent where there is no synchroniser. Raises
        `UserError` when the server does not take the weights, or serves others than the trainer has.
        """
        first = self.version is None
        if version == self.version:
            return None
        self.version = version
        if self.synchroniser is None and not first:
            return None
        if self.synchroniser is not None:
            state = model_state(self.policy, keep=self.ranks.is_main)
            self.engine.model = self.ranks.on_main(lambda: self._push(version, state))
        return self._compare()

    def generate(self, prompts: List[Prompt], n: int, sampling: Sampling) -> list[Completion]:
        """`n` answers to each prompt with the weights that were sent last, as `sources.rollouts.Generate` wants them.

        Raises `UserError` for a server that does not say exactly what it drew and how likely that was.
        """
        if self.version is None:
            raise RuntimeError("synchronise() comes first: what the server serves was never compared with the policy")
        return self._exact(self.engine.generate(prompts, n, sampling))

    def _push(self, version: int, state: dict[str, Any] | None) -> str:
        assert self.synchroniser is not None
        return self.synchroniser.push(lambda folder: self.policy.save(folder, state_dict=state), version)

    def _exact(self, answers: list[Completion]) -> list[Completion]:
        if answers and not self.engine.exact:
            raise UserError(
                f"the server at {self.engine.base_url} returns no token ids, and answers to learn from must be known "
                "token by token: serve the model with vLLM 0.10.2 or newer (return_token_ids)"
            )
        silent = sum(not np.isfinite(answer.sampling_logprobs).all() for answer in answers)
        if silent:
            raise UserError(
                f"the server at {self.engine.base_url} gave no log-probs of {silent} of {len(answers)} answers, and "
                "these are what says how far its weights are from the trainer's"
            )
        return answers

    def _compare(self) -> float:
        """The gap of the probe. Every rank takes part in the trainer's share of it."""
        drawn = self.ranks.on_main(lambda: self._exact(self.engine.generate(self.probe, 1, self.sampling)))
        theirs = np.concatenate([answer.sampling_logprobs for answer in drawn]).astype(np.float64)
        ours = self._trainer(drawn, self.sampling.temperature)
        gap = float(np.abs(theirs - ours).mean())
        if self.sampling.temperature != 1 and np.abs(theirs - self._trainer(drawn, 1.0)).mean() < gap / 2:
            raise UserError(
                f"the server at {self.engine.base_url} tells the log-probs of the policy, and at temperature "
                f"{self.sampling.temperature:g} it draws from others: start it with --logprobs-mode processed_logprobs"
            )
        if not gap <= self.tolerance:
            raise UserError(
                f"the server at {self.engine.base_url} serves other weights as '{self.engine.model}' than the trainer "
                f"has: its log-probs of {len(ours)} tokens are off by {gap:.3g} on average, and probe_tolerance is "
                f"{self.tolerance:g}. Serve the model that training starts from, and see that it takes what it is sent "
                "(its log); a quantised server needs a larger tolerance"
            )
        self._check_change(drawn, theirs, ours)
        self._last = (drawn, ours)
        return gap

    def _check_change(
        self, drawn: list[Completion], theirs: npt.NDArray[np.float64], ours: npt.NDArray[np.float64]
    ) -> None:
        """Raises `UserError` where the trainer has moved and the server has not, by however little."""
        if self._last is None:
            return
        before, ours_before = self._last
        same = [answer.tokens.tolist() for answer in drawn] == [answer.tokens.tolist() for answer in before]
        if not same or float(np.abs(ours - ours_before).mean()) < MOVED:
            return
        theirs_before = np.concatenate([answer.sampling_logprobs for answer in before])
        if np.abs(theirs - theirs_before).max() < MOVED / 100:
            raise UserError(
                f"the server at {self.engine.base_url} took weights of version {self.version} and answers with those "
                "of before: the log-probs of its probe did not change at all, and the trainer's did"
            )

    def _trainer(self, drawn: list[Completion], temperature: float) -> npt.NDArray[np.float64]:
        """The policy's log-probs of drawn tokens, one answer after the other, at a temperature."""
        sequences = [self._sequence(answer, temperature) for answer in drawn]
        found = [np.zeros(0)] * len(sequences)
        with evaluating(self.policy.model):
            for index, scores in scored(self.policy, sequences, (), max(map(len, sequences))):
                found[index] = scores.logprobs.double().cpu().numpy()
        return np.concatenate(found)

    def _sequence(self, answer: Completion, temperature: float) -> Sequence:
        probed = behind_prompt(self.probe[answer.prompt].tokens, answer.tokens, f"probe {answer.prompt}")
        return replace(probed, scalars={"temperature": temperature})


def served_policy(
    policy: Policy,
    server: Server,
    ranks: Ranks,
    *,
    sync: Sync,
    folder: Path,
    seen_as: str | None = None,
    probe: List[Prompt],
    sampling: Sampling,
    tolerance: float,
    timeout: float = 600.0,
) -> ServedPolicy:
    """A policy behind a recipe's server. `folder`, `seen_as`: see `AdapterSync`; `probe`, `sampling`, `tolerance`: see
    `ServedPolicy`; `timeout`: seconds for one request."""
    engine = server_engine(server, policy.tokenizer, timeout=timeout, processed_logprobs=not sampling.untouched)
    return ServedPolicy(
        policy,
        engine,
        synchroniser_of(server, sync, folder, seen_as, timeout),
        ranks,
        probe=probe,
        sampling=sampling,
        tolerance=tolerance,
    )


def synchroniser_of(
    server: Server, sync: Sync, folder: Path, seen_as: str | None = None, timeout: float = 600.0
) -> Synchroniser | None:
    """The way in which a recipe's server gets new weights, None for `none`."""
    if sync == "none":
        return None
    control = Control(server.url, api_key=api_key(server), timeout=timeout)
    if sync == "adapter":
        return AdapterSync(control, folder, seen_as)
    return FolderSync(control, folder, server.model, seen_as)


def check_served(
    server: Server, tokenizer: Any, *, sync: Sync, folder: Path, adapter: bool, sampling: Sampling, longest_prompt: int
) -> str:
    """What a plan can know of a server to draw rollouts; a note for the user.

    `adapter`: does the stage train one? (On the sum of an earlier one it is saved as a whole model, so that `folder` is
    left for the first push to judge.) Raises `UserError` for a server out of reach, one that knows no token ids or
    lacks the endpoints that `sync` needs, a `sync` that does not fit the stage, and answers that do not fit the server.
    """
    synchroniser = synchroniser_of(server, sync, folder)
    if synchroniser is not None:
        synchroniser.check()
    dialect = dialect_of(server, tokenizer)
    if dialect != "vllm":
        raise UserError(
            f"rollouts need a server that takes and gives token ids, and the one at {server.url} speaks '{dialect}': "
            "serve the model with vLLM"
        )
    if sync == "adapter" and not adapter:
        raise UserError("rollouts.server.sync is 'adapter', but the stage trains all weights: set 'folder', or adapter")
    room = _max_model_len(server)
    if room is not None and longest_prompt + sampling.max_new_tokens > room:
        raise UserError(
            f"the longest prompt has {longest_prompt} tokens and answers up to {sampling.max_new_tokens}, but "
            f"'{server.model}' at {server.url} takes {room} in all: shorten one of them, or raise its --max-model-len"
        )
    told = "and never gets new weights: its answers are ever more off-policy" if sync == "none" else f"(sync {sync})"
    return f"'{server.model}' at {server.url} draws the rollouts {told}"


def _max_model_len(server: Server) -> int | None:
    """How many tokens a served model takes, where the server says so (vLLM's `/v1/models`)."""
    cards = Control(server.url, api_key=api_key(server), timeout=10.0).get("/v1/models").get("data") or []
    return next((card.get("max_model_len") for card in cards if card.get("id") == server.model), None)
