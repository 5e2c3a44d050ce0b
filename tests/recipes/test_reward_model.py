"""A reward model from pairs, what transformers reads of its folder, and who asks it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from running import manifest, metrics, run_quietly
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posttrain.data import Origin, Sequence
from posttrain.data.scores import REWARDS
from posttrain.data.whole_answer import whole_answer
from posttrain.errors import UserError
from posttrain.policy import Policy
from posttrain.policy.scoring import scored
from posttrain.recipe import Recipe, read_recipe
from posttrain.training.ranks import Ranks
from posttrain.training.step import score_sequences

SMALL = ["data.train.count=16", "data.test.count=4", "answers.n=6", "answers.max_new_tokens=40", "best.n=4"]
SMALL += ["judge.steps=3", "judge.lr=1e-3", "train.steps=1", "train.rollouts.prompts=2", "train.rollouts.n=3"]
SMALL += ["test_answers.n=6", "test_answers.max_new_tokens=40"]
SMALL += ["train.rollouts.max_new_tokens=24", "best.max_new_tokens=40", "test.max_new_tokens=8"]


def small(out: Path, *more: str) -> Recipe:
    return read_recipe("reward-model", [*SMALL, *more, f"out={out}"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reward-model")
    run_quietly(small(out))
    return out


def answers(count: int = 7) -> list[Sequence]:
    """Random ones of different lengths, which share beginnings."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 600, 5)
    found = []
    for row in range(count):
        tokens = np.concatenate([prompt, rng.integers(0, 600, 1 + 3 * row)]).astype(np.int32)
        target = np.arange(len(tokens)) >= 5
        origin = np.where(target, Origin.ROLLOUT, Origin.PROMPT).astype(np.uint8)
        found.append(Sequence(tokens, target, origin, str(row), "one question"))
    return found


def by_transformers(folder: Path, sequences: list[Sequence]) -> list[float]:
    """A batch that is padded on the right, as a user would have it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id
    batch = tokenizer.pad(
        {"input_ids": [s.tokens.tolist() for s in sequences]}, padding_side="right", return_tensors="pt"
    )
    with torch.no_grad():
        return model(**batch).logits[:, 0].tolist()


def test_the_recipe_runs_and_the_reward_model_learns(finished: Path) -> None:
    assert manifest(finished)["status"] == "finished"
    rows = [row for row in metrics(finished) if row["stage"] == "judge"]
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)  # a head of 0 knows nothing
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert "nll" not in rows[0]
    assert {"reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward"} < rows[0].keys()
    best = json.loads((finished / "results" / "best.json").read_text())["metrics"]
    assert best["reranked@1"] == pytest.approx(best["accuracy"])
    assert best["reranked@4"] <= best["pass@4"]
    held_out = json.loads((finished / "results" / "held_out.json").read_text())["metrics"]
    assert 0 <= held_out["reward_accuracy"] <= 1


def test_the_share_of_pairs_that_a_reward_model_is_right_about_is_measured(finished: Path, tmp_path: Path) -> None:
    question = {"role": "user", "content": "What is 1 + 1?"}
    sides = [[{"role": "assistant", "content": text}] for text in ("2", "Compute 7, then 3.", "11 is it")]
    pairs = [(one, other) for one in sides for other in sides if one != other]
    rows = [{"prompt": [question], "chosen": one, "rejected": other} for one, other in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate(
        {
            "name": "measured",
            "model": str(finished / "models" / "judge"),
            "data": {"pairs": str(tmp_path / "pairs.jsonl")},
            "stages": {"held_out": {"kind": "evaluate", "data": "pairs"}},
            "out": str(tmp_path / "run"),
        }
    )
    run_quietly(recipe)
    found = json.loads((tmp_path / "run" / "results" / "held_out.json").read_text())["metrics"]
    assert found["pairs"] == 6
    assert found["reward_accuracy"] == 0.5  # every pair comes in both orders
    assert found["reward_margin"] == pytest.approx(0, abs=1e-6)


def test_what_a_stage_wrote_without_pairs_is_refused_by_its_name(finished: Path, tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "1 + 1?"}], "completion": [{"role": "assistant", "content": "2"}]}
    (tmp_path / "plain.jsonl").write_text(json.dumps(row) + "\n")
    stages = {
        "kept": {"kind": "curate", "data": "plain", "steps": ["deduplicate"]},
        "held_out": {"kind": "evaluate", "data": "kept"},
    }
    recipe = Recipe.model_validate(
        {
            "name": "measured",
            "model": str(finished / "models" / "judge"),
            "data": {"plain": str(tmp_path / "plain.jsonl")},
            "stages": stages,
            "out": str(tmp_path / "run"),
        }
    )
    with pytest.raises(UserError, match="data 'kept': a reward model is measured on preference pairs"):
        run_quietly(recipe)


def test_transformers_reads_the_same_rewards_also_of_a_padded_batch(finished: Path) -> None:
    folder = finished / "models" / "judge"
    sequences = answers()
    judge = Policy.load(str(folder))
    whole = [whole_answer(sequence) for sequence in sequences]
    expected = by_transformers(folder, sequences)
    assert np.std(expected) > 1e-3
    plain = {row: float(scores["rewards"]) for row, scores in scored(judge, whole, (REWARDS,), 60)}
    assert [plain[row] for row in range(len(whole))] == pytest.approx(expected, abs=1e-5)
    shared = score_sequences(judge, 200, Ranks(), whole, (REWARDS,))
    assert [float(scores["rewards"]) for scores in shared] == pytest.approx(expected, abs=1e-5)


def test_an_answer_is_worth_what_its_whole_text_is_worth(finished: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished / "models" / "judge")
    rows = [json.loads(line) for line in (finished / "samples" / "train.jsonl").read_text().splitlines()]
    ended = [row for row in rows if row["finish_reason"] == "stop"][:3]
    assert ended
    sequences = []
    for row in ended:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=False
        )
        tokens = np.array(tokenizer.encode(prompt + row["text"] + "<|im_end|>", add_special_tokens=False), np.int32)
        sequences.append(Sequence(tokens, np.zeros(len(tokens), bool), np.zeros(len(tokens), np.uint8), "x"))
    assert [row["value"] for row in ended] == pytest.approx(
        by_transformers(finished / "models" / "judge", sequences), abs=1e-4
    )


@pytest.mark.parametrize(
    "more",
    [
        ["judge.objective=outcome"],
        ["judge.objective=outcome", "feedback.steps=[{name: label, scalar: chosen}]"],
        ["judge.adapter=lora"],
    ],
)
def test_reward_models_of_other_kinds_are_saved_and_asked(more: list[str], tmp_path: Path) -> None:
    recipe = small(tmp_path, *more)
    stages = {name: recipe.stages[name] for name in ("answers", "feedback", "judge", "best")}
    run_quietly(recipe.model_copy(update={"stages": stages}))
    assert manifest(tmp_path)["status"] == "finished"
    assert Policy.load(str(tmp_path / "models" / "judge")).is_reward


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["best.rerank=base"], "is asked for rewards, but is a language model"),
        (["train.rollouts.reward={name: learned, model: base}"], "is asked for rewards, but is a language model"),
        (["best.model=judge"], "'rerank' is measured along answers, and 'judge' is a reward model"),
        (["test.model=judge", "test.reference=null"], "measured on preference pairs, and there are none"),
        (["test_answers.model=judge"], "reward model, which cannot answer"),
        (["train.init_from=judge"], "it learns by 'bradley_terry' or 'outcome'"),
        (["judge.objective=[bradley_terry, nll]"], "'nll' needs the next token"),
        (["judge.watch={data: test, every: 1}"], "'watch' has no meaning"),
    ],
)
def test_what_a_reward_model_cannot_do_is_said_before_anything_runs(
    more: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run_quietly(small(tmp_path, *more))
    assert not (tmp_path / "models").exists()


def test_one_answer_leaves_nothing_to_choose(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set n to 2 or more"):
        small(tmp_path, "best.n=1")
