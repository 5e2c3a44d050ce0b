"""Numbers of a row reach the loss that reads them; a loss whose numbers are not there is refused before the start."""

import json

import numpy as np
import pytest
from architectures import build, tokenizer

from posttrain.data import Sample
from posttrain.data.encoding import encode
from posttrain.data.readers import read_samples
from posttrain.data.rendering import Rendering
from posttrain.data.sample import assistant, user
from posttrain.errors import UserError
from posttrain.recipe import check_recipe
from posttrain.run import plan, run
from posttrain.terminal import Terminal

PLAIN = Rendering(64, template="none")


def sample(text, scalars=None, **fields):
    return Sample((user(text),), (assistant("yes"),), scalars=scalars or {}, **fields)


def test_scalars_are_kept_with_the_tokens_and_are_part_of_their_name(tmp_path):
    rows = [sample("a"), sample("b", {"score": -1.5}), sample("c", {"score": 0.0, "bad": 1.0})]
    stored = encode(rows, tokenizer(), PLAIN, tmp_path)
    again = encode(rows, tokenizer(), PLAIN, tmp_path)
    assert again.folder == stored.folder
    assert [dict(sequence.scalars) for sequence in again] == [dict(row.scalars) for row in rows]
    assert [s.sample_id for s in again.kinds()] == [rows[0].id]
    other = encode([*rows[:2], sample("c", {"score": 0.5})], tokenizer(), PLAIN, tmp_path)
    assert [sequence.scalars.get("score") for sequence in other] == [None, -1.5, 0.5]


def test_both_sides_of_a_pair_have_the_numbers_of_their_row(tmp_path):
    rows = [sample("a", {"weight": 2.0}, rejected=(assistant("no"),)), sample("b", rejected=(assistant("no"),))]
    stored = encode(rows, tokenizer(), PLAIN, tmp_path, pairs=True)
    assert [dict(s.scalars) for s in stored] == [
        {"weight": 2.0, "chosen": 1.0},
        {"weight": 2.0, "chosen": 0.0},
        {"chosen": 1.0},
        {"chosen": 0.0},
    ]
    assert [s.sample_id for s in stored.kinds()] == [rows[0].id] * 2 + [rows[1].id] * 2


def test_a_sample_goes_to_json_and_back_with_its_numbers():
    row = sample("a", {"score": 1.5})
    assert Sample.from_json(json.loads(json.dumps(row.to_json()))) == row
    assert row.id == sample("a").id


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("high", "'score' is text 'high'; it has to be a number"),
        (None, "column 'score', named in scalars, is not here"),
    ],
)
def test_what_is_no_number_is_refused_with_its_row(tmp_path, value, said):
    rows = [{"prompt": "a", "completion": "b", "score": 1}, {"prompt": "a", "completion": "b", "score": value}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=f"line 2 .*{said}"):
        list(read_samples(str(tmp_path / "d.jsonl"), scalars=["score"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("scalars")
    build("llama").save_pretrained(place / "model")
    tokenizer().save_pretrained(place / "model")
    rows = [{"prompt": f"{n} + 1 =", "completion": f"{n + 1}", "reference_score": -n / 4} for n in range(8)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def recipe(folder, out, objective, scalars):
    stage = {"kind": "train", "objective": objective, "batch_size": 4, "checkpoint_every": None, "template": "none"}
    return check_recipe(
        {
            "name": "scalars",
            "out": str(folder / out),
            "model": str(folder / "model"),
            "data": {"train": {"path": str(folder / "rows.jsonl"), "scalars": scalars}},
            "stages": {"tuned": stage},
        }
    )


def test_poft_trains_on_the_scores_of_the_rows(folder):
    run(recipe(folder, "poft", "poft", ["reference_score"]), Terminal(quiet=True))
    rows = [json.loads(line) for line in (folder / "poft" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([row["reference_score"] for row in rows]) == pytest.approx(-3.5 / 4)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("poft", "has no scalar 'reference_score'"),
        ("unlikelihood", "does not say whether it is bad"),
        ({"name": "nll", "where": "kept"}, "has no scalar 'kept'"),
        ({"name": "nll", "weight_column": "weight"}, "has no weight column 'weight'"),
    ],
)
def test_a_loss_whose_numbers_the_data_lack_is_refused_by_the_plan(folder, objective, said):
    with pytest.raises(UserError, match=said):
        plan(recipe(folder, "refused", objective, []), Terminal(quiet=True))
