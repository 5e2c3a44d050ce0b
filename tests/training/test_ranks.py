"""Two processes train what one process trains, with whole and with sharded weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import largest_difference, manifest, metrics, run_quietly, save_tiny, small_recipe, weights

from posttrain.errors import UserError
from posttrain.recipe import check_recipe
from posttrain.training.ranks import Ranks

TRAIN = {"kind": "train", "batch_size": 9, "steps": 5, "micro_batch_tokens": 250, "checkpoint_every": 2, "lr": 3e-3}
WATCH = {"data": "test", "every": 2, "count": 3, "max_new_tokens": 6}
# AdamW divides by the size of a gradient, and so gives rounding errors of small ones the size of a step; SGD does not.
SGD = {**TRAIN, "optimizer": "sgd", "lr": 0.01}
# Another model as reference: rewards would begin at 0, and be nothing but rounding errors.
PAIRS = {**SGD, "batch_size": 3, "data": "pairs", "reference": "other"}
ROLLOUTS = {key: value for key, value in SGD.items() if key != "batch_size"} | {
    "rollouts": {
        "prompts": 3,
        "n": 4,
        "max_new_tokens": 8,
        "reward": {"name": "log_ratio", "model": "other"},
        "advantage": "gae",
        "mini_batches": 2,
        "kl_in_reward": 0.1,
    },
    "objective": ["ppo", "value"],
    "critic": "head",
    "reference": "other",
}
STOP = {"metric": "held_out_loss", "patience": 5}
CASES: dict[str, dict[str, Any]] = {
    "whole weights": {"train": {**TRAIN, "watch": WATCH, "early_stopping": STOP}, "interrupts": [3, None]},
    "sharded weights": {
        "train": {**TRAIN, "watch": {**WATCH, "generate": False}, "early_stopping": STOP},
        "sharding": "fsdp",
        "interrupts": [3, None],
    },
    # Tied embeddings; one sequence a step leaves a rank without any.
    "sharded, a rank without data": {"model": "qwen2", "train": {**SGD, "batch_size": 1}, "sharding": "fsdp"},
    "sharded LoRA": {"train": {**SGD, "adapter": {"name": "lora", "rank": 4}}, "sharding": "fsdp"},
    # Three pairs: two on one rank and one on the other, which KTO's reference point must not show.
    "pairs": {"train": {**PAIRS, "objective": "dpo"}},
    "sharded KTO": {"train": {**PAIRS, "objective": "kto"}, "sharding": "fsdp"},
    # A tied table that is read twice before the forward pass which its gradient belongs to, and once as the head.
    "sharded, reading embeddings of its own": {
        "model": "qwen2",
        "train": {**SGD, "objective": {"name": "ift", "embeddings": "trained"}},
        "sharding": "fsdp",
    },
    # Three questions: two on one rank and one on the other; a reward that another model gives, and a critic.
    "rollouts": {"train": ROLLOUTS},
    "sharded, then gone on with alone": {"train": SGD, "sharding": "fsdp", "interrupts": [2]},
}
REFUSED: dict[str, dict[str, Any]] = {
    "answers of sharded weights": {"kind": "train", "sharding": "fsdp", "watch": WATCH},
    "optimiser": {"kind": "train", "sharding": "fsdp", "optimizer": "adafactor"},
    "nothing kept": {"kind": "generate", "max_new_tokens": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have run all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in ("llama", "qwen2"):
        save_tiny(folder / "models" / name, name)
    pairs = [
        {"prompt": f"{n} + 1 =", "chosen": str(n + 1), "rejected": "I do not know" * (1 + n % 3)} for n in range(7)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    cases = {
        name: {"recipe": recipe(folder, name, "two"), "interrupts": CASES[name].get("interrupts", [None])}
        for name in CASES
    }
    for name, stage in REFUSED.items():
        refused = small_recipe(folder / "models" / "llama", folder / "two" / name, {"stage": stage})
        cases[name] = {"recipe": refused.model_dump(mode="json"), "interrupts": [None]}
    (folder / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).parents[1] / "two_ranks.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*launch, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def recipe(folder: Path, case: str, ranks: str) -> dict[str, Any]:
    chosen = CASES[case]
    stage = {**chosen["train"], "sharding": chosen.get("sharding", "auto")}
    model = folder / "models" / chosen.get("model", "llama")
    if "reference" not in chosen["train"]:
        return small_recipe(model, folder / ranks / case, {"sft": stage}).model_dump(mode="json")
    more: dict[str, Any] = {"models": {"other": str(folder / "models" / "qwen2")}}
    if chosen["train"].get("data") == "pairs":
        more["data"] = {"pairs": str(folder / "pairs.jsonl")}
    return small_recipe(model, folder / ranks / case, {"sft": stage}, **more).model_dump(mode="json")


def outcomes(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"rank-{rank}.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_weights_of_one(case: str, folder: Path) -> None:
    run_quietly(check_recipe(recipe(folder, case, "one")))
    if outcomes(folder, 0)[case][-1] != "finished":
        run_quietly(check_recipe(recipe(folder, case, "two")))
    one, two = folder / "one" / case, folder / "two" / case
    # LoRA's second factor starts at 0: it is nothing but gradients, and their rounding shows.
    rounding_shows = "optimizer" not in CASES[case]["train"] or "adapter" in CASES[case]["train"]
    assert largest_difference(weights(one, "sft"), weights(two, "sft")) < (1e-5 if rounding_shows else 1e-6)
    for alone, together in zip(metrics(one), metrics(two), strict=True):
        for key in alone.keys() - {"micro_batches", "stage", "kind"}:
            assert together[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-7), key
    found, expected = (manifest(path)["stages"]["sft"]["summary"] for path in (two, one))
    assert found["trained_tokens"] == expected["trained_tokens"]
    assert found["reload_difference"] < 1e-4


def test_when_one_rank_is_asked_to_stop_all_stop_and_go_on(folder: Path) -> None:
    for rank in (0, 1):
        for case in ("whole weights", "sharded weights"):
            assert outcomes(folder, rank)[case] == ["Interrupted: ", "finished"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("answers of sharded weights", "answers cannot be drawn while the weights are cut over ranks"),
        ("optimiser", "'adafactor' cannot be used with sharding"),
        ("nothing kept", "kept none of 60 answers"),
    ],
)
def test_what_is_refused_is_refused_on_every_rank(case: str, message: str, folder: Path) -> None:
    for rank in (0, 1):
        (ending,) = outcomes(folder, rank)[case]
        assert ending.startswith("UserError")
        assert message in ending


def test_ranks_hear_one_another_and_gradients_are_summed(folder: Path) -> None:
    expected = [
        [0, 10],
        "from 0",
        "rank 0 cannot",
        [[2.0, 5.0], "torch.float32"],
        [[7.0], "torch.float32"],
        None,
        [[1.0] * 4, "torch.bfloat16"],
    ]
    assert outcomes(folder, 0)["talk"] == outcomes(folder, 1)["talk"] == expected


def test_alone_everything_is_itself() -> None:
    ranks = Ranks()
    assert (ranks.rank, ranks.count, ranks.is_main, ranks.launched_with_fsdp) == (0, 1, True, False)
    assert ranks.gather("x") == ["x"]
    assert ranks.on_main(lambda: "y") == "y"


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("ACCELERATE_USE_FSDP", "add --fsdp_version 2"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed, which is not supported"),
    ],
)
def test_what_launchers_ask_for_in_vain_is_refused(
    variable: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    with pytest.raises(UserError, match=message):
        Ranks()


def test_a_precision_that_only_the_launcher_asks_for_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks().notes == ()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert "model.dtype decides" in Ranks().notes[0]
