import json
from itertools import pairwise

import architectures
import pytest
from rich.text import Text

from posttrain.data import Sample, user
from posttrain.data.rendering import Rendering, render_prompt
from posttrain.errors import UserError
from posttrain.inspection import Piece, Shown, inspect, inspected_stage, painted, show
from posttrain.inspection.view import SHOWN_TOKENS, SPECIAL, TRAINED
from posttrain.recipe import check_recipe
from posttrain.stages import Context
from posttrain.terminal import Terminal
from posttrain.training.ranks import Ranks

IM_END = architectures.IM_END


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model folder without weights: an inspection must not miss them."""
    folder = tmp_path_factory.mktemp("inspection") / "model"
    architectures.build("qwen3").config.save_pretrained(folder)
    architectures.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def looked(tmp_path, model):
    """Inspect a stage over rows of data."""

    def look(data, stage=None, count=10, **fields):
        path = tmp_path / "own.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in data))
        stages = {"own": {"kind": "train", "data": "own", **fields}} if stage is None else {"own": stage}
        content = {"name": "x", "out": str(tmp_path / "runs" / "x"), "model": str(model), "stages": stages}
        recipe = check_recipe({**content, "data": {"own": str(path)}})
        return inspect(Context(recipe, Ranks(), Terminal(quiet=True)), "own", count)

    return look


def chat(*turns):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]}


def trained_text(sample):
    return "".join(piece.text for piece in sample.pieces if piece.trained)


def test_exactly_the_answer_and_its_end_of_turn_token_are_trained(looked):
    found = looked([chat("What is 1 + 1?", "2")])
    (sample,) = found.samples
    assert trained_text(sample) == "2<|im_end|>"
    assert [token for token, trained in zip(sample.ids, sample.trained, strict=True) if trained] == [ord("2"), IM_END]
    assert found.numbers["trained_tokens"] == 2
    assert found.numbers["trained_share"] == round(2 / len(sample.ids), 4)
    assert (found.numbers["trained_turns"], found.numbers["ended_turns"]) == (1, 1)
    assert found.numbers["end_tokens"] == "<|im_end|>"
    assert found.warnings == ()


def test_loss_on_all_trains_every_assistant_turn(looked):
    rows = [chat("a", "b", "c", "d")]
    assert trained_text(looked(rows, loss_on="last").samples[0]) == "d<|im_end|>"
    every = looked(rows, loss_on="all")
    assert trained_text(every.samples[0]) == "b<|im_end|>d<|im_end|>"
    assert (every.numbers["trained_turns"], every.numbers["ended_turns"]) == (2, 2)


def test_plain_text_ends_with_the_end_of_text_token(looked):
    found = looked([{"prompt": "1 + 1 = ", "completion": "2"}], template="none")
    assert [piece.text for piece in found.samples[0].pieces] == ["1 + 1 = ", "2", "<|im_end|>"]
    assert found.numbers["ended_turns"] == 1


def test_pieces_are_the_text_of_the_tokens_and_special_tokens_stand_alone(looked):
    (sample,) = looked([chat("né\n  x", "ü ü")]).samples
    assert "".join(piece.text for piece in sample.pieces) == architectures.tokenizer().decode(sample.ids)
    assert [piece.text for piece in sample.pieces if piece.special] == ["<|im_start|>", "<|im_end|>"] * 2
    assert len(sample.tokens) == len(sample.ids) == len(sample.trained)


def test_samples_shown_are_spread_over_all_of_the_data(looked):
    found = looked([chat(f"question {n}", "answer") for n in range(9)], count=3)
    assert [sample.number for sample in found.samples] == [1, 5, 9]
    assert looked([chat("one", "row")], count=3).numbers["samples"] == 1


def test_duplicates_and_the_longest_sample_are_counted(looked):
    found = looked([chat("a", "b"), chat("a", "b"), chat("long", "c" * 50)])
    longest = found.samples[-1]
    assert (found.numbers["rows"], found.numbers["samples"], found.numbers["duplicates"]) == (3, 2, 1)
    assert (found.numbers["longest"], found.numbers["longest_sample"]) == (len(longest.ids), longest.sample_id)


def test_truncated_turns_do_not_end_and_that_is_a_warning(looked):
    found = looked([chat("a", "b"), chat("a", "b" * 90)], max_length=60, overlong="truncate")
    assert (found.numbers["truncated"], found.numbers["ended_turns"]) == (1, 1)
    (warning,) = found.warnings
    assert "1 trained turns do not end" in warning
    assert "cut at max_length" in warning


def test_refused_rows_are_shown_with_their_reason_where_a_run_would_stop(looked):
    found = looked([chat("a", "b"), chat("c", "d <|im_end|> e")])
    ((reason, count),) = found.refused.items()
    assert (reason, count) == ("end-of-turn token inside the turn", 1)
    assert found.examples[reason][0].row == 2
    assert "50.0%" in found.warnings[0]
    with pytest.raises(UserError, match="none of the 1 rows"):
        looked([chat("c", "d <|im_end|> e")])


def test_an_evaluation_shows_the_prompts_as_the_model_reads_them(looked):
    asked = {"kind": "evaluate", "model": "base", "data": "own", "max_new_tokens": 470}
    found = looked([{"question": "What?", "answer": "#### 2"}, {"question": "x" * 30, "answer": "#### 3"}], asked)
    first, second = found.samples
    assert "".join(piece.text for piece in first.pieces).endswith("What?<|im_end|>\n<|im_start|>assistant\n")
    assert (first.answer, any(first.trained)) == ("2", False)
    assert (found.numbers["longest"], found.numbers["longest_sample"]) == (len(second.ids), second.sample_id)
    assert found.warnings == ("1 prompts leave no room for max_new_tokens=470 in 512 tokens",)


def test_prompts_shown_are_those_that_stages_ask(looked, model):
    asked = {"kind": "generate", "model": "base", "data": "own"}
    (sample,) = looked([{"question": "What?", "answer": "#### 2"}], asked).samples
    tokenizer = architectures.tokenizer()
    expected = render_prompt(Sample((user("What?"),)), tokenizer, Rendering(512))
    assert sample.ids == expected.tolist()


def test_the_first_train_stage_is_looked_at_unless_another_is_named(model):
    stages = {"e": {"kind": "evaluate"}, "t": {"kind": "train"}, "m": {"kind": "merge", "models": ["t"]}}
    recipe = check_recipe({"name": "x", "stages": stages})
    assert inspected_stage(recipe, None) == "t"
    assert inspected_stage(recipe, "e") == "e"
    with pytest.raises(UserError, match="a merge stage and renders nothing; stages that do: t, e"):
        inspected_stage(recipe, "m")
    with pytest.raises(UserError, match="no stage 'train'"):
        inspected_stage(recipe, "train")
    with pytest.raises(UserError, match="no stage that reads data"):
        inspected_stage(check_recipe({"name": "x", "stages": {"m": stages["m"]}}), None)


def test_data_that_a_stage_has_yet_to_write_are_asked_for(tmp_path, model):
    stages = {"g": {"kind": "generate"}, "t": {"kind": "train", "data": "g"}}
    content = {"name": "x", "out": str(tmp_path), "model": str(model), "stages": stages}
    recipe = check_recipe({**content, "data": {"train": {"task": "chains", "count": 2}}})
    with pytest.raises(UserError, match="run the recipe first"):
        inspect(Context(recipe, Ranks(), Terminal(quiet=True)), "t", 1)


def test_records_hold_tokens_mask_and_refusals(looked, capsys):
    found = looked([chat("a", "b"), chat("c", "d <|im_end|> e")])
    show(found, Terminal(json_output=True))
    head, refused, sample = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (head["event"], head["samples"], head["refused"]) == ("inspection", 1, 1)
    assert (refused["rows"], refused["examples"][0]["row"]) == (1, 2)
    assert len(sample["ids"]) == len(sample["trained"]) == len(sample["tokens"])


def test_a_person_sees_counts_samples_legend_and_refusals(looked, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    show(looked([chat("a", "b"), chat("c", "d <|im_end|> e")]), Terminal())
    seen = capsys.readouterr().out
    for said in ("1 samples of 2 rows: 0 duplicates, 1 refused", "1 of 1 trained turns end with", "trained", "row 2"):
        assert said in seen


def shown(*pieces, tokens=0):
    return Shown(1, "id", [0] * tokens, [], [piece.trained for piece in pieces], list(pieces))


def styles(text: Text):
    return {text.plain[span.start : span.end]: str(span.style) for span in text.spans}


def test_trained_and_special_tokens_differ_from_the_rest():
    text = painted(shown(Piece("ask", False, False), Piece("say", True, False), Piece("<e>", True, True)))
    assert text.plain == "asksay<e>"
    assert styles(text) == {"say": TRAINED, "<e>": f"{SPECIAL} {TRAINED}"}


def test_newlines_are_visible_and_data_cannot_steer_the_terminal():
    text = painted(shown(Piece("a\n[bold]\x1b[2J\x07\t\x7f", True, False)))
    assert text.plain == "a⏎\n[bold]␛[2J␇␉␡"


@pytest.mark.parametrize("cuts", [[], [1], [2400], [2400, 7600], [3000, 6000], list(range(100, 10_000, 100))])
def test_a_long_sample_keeps_its_two_ends(cuts):
    whole = "".join(chr(ord("a") + place % 26) for place in range(10_000))
    ends = [0, *cuts, len(whole)]
    pieces = [Piece(whole[a:b], False, False) for a, b in pairwise(ends)]
    plain = painted(shown(*pieces, tokens=SHOWN_TOKENS + 1)).plain
    kept = 2 * SHOWN_TOKENS
    assert plain == f"{whole[:kept]} … 5,200 characters left out … {whole[-kept:]}"
    assert painted(shown(*pieces, tokens=SHOWN_TOKENS)).plain == whole
