"""Every kind of file and shape of row, and one message for every way in which they can be wrong."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data import Sample, assistant, user
from posttrain.data import readers as readers_module
from posttrain.data.readers import fingerprint, read_samples
from posttrain.errors import UserError

QUESTION = ({"role": "user", "content": "2 + 2?"},)
ANSWER = ({"role": "assistant", "content": "4"},)


def _write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _read_one(tmp_path, row, **options) -> Sample:
    (sample,) = read_samples(_write(tmp_path / "rows.jsonl", row), **options)
    return sample


def _error(tmp_path, *rows, **options) -> str:
    with pytest.raises(UserError) as caught:
        list(read_samples(_write(tmp_path / "rows.jsonl", *rows), **options))
    return str(caught.value)


CHAT_ROWS = {
    "sample": {"prompt": list(QUESTION), "response": list(ANSWER)},
    "messages": {"messages": [*QUESTION, *ANSWER]},
    "completion": {"prompt": "2 + 2?", "completion": "4"},
    "completion of turns": {"prompt": list(QUESTION), "completion": list(ANSWER)},
    "alpaca": {"instruction": "2 + 2?", "input": "", "output": "4"},
    "sharegpt": {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    "question_answer": {"question": "2 + 2?", "answer": "4"},
}


@pytest.mark.parametrize("row", CHAT_ROWS.values(), ids=list(CHAT_ROWS))
def test_every_shape_of_the_same_chat_gives_the_same_sample(tmp_path, row):
    sample = _read_one(tmp_path, row)
    assert (sample.prompt, sample.response) == (QUESTION, ANSWER)
    assert sample.id == Sample(QUESTION, ANSWER).id
    assert sample.meta == {"source": str(tmp_path / "rows.jsonl"), "row": 1}


def test_our_own_rows_come_back_equal(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    sample = Sample(
        (user("a"), call, {"role": "tool", "content": ""}, user("b")),
        (assistant("c"),),
        (assistant("d"),),
        answer="7",
        task="sums",
        tools=({"name": "f"},),
        meta={"style": "short"},
    )
    back = _read_one(tmp_path, sample.to_json())
    assert back.id == sample.id
    assert back.meta["style"] == "short"


def test_messages_are_cut_before_the_last_assistant_turn(tmp_path):
    turns = [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]
    tools = [{"name": "f"}]
    sample = _read_one(tmp_path, {"messages": turns, "tools": json.dumps(tools)})
    assert sample.prompt == tuple(turns[:3])
    assert sample.response == tuple(turns[3:])
    assert sample.tools == tuple(tools)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": list(QUESTION), "chosen": [assistant("4")], "rejected": [assistant("5")]},
        {"chosen": [*QUESTION, assistant("4")], "rejected": [*QUESTION, assistant("5")]},
        {"prompt": "2 + 2?", "chosen": [*QUESTION, assistant("4")], "rejected": [*QUESTION, assistant("5")]},
    ],
)
def test_preference_rows_of_all_forms_give_the_same_pair(tmp_path, row):
    sample = _read_one(tmp_path, row)
    assert (sample.prompt, sample.response, sample.rejected) == (QUESTION, ANSWER, (assistant("5"),))


def test_identical_sides_of_an_implicit_pair_still_keep_their_answers(tmp_path):
    sample = _read_one(tmp_path, {"chosen": [*QUESTION, *ANSWER], "rejected": [*QUESTION, *ANSWER]})
    assert (sample.prompt, sample.response, sample.rejected) == (QUESTION, ANSWER, ANSWER)


def test_a_prompt_alone_is_an_unlabelled_sample(tmp_path):
    sample = _read_one(tmp_path, {"prompt": "2 + 2?", "solution": 4}, columns={"solution": "answer"})
    assert (sample.prompt, sample.response, sample.answer) == (QUESTION, (), "4")


def test_the_final_answer_is_what_follows_four_hashes(tmp_path):
    sample = _read_one(tmp_path, {"question": "a", "answer": "1 + 1 = 2\n#### 2"})
    assert sample.answer == "2"
    assert sample.response_text == "1 + 1 = 2\n#### 2"


def test_alpaca_input_system_and_history_are_kept(tmp_path):
    row = {"instruction": "Add.", "input": "2, 2", "output": "4", "system": "Be brief.", "history": [["a", "b"]]}
    sample = _read_one(tmp_path, row)
    assert [turn["content"] for turn in sample.prompt] == ["Be brief.", "a", "b", "Add.\n2, 2"]


def test_columns_are_renamed(tmp_path):
    row = {"problem": "2 + 2?", "solution": "4", "prompt": "not this"}
    sample = _read_one(tmp_path, row, columns={"problem": "prompt", "solution": "completion"})
    assert (sample.prompt, sample.response) == (QUESTION, ANSWER)


def test_limit_stops_the_reading(tmp_path):
    path = _write(tmp_path / "rows.jsonl", *[CHAT_ROWS["completion"]] * 3)
    assert len(list(read_samples(path, limit=2))) == 2
    with pytest.raises(UserError, match="limit is 0"):
        read_samples(path, limit=0)


# --- kinds of files ---------------------------------------------------------------------------------------------------

ROWS = [
    {"messages": [user(f"2 + {number}?"), {"role": "assistant", "content": "x", "name": None}][: 2 + number % 2]}
    for number in range(5)
]


def _as_jsonl(path):
    return _write(path / "rows.jsonl", *ROWS)


def _as_json(path):
    (path / "rows.json").write_text(json.dumps(ROWS, indent=2))
    return str(path / "rows.json")


def _as_json_lines(path):
    return _write(path / "lines.json", *ROWS)


def _as_parquet(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path / "rows.parquet")
    return str(path / "rows.parquet")


def _as_csv(path):
    cells = ['"' + json.dumps(row["messages"]).replace('"', '""') + '"' for row in ROWS]
    (path / "rows.csv").write_text("\n".join(["messages", *cells]))
    return str(path / "rows.csv")


def _as_folder(path):
    datasets.Dataset.from_list(ROWS).save_to_disk(path / "folder")
    return str(path / "folder")


@pytest.mark.parametrize("make", [_as_jsonl, _as_json, _as_json_lines, _as_parquet, _as_csv, _as_folder])
def test_every_kind_of_file_gives_the_same_samples(tmp_path, make):
    path = make(tmp_path)
    samples = list(read_samples(path))
    plain = [Sample((user(f"2 + {number}?"),), (assistant("x"),)) for number in range(5)]
    assert [sample.id for sample in samples] == [sample.id for sample in plain]
    assert [sample.meta["row"] for sample in samples] == [1, 2, 3, 4, 5]
    assert {sample.meta["source"] for sample in samples} == {path}


def test_nulls_that_arrow_fills_in_are_keys_that_a_row_did_not_have(tmp_path):
    calls = [{"function": {"name": name, "arguments": {name: 1}}} for name in ("add", "times")]
    turns = [[user("a"), {"role": "assistant", "content": "", "tool_calls": [call]}] for call in calls]
    table = pyarrow.Table.from_pylist([{"messages": chat} for chat in turns])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    samples = list(read_samples(str(tmp_path / "rows.parquet")))
    assert [sample.id for sample in samples] == [Sample(tuple(chat[:1]), tuple(chat[1:])).id for chat in turns]


def test_a_broken_row_of_an_array_is_named_with_its_line_however_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(readers_module, "_CHUNK", 64)
    rows = [json.dumps({"prompt": "a", "completion": "b"})] * 50
    (tmp_path / "rows.json").write_text("[" + ",\n".join([*rows, '{"prompt" "a"}', *rows]) + "]")
    with pytest.raises(UserError, match="near line 51: broken JSON"):
        list(read_samples(str(tmp_path / "rows.json")))


def test_a_broken_row_far_into_a_file_is_met_only_when_it_is_reached(tmp_path):
    for name in ("rows.jsonl", "rows.json"):
        path = tmp_path / name
        good = json.dumps({"prompt": "x" * 5000, "completion": "y"})
        text = f"[{', '.join([good] * 100)}, {{broken" if name == "rows.json" else f"{good}\n" * 100 + "{broken"
        path.write_text(text)
        samples = read_samples(str(path))
        for _ in range(100):
            next(samples)
        with pytest.raises(UserError, match="broken JSON"):
            next(samples)


@given(
    rows=st.lists(st.dictionaries(st.text(), st.text() | st.none() | st.lists(st.integers()))), chunk=st.integers(1, 40)
)
def test_a_json_array_is_read_in_pieces_as_it_is_read_whole(tmp_path_factory, rows, chunk):
    path = tmp_path_factory.mktemp("json") / "rows.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers_module, "_CHUNK", chunk)
        assert [row for _, row in readers_module._json_rows(path)] == rows


def test_splits_of_a_folder_are_picked_by_name(tmp_path):
    rows = datasets.Dataset.from_list([CHAT_ROWS["completion"]])
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "two")
    datasets.DatasetDict(a=rows, b=rows).save_to_disk(tmp_path / "none_is_train")
    assert len(list(read_samples(str(tmp_path / "two")))) == 1
    assert len(list(read_samples(str(tmp_path / "two"), split="test"))) == 1
    with pytest.raises(UserError, match="no split 'valid'; set split to one of: train, test"):
        read_samples(str(tmp_path / "two"), split="valid")
    with pytest.raises(UserError, match="set split to one of: a, b"):
        read_samples(str(tmp_path / "none_is_train"))


def test_a_hub_name_is_loaded_by_the_datasets_library(monkeypatch):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return datasets.DatasetDict(train=datasets.Dataset.from_list([CHAT_ROWS["question_answer"]]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (sample,) = read_samples("openai/gsm8k:main")
    assert asked == [("openai/gsm8k", "main")]
    assert sample.prompt == QUESTION


def test_a_hub_name_that_cannot_be_loaded_is_a_user_error(monkeypatch):
    def load_dataset(*arguments):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"'no/where' is no file or folder here.*offline"):
        read_samples("no/where")


def test_the_fingerprint_changes_with_content_and_options(tmp_path):
    path = _write(tmp_path / "rows.jsonl", CHAT_ROWS["completion"])
    first = fingerprint(path)
    assert fingerprint(path) == first
    assert fingerprint(path, limit=1) != first
    assert fingerprint(path, columns={"prompt": "question"}) != first
    _write(tmp_path / "rows.jsonl", CHAT_ROWS["messages"])
    assert fingerprint(path) != first
    folder = _as_folder(tmp_path)
    assert fingerprint(folder) == fingerprint(folder)


# --- what can be wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "'messages' is an empty list"),
        ({"messages": 5}, "'messages' is a number 5; it has to be a list"),
        ({"messages": [{"from": "human", "value": "a"}]}, "every turn is an object with 'role' and 'content'"),
        ({"messages": [{"role": "human", "content": "a"}]}, "'messages[0].role' is text 'human'; allowed: system"),
        ({"messages": [user("a"), assistant(" ")]}, "'messages[1].content' of role 'assistant' is empty"),
        ({"messages": [user("a"), {"role": "assistant"}]}, "'messages[1].content' of role 'assistant' is missing"),
        ({"messages": [user("a"), assistant(4)]}, "'messages[1].content' is a number 4; it has to be text"),
        ({"messages": [user("a")]}, "'messages' has no turn of 'assistant' (roles: user)"),
        ({"prompt": "a", "completion": [user("b")]}, "'completion' starts with a turn of 'user'"),
        ({"prompt": "", "completion": "b"}, "'prompt' is empty"),
        ({"instruction": "a", "output": None}, "column 'output' is missing (columns here: instruction, output)"),
        (
            {"conversations": [{"from": "martian", "value": "a"}]},
            "'conversations[0].from' is 'martian'; allowed: system",
        ),
        ({"conversations": [{"from": "gpt", "value": ""}]}, "'conversations[0].value' of role 'assistant' is empty"),
        ({"question": "a", "answer": 4}, "'answer' is a number 4; it has to be text"),
        ({"chosen": "a", "rejected": "b"}, "column 'prompt' is missing"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
            "differs from the other side",
        ),
        ({"messages": [user("a"), assistant("b")], "tools": ["f"]}, "'tools[0]' is text 'f'"),
        ({"text": "a"}, "columns text fit no known shape"),
        ({"messages": [], "question": "a", "answer": "b"}, "fit several shapes: messages, question_answer"),
        (["a"], "a row has to be a JSON object, found list"),
        ({"prompt": "\ud800", "completion": "b"}, "text that is not Unicode"),
    ],
)
def test_a_bad_row_is_named_with_file_line_and_field(tmp_path, row, message):
    text = _error(tmp_path, row)
    assert message in text
    assert f"{tmp_path / 'rows.jsonl'}, line 1" in text


def test_the_line_and_the_shape_of_a_later_bad_row_are_named(tmp_path):
    text = _error(tmp_path, CHAT_ROWS["alpaca"], {"instruction": "a", "ouput": "b"})
    assert "rows.jsonl, line 2 (read as shape 'alpaca')" in text
    assert "column 'output' is missing (columns here: instruction, ouput); did you mean 'ouput'?" in text
    assert "columns: {<their name>: output}" in text


def test_broken_json_is_named_with_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(CHAT_ROWS["completion"]) + '\n\n{"prompt": "a", "completion": "b"\n')
    with pytest.raises(UserError, match="line 3: broken JSON"):
        list(read_samples(str(path)))
    (tmp_path / "rows.json").write_text('[\n{"prompt": "a", "completion": "b"}\n{"prompt": "c"}]')
    with pytest.raises(UserError, match="near line 3: broken JSON"):
        list(read_samples(str(tmp_path / "rows.json")))
    (tmp_path / "rows.json").write_text('{\n"data": []}')
    with pytest.raises(UserError, match="either an array of objects or one object a line"):
        list(read_samples(str(tmp_path / "rows.json")))


@pytest.mark.parametrize(
    ("name", "text"), [("rows.jsonl", "\n\n"), ("rows.json", "[]"), ("rows.json", ""), ("rows.csv", "a,b")]
)
def test_an_empty_file_is_a_user_error(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="has no rows"):
        list(read_samples(str(tmp_path / name)))


def test_missing_and_unreadable_files_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "\xe4"}'.encode("latin-1"))
    for name, message in {
        "data/train.jsonl": "no such file or folder: data/train.jsonl",
        "nothing": "no such file or folder: nothing",
        "rows.txt": "unknown kind of file '.txt'; known: .jsonl, .json, .parquet, .csv",
        "empty": "no folder of datasets.save_to_disk",
    }.items():
        with pytest.raises(UserError, match=message):
            read_samples(name)
    with pytest.raises(UserError, match=r"did you mean 'latin\.jsonl'\? Give"):
        read_samples("latn.jsonl")
    with pytest.raises(UserError, match="not a Parquet file"):
        list(read_samples("rows.parquet"))
    with pytest.raises(UserError, match="line 1: not UTF-8"):
        list(read_samples("latin.jsonl"))


def test_wrong_options_are_refused_at_once(tmp_path):
    path = _write(tmp_path / "rows.jsonl", CHAT_ROWS["completion"])
    with pytest.raises(UserError, match="unknown shape 'mesages': did you mean 'messages'"):
        read_samples(path, shape="mesages")
    with pytest.raises(UserError, match="renamed to 'promt', which no shape reads: did you mean 'prompt'"):
        read_samples(path, columns={"a": "promt"})
    with pytest.raises(UserError, match=r"renamed to 'frage', which no shape reads: turn it round, {frage: prompt}"):
        read_samples(path, columns={"prompt": "frage"})
    with pytest.raises(UserError, match="is a file and has no splits"):
        read_samples(path, split="train")
    assert "column 'problem', named in columns, is not here" in _error(
        tmp_path, CHAT_ROWS["completion"], columns={"problem": "prompt"}
    )


def test_a_csv_row_with_too_many_cells_is_named(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\na,b,c\n")
    with pytest.raises(UserError, match="row 2: more cells than the header"):
        list(read_samples(str(tmp_path / "rows.csv")))


# --- real data --------------------------------------------------------------------------------------------------------


def test_gsm8k_is_read_whole(shared_data):
    samples = list(read_samples(str(shared_data / "gsm8k" / "test.jsonl")))
    assert len(samples) == 1319
    assert samples[0].answer == "18"
    assert len({sample.id for sample in samples}) == 1319


def test_toolrl_is_read_from_json_and_parquet(shared_data):
    demonstrations = list(read_samples(str(shared_data / "toolrl" / "rlla_sft.json")))
    assert len(demonstrations) == 400
    assert all(sample.response for sample in demonstrations)
    prompts = list(read_samples(str(shared_data / "toolrl" / "test.parquet")))
    assert [turn["role"] for turn in prompts[0].prompt] == ["system", "user"]
    assert not prompts[0].response
