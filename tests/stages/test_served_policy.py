"""Rollouts from a server that really draws: the same answers as in process, new weights, and what goes wrong."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch
from serving import Serving, prompt_of, serving

from posttrain.adaptation.lora import lora
from posttrain.data import Origin, Sequence
from posttrain.data.batch import collate
from posttrain.errors import UserError
from posttrain.generation import Completion, Prompt, Sampling
from posttrain.generation.local import LocalEngine
from posttrain.generation.sampling import stream
from posttrain.objectives import build_objective
from posttrain.policy import Policy
from posttrain.recipe import Server
from posttrain.stages.supplies.served_policy import ServedPolicy, check_served, served_policy
from posttrain.training.ranks import Ranks

PROMPTS = [Prompt(np.array(list(text), np.int32), key) for key, text in enumerate([b"one and", b"two", b"three!"], 7)]
SAMPLING = Sampling(max_new_tokens=12, seed=5)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same shape and tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    policy = Policy.load(str(running.save_tiny(folder)))
    moved(policy, 0.3)
    policy.save(folder)
    return folder


@pytest.fixture
def server(base: Path) -> Iterator[Serving]:
    with serving(base) as state:
        yield state


def moved(policy: Policy, size: float, seed: int = 0) -> None:
    """What an optimiser step does: other weights, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def served(policy: Policy, server: Serving, folder: Path, sync: Any = "folder", **more: Any) -> ServedPolicy:
    options: dict[str, Any] = {"sampling": SAMPLING, "tolerance": 0.01, "folder": folder} | more
    named = Server(url=server.url, model=server.name)
    found = served_policy(policy, named, Ranks(), sync=sync, probe=PROMPTS, **options)
    found.engine.first_wait = 0.01
    return found


def in_process(policy: Policy, n: int, sampling: Sampling) -> list[Completion]:
    """What a server draws that is seeded like ours: each answer from the seed of its request plus its place there."""
    answers = []
    for prompt in PROMPTS:
        assert prompt.key is not None
        first = int(stream(sampling.seed, prompt.key, 0).integers(2**31))
        for draw in range(n):
            seeded = Sampling(**{**vars(sampling), "seed": first + draw})
            asked = [prompt_of(prompt.tokens.tolist())]
            answers += LocalEngine(policy.model, policy.tokenizer).generate(asked, 1, seeded)
    return answers


def same(found: list[Completion], expected: list[Completion]) -> None:
    assert len(found) == len(expected)
    for there, here in zip(found, expected, strict=True):
        assert there.tokens.tolist() == here.tokens.tolist()
        assert there.sampling_logprobs == pytest.approx(here.sampling_logprobs, abs=1e-4)
        assert (there.text, there.finish_reason) == (here.text, here.finish_reason)


def ours(policy: Policy, answers: list[Completion], **columns: float) -> Any:
    """The answers as a batch, with the server's log-probs."""
    rows = []
    for answer in answers:
        prompt = PROMPTS[answer.prompt].tokens
        tokens = np.concatenate([prompt, answer.tokens])
        drawn = np.arange(len(tokens)) >= len(prompt)
        logprobs = np.concatenate([np.zeros(len(prompt), np.float32), answer.sampling_logprobs])
        filled = {name: np.full(len(tokens), value, np.float32) for name, value in columns.items()}
        origin = np.where(drawn, Origin.ROLLOUT, Origin.PROMPT).astype(np.uint8)
        rows.append(Sequence(tokens, drawn, origin, "s", columns={"sampled_logprob": logprobs, **filled}))
    return collate(rows, pad_id=0)


def test_a_server_draws_what_the_engine_draws_here(base: Path, server: Serving, tmp_path: Path) -> None:
    policy = Policy.load(str(base))
    rollouts = served(policy, server, tmp_path, "none")
    assert rollouts.synchronise(0) == pytest.approx(0, abs=1e-4)
    same(rollouts.generate(PROMPTS, 3, SAMPLING), in_process(policy, 3, SAMPLING))
    greedy = Sampling(max_new_tokens=12, temperature=0)
    here = LocalEngine(policy.model, policy.tokenizer).generate(PROMPTS, 1, greedy)
    same(rollouts.generate(PROMPTS, 1, greedy), here)


def test_answers_hang_on_the_key_and_the_draw_not_on_the_batch(base: Path, server: Serving, tmp_path: Path) -> None:
    rollouts = served(Policy.load(str(base)), server, tmp_path, "none")
    rollouts.synchronise(0)
    together = rollouts.generate(PROMPTS, 3, SAMPLING)
    server.faults.most = 2
    alone = [answer for prompt in reversed(PROMPTS) for answer in rollouts.generate([prompt], 3, SAMPLING)]
    assert [answer.tokens.tolist() for answer in together] == [
        answer.tokens.tolist() for part in (6, 3, 0) for answer in alone[part : part + 3]
    ]
    assert len({tuple(answer.tokens.tolist()) for answer in together}) == 9


def test_after_a_push_the_whole_weights_answer(base: Path, server: Serving, tmp_path: Path) -> None:
    policy = Policy.load(str(base))
    rollouts = served(policy, server, tmp_path / "weights")
    rollouts.synchronise(0)
    before = rollouts.generate(PROMPTS, 2, SAMPLING)
    moved(policy, 0.05)
    assert rollouts.synchronise(1) == pytest.approx(0, abs=1e-4)
    after = rollouts.generate(PROMPTS, 2, SAMPLING)
    same(after, in_process(policy, 2, SAMPLING))
    assert [answer.tokens.tolist() for answer in after] != [answer.tokens.tolist() for answer in before]
    assert [folder.name for folder in (tmp_path / "weights").iterdir()] == ["version-1"]
    assert not server.paused


def test_after_a_push_the_adapter_answers_under_a_new_name(base: Path, server: Serving, tmp_path: Path) -> None:
    policy = Policy.load(str(base))
    policy = policy.adapted(lora(policy.model, rank=4))
    rollouts = served(policy, server, tmp_path, "adapter")
    names = set()
    for version in range(3):
        assert rollouts.synchronise(version) == pytest.approx(0, abs=1e-4)
        names.add(rollouts.engine.model)
        same(rollouts.generate(PROMPTS, 2, SAMPLING), in_process(policy, 2, SAMPLING))
        moved(policy, 0.1, version)
    assert len(names) == 3
    assert list(server.adapters) == [rollouts.engine.model]  # the others are unloaded
    assert [folder.name for folder in tmp_path.iterdir()] == ["version-2"]


def test_an_adapter_that_an_earlier_run_left_is_loaded_anew(base: Path, server: Serving, tmp_path: Path) -> None:
    for run in ("first", "second"):
        policy = Policy.load(str(base))
        torch.manual_seed(0)
        policy = policy.adapted(lora(policy.model, rank=4))
        rollouts = served(policy, server, tmp_path / run, "adapter")
        rollouts.synchronise(0)
    loads = [body["lora_path"] for path, body in server.seen if path == "/v1/load_lora_adapter"]
    assert [Path(path).parent.name for path in loads] == ["first", "second", "second"]
    assert len(server.adapters) == 1


def test_one_version_is_sent_once(base: Path, server: Serving, tmp_path: Path) -> None:
    rollouts = served(Policy.load(str(base)), server, tmp_path)
    rollouts.synchronise(3)
    requests = len(server.seen)
    assert rollouts.synchronise(3) is None
    assert len(server.seen) == requests


def test_a_lost_connection_is_tried_again(base: Path, server: Serving, tmp_path: Path) -> None:
    policy = Policy.load(str(base))
    rollouts = served(policy, server, tmp_path)
    rollouts.synchroniser.control.first_wait = 0.01  # type: ignore[union-attr]
    server.faults.control_drops = server.faults.drops = server.faults.busy = 2
    rollouts.synchronise(0)
    server.faults.aborted = 2
    same(rollouts.generate(PROMPTS, 2, SAMPLING), in_process(policy, 2, SAMPLING))


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"slow": 2.0}, r"no answer from .* in 2 tries \(ReadTimeout"),
        ({"drops": 99}, r"no answer from .* in 2 tries \(RemoteProtocolError|ReadError"),
        ({"aborted": 99}, r"no answer to prompt \d: 1 of 2 samples are missing"),
        ({"token_ids": False}, "returns no token ids"),
        ({"logprobs": False}, "gave no log-probs of 6 of 6 answers"),
    ],
)
def test_a_fault_ends_the_round_with_its_message(
    base: Path, server: Serving, tmp_path: Path, faults: dict[str, Any], message: str
) -> None:
    timeout = 1.0 if "slow" in faults else 60.0  # on a busy machine every answer takes long
    rollouts = served(Policy.load(str(base)), server, tmp_path, "none", timeout=timeout)
    rollouts.synchronise(0)
    rollouts.engine.retries = 1
    for name, value in faults.items():
        setattr(server.faults, name, value)
    with pytest.raises(UserError, match=message):
        rollouts.generate(PROMPTS, 2, SAMPLING)


def test_a_server_of_other_weights_is_found_out_at_the_start(base: Path, other: Path, tmp_path: Path) -> None:
    with serving(other) as server:
        rollouts = served(Policy.load(str(base)), server, tmp_path, "none")
        with pytest.raises(UserError, match=r"serves other weights as 'policy' .* off by .* probe_tolerance is 0.01"):
            rollouts.synchronise(0)
        served(Policy.load(str(base)), server, tmp_path, "none", tolerance=100).synchronise(0)


@pytest.mark.parametrize(
    ("size", "message"), [(0.3, "see that it takes what it is sent"), (0.002, "answers with those of before")]
)
def test_a_server_that_only_says_it_took_the_weights_is_found_out(
    base: Path, server: Serving, tmp_path: Path, size: float, message: str
) -> None:
    policy = Policy.load(str(base))
    rollouts = served(policy, server, tmp_path, tolerance=0.1)
    rollouts.synchronise(0)
    server.faults.deaf = True
    moved(policy, size)
    with pytest.raises(UserError, match=message):
        rollouts.synchronise(1)


def test_a_temperature_needs_a_server_that_tells_what_it_draws_from(
    base: Path, server: Serving, tmp_path: Path
) -> None:
    policy = Policy.load(str(base))
    warm = Sampling(max_new_tokens=12, temperature=0.6, top_k=20)
    with pytest.raises(UserError, match="draws from others: start it with --logprobs-mode processed_logprobs"):
        served(policy, server, tmp_path, sampling=warm).synchronise(0)
    with serving(base, processed=True) as processed:
        rollouts = served(policy, processed, tmp_path, sampling=warm)
        assert rollouts.synchronise(0) == pytest.approx(0, abs=1e-4)
        same(rollouts.generate(PROMPTS, 2, warm), in_process(policy, 2, warm))
        greedy = rollouts.generate(PROMPTS, 1, Sampling(max_new_tokens=12, temperature=0))
        assert not any(answer.sampling_logprobs.any() for answer in greedy)


def test_the_gap_of_a_stale_server_is_corrected_and_shows(base: Path, server: Serving, tmp_path: Path) -> None:
    policy = Policy.load(str(base))
    rollouts = served(policy, server, tmp_path, "none")
    rollouts.synchronise(0)
    answers = rollouts.generate(PROMPTS, 8, SAMPLING)
    (term,) = build_objective({"name": "ppo", "importance_cap": 2.0}).terms

    def importance() -> tuple[torch.Tensor, torch.Tensor]:
        batch = ours(policy, answers, advantage=1.0)
        scores = policy.scores(batch)
        _, metrics = term.function(scores, batch)  # type: ignore[misc]
        return metrics["importance"], (scores.logprobs - batch.column("sampled_logprob")).detach()

    fresh, gap = importance()
    assert fresh == pytest.approx(torch.ones_like(fresh), abs=1e-3)
    moved(policy, 0.05)
    assert rollouts.synchronise(1) is None  # sync none: never sent
    stale, gap = importance()
    assert (stale - 1).abs().mean() > 0.1
    assert stale.max() == 2.0
    assert stale == pytest.approx(gap.exp().clamp(max=2))
    assert stale.mean() < 1  # in the mean the whole ratio is 1 for any sampler: what the cap cuts off is missing


def check(server: Serving, folder: Path, **more: Any) -> str:
    options: dict[str, Any] = {"sync": "folder", "adapter": False, "sampling": SAMPLING, "longest_prompt": 9} | more
    named = Server(url=server.url, model=server.name)
    return check_served(named, server.tokenizer, folder=folder, **options)


def test_a_plan_looks_at_the_server_and_changes_nothing(server: Serving, tmp_path: Path) -> None:
    assert "draws the rollouts (sync folder)" in check(server, tmp_path / "weights")
    assert "ever more off-policy" in check(server, tmp_path, sync="none")
    assert {path for path, _ in server.seen} == {"/v1/completions"}
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("faults", "options", "message"),
    [
        ({"without": ("/collective_rpc",)}, {}, "no endpoint /collective_rpc: start it with VLLM_SERVER_DEV_MODE=1"),
        (
            {"without": ("/v1/load_lora_adapter",)},
            {"sync": "adapter", "adapter": True},
            "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True .* --enable-lora",
        ),
        ({}, {"sync": "adapter"}, "the stage trains all weights"),
        ({}, {"longest_prompt": 505}, "505 tokens and answers up to 12, but 'policy' at .* takes 512 in all"),
    ],
)
def test_a_plan_refuses_what_cannot_go_well(
    server: Serving, tmp_path: Path, faults: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    for name, value in faults.items():
        setattr(server.faults, name, value)
    with pytest.raises(UserError, match=message):
        check(server, tmp_path, **options)


def test_a_plain_server_is_refused(base: Path, scripted: Any) -> None:
    def plain(body: dict[str, Any]) -> Any:
        if "top_k" in body:
            return 400, {"error": "Unrecognized request argument supplied: top_k"}
        return 200, {"choices": [{"text": "yes", "finish_reason": "stop"}]}

    address, _ = scripted(plain)
    policy = Policy.load(str(base))
    with pytest.raises(UserError, match=r"takes and gives token ids, and the one at .* speaks 'openai'"):
        check_served(
            Server(url=address, model="m"),
            policy.tokenizer,
            sync="none",
            folder=base,
            adapter=False,
            sampling=SAMPLING,
            longest_prompt=9,
        )


@pytest.mark.parametrize(
    ("adapter", "sync", "message"),
    [(False, "adapter", "saved as a whole model"), (True, "folder", "but this policy is an adapter")],
)
def test_what_was_saved_must_be_what_is_sent(
    base: Path, server: Serving, tmp_path: Path, adapter: bool, sync: str, message: str
) -> None:
    policy = Policy.load(str(base))
    policy = policy.adapted(lora(policy.model, rank=4)) if adapter else policy
    with pytest.raises(UserError, match=message):
        served(policy, server, tmp_path, sync).synchronise(0)


def test_a_folder_that_the_server_does_not_see_is_named(base: Path, server: Serving, tmp_path: Path) -> None:
    policy = Policy.load(str(base))
    with pytest.raises(UserError, match=r"did not take the new weights: .*status 500: .*no such model: /elsewhere/"):
        served(policy, server, tmp_path, seen_as="/elsewhere/").synchronise(0)
    assert server.paused  # a real one has dropped its weights by now
    assert served(policy, server, tmp_path, seen_as=str(tmp_path)).synchronise(0) is not None


def test_a_plan_does_not_wait_for_a_server_that_is_paused(server: Serving, tmp_path: Path) -> None:
    server.paused = True
    with pytest.raises(UserError, match=r"is paused .*: restart it, .* curl -X POST http://127.0.0.1:\d+/resume"):
        check(server, tmp_path)


def test_an_endpoint_that_is_missing_after_all_is_named(base: Path, server: Serving, tmp_path: Path) -> None:
    server.faults.without = ("/pause",)
    with pytest.raises(UserError, match=r"no endpoint http.*/pause\?mode=wait: start it with VLLM_SERVER_DEV_MODE=1"):
        served(Policy.load(str(base)), server, tmp_path).synchronise(0)


def test_nothing_is_drawn_before_the_first_comparison(base: Path, server: Serving, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="synchronise"):
        served(Policy.load(str(base)), server, tmp_path).generate(PROMPTS, 1, SAMPLING)
