"""A cached reference trains the same model as a reference that is held in memory."""

import json

import pytest
import torch
from architectures import build, tokenizer
from safetensors.torch import load_file

from posttrain.errors import UserError
from posttrain.recipe import check_recipe
from posttrain.run import plan, run
from posttrain.terminal import Terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("cached")
    build("llama").save_pretrained(place / "model")
    tokenizer().save_pretrained(place / "model")
    rows = [{"prompt": f"{n} + 1 =", "chosen": f"{n + 1}", "rejected": f"{n}{n}"} for n in range(12)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def recipe(folder, out, objective="dpo", **fields):
    stage = {"kind": "train", "objective": objective, "batch_size": 4, "lr": 1e-3, "checkpoint_every": None, **fields}
    return check_recipe(
        {
            "name": "cached",
            "out": str(folder / out),
            "model": str(folder / "model"),
            "data": {"train": str(folder / "pairs.jsonl")},
            "stages": {"dpo": stage},
        }
    )


@pytest.mark.parametrize("adapter", [None, {"name": "lora", "rank": 2}])
def test_cached_scores_give_the_weights_of_a_live_reference(folder, adapter):
    kind = "full" if adapter is None else "lora"
    weights = []
    for cached in (False, True):
        out = f"{kind}-{cached}"
        run(recipe(folder, out, adapter=adapter, cache_reference=cached), Terminal(quiet=True))
        (path,) = (folder / out / "models" / "dpo").glob("*.safetensors")
        weights.append(load_file(path))
    assert list((folder / ".cache").glob("reference-*.npy"))
    for name, live in weights[0].items():
        torch.testing.assert_close(weights[1][name], live, rtol=1e-4, atol=1e-6)


def test_a_loss_that_asks_for_more_than_log_probs_is_refused(folder):
    with pytest.raises(UserError, match="forward_kl"):
        plan(recipe(folder, "kl", objective="asft", cache_reference=True), Terminal(quiet=True))
