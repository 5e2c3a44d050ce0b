"""Curate stages whose functions ask models, and PoFT trained on what they found."""

import json
import math
from pathlib import Path
from typing import Any

import architectures
import pytest
from running import manifest, metrics, run_quietly, save_tiny, small_recipe

from posttrain.errors import UserError
from posttrain.policy import Policy, load_tokenizer
from posttrain.recipe import Recipe
from posttrain.run import plan
from posttrain.stages.answers import asked_models
from posttrain.terminal import Terminal

SCORE = {"kind": "curate", "data": "train", "models": ["base"], "steps": ["reference_scores"]}
POFT = {"kind": "train", "data": "scored", "objective": "poft", "steps": 1, "batch_size": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def longer_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, whose tokenizer joins digits, under another template."""
    folder = tmp_path_factory.mktemp("other")
    architectures.build("qwen3", seed=1).save_pretrained(folder)
    tokenizer = architectures.tokenizer()
    template = architectures.TEMPLATE.replace("message['role'] + '\n'", "message['role'] + ': '")
    tokenizer.chat_template = template.replace("assistant\n", "assistant: ")
    tokenizer.save_pretrained(folder)
    file = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = file["model"]["vocab"]
    names = {place: name for name, place in vocabulary.items()}
    for place, word in zip((253, 254, 255), ("10", "11", "12"), strict=True):  # in the places of bytes that no text has
        del vocabulary[names[place]]
        vocabulary[word] = place
        file["model"]["merges"].append(list(word))
    (folder / "tokenizer.json").write_text(json.dumps(file))
    return folder


def rows(out: Path, stage: str = "scored") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "data" / f"{stage}.jsonl").read_text().splitlines()]


def recipe(model: Path, out: Path, score: dict[str, Any] = SCORE, **more: Any) -> Recipe:
    return small_recipe(model, out, {"scored": score}, **more)


def test_a_model_scored_by_itself_starts_poft_at_the_log_of_two(model: Path, tmp_path: Path) -> None:
    """The reference score and the loss's own score are means over the same tokens of the same text."""
    out = tmp_path / "run"
    run_quietly(small_recipe(model, out, {"scored": SCORE, "tuned": POFT}))
    (step,) = [row for row in metrics(out) if row["kind"] == "train"]
    assert step["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert step["tau"] == pytest.approx(0.5, abs=1e-5)
    assert step["score"] == pytest.approx(step["reference_score"], abs=1e-5)


def test_a_second_run_loads_no_model(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = asked_models.load_policy

    def counting(context: Any, name: str) -> Policy:
        loaded.append(name)
        return load(context, name)

    monkeypatch.setattr(asked_models, "load_policy", counting)
    top = {**SCORE, "steps": ["reference_scores", {"name": "top", "by": "reference_score", "share": 0.5}]}
    run_quietly(recipe(model, tmp_path / "one"))
    run_quietly(recipe(model, tmp_path / "two", top))
    assert loaded == ["base"]
    assert len(rows(tmp_path / "one")) == 2 * len(rows(tmp_path / "two")) == 60
    best = sorted((row["scalars"]["reference_score"] for row in rows(tmp_path / "one")), reverse=True)[:30]
    assert sorted((row["scalars"]["reference_score"] for row in rows(tmp_path / "two")), reverse=True) == best


def test_models_score_in_their_own_tokens_and_the_mean_is_taken(
    model: Path, longer_words: Path, tmp_path: Path
) -> None:
    assert [len(load_tokenizer(str(path)).encode("10+11")) for path in (model, longer_words)] == [5, 3]
    found = {}
    for names in (["base"], ["other"], ["other", "base"]):
        out = tmp_path / "-".join(names)
        run_quietly(recipe(model, out, {**SCORE, "models": names}, models={"other": str(longer_words)}))
        found[tuple(names)] = [row["scalars"]["reference_score"] for row in rows(out)]
    one, other, both = found.values()
    assert one != other
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)])


def test_the_token_that_ends_a_turn_can_be_left_out(model: Path, tmp_path: Path) -> None:
    without = {**SCORE, "steps": [{"name": "reference_scores", "ends": False}]}
    run_quietly(recipe(model, tmp_path / "with"))
    run_quietly(recipe(model, tmp_path / "without", without))
    one, other = rows(tmp_path / "with")[0], rows(tmp_path / "without")[0]
    policy = Policy.load(str(model))
    turns = [*one["prompt"], *one["response"]]
    ids = policy.tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
    logprobs = policy.model(input_ids=ids).logits[0].log_softmax(-1).detach()
    end = int((ids[0] == architectures.IM_END).nonzero()[-1])
    begin = end - len(one["response"][0]["content"].encode())
    own = [float(logprobs[at - 1, ids[0, at]]) for at in range(begin, end + 1)]
    assert one["scalars"]["reference_score"] == pytest.approx(sum(own) / len(own), abs=1e-4)
    assert other["scalars"]["reference_score"] == pytest.approx(sum(own[:-1]) / len(own[:-1]), abs=1e-4)


def test_all_turns_are_scored_where_all_are_trained(model: Path, tmp_path: Path) -> None:
    turns = [
        {"role": role, "content": text}
        for role, text in [("user", "1+1?"), ("assistant", "2"), ("user", "And 2+2?"), ("assistant", "4, of course")]
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": turns}))
    found = []
    for loss_on in ("last", "all"):
        score = {**SCORE, "loss_on": loss_on}
        run_quietly(recipe(model, tmp_path / loss_on, score, data={"train": str(path)}))
        found.append(rows(tmp_path / loss_on)[0]["scalars"]["reference_score"])
    assert abs(found[0] - found[1]) > 1e-3


def test_samples_that_are_too_long_for_a_model_are_left_out_and_counted(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": "Hi", "completion": "x" * length}) + "\n" for length in (5, 100)))
    out = tmp_path / "run"
    run_quietly(recipe(model, out, {**SCORE, "max_length": 60}, data={"train": str(path)}))
    assert manifest(out)["stages"]["scored"]["summary"]["after_1_reference_scores"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "curation 'reference_scores' asks models: name them"),
        ({"steps": ["deduplicate"]}, "none of the functions asks any: deduplicate"),
        ({"models": ["bass"]}, "model 'bass' is neither 'base'"),
        ({"models": ["base", "base"]}, "each can be named once"),
        ({"max_length": 10**6}, "the model reads at most 512 tokens"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_start(
    model: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(recipe(model, tmp_path / "run", {**SCORE, **changes}), Terminal(quiet=True))


def test_a_model_that_is_trained_later_cannot_be_asked(model: Path, tmp_path: Path) -> None:
    stages = {"scored": {**SCORE, "models": ["tuned"]}, "tuned": POFT}
    with pytest.raises(UserError, match="'scored' reads 'tuned', which runs only after it"):
        plan(small_recipe(model, tmp_path / "run", stages), Terminal(quiet=True))
