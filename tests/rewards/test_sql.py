import sqlite3

import numpy as np
import pytest

from posttrain.data import Sample, user
from posttrain.errors import UserError
from posttrain.rewards import Attempt, build_reward
from posttrain.rewards import sql as sql_module
from posttrain.rewards.sql import (
    Database,
    QueryResult,
    is_ordered,
    query_text,
    run_queries,
    same_query,
    same_rows,
    score_queries,
    sql,
    verify_sql,
)

SCHEMA = """
CREATE TABLE pets (name TEXT, kind TEXT, age INT);
INSERT INTO pets VALUES ('Rex', 'dog', 3), ('Tom', 'cat', 5), ('Ada', 'cat', NULL);
"""
PETS = Database(script=SCHEMA)
GOLD = "SELECT name FROM pets WHERE kind = 'cat'"


def question(answer=GOLD, schema=SCHEMA, **meta):
    return Sample((user("Which cats?"),), answer=answer, meta={"schema": schema, **meta})


def reason(text, answer=GOLD, **meta):
    score = verify_sql(question(answer, **meta), text)
    assert score.error is None
    return score.info["reason"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (GOLD, "found"),
        ("select NAME from PETS where KIND='cat' order by age;", "found"),
        ("SELECT name FROM pets WHERE kind <> 'dog'", "found"),
        ("SELECT p.name AS n FROM pets p WHERE p.kind IN ('cat')", "found"),
        ("SELECT name FROM pets", "wrong"),
        ("SELECT name, kind FROM pets WHERE kind = 'cat'", "wrong"),
        ("SELECT nam FROM pets", "error"),
        ("SELECT name FROM pets; SELECT name FROM pets", "error"),
        ("The cats are Tom and Ada.", "error"),
        ("", "missing"),
        ("DELETE FROM pets", "error"),
        ("DROP TABLE pets", "error"),
        ("ATTACH 'other.db' AS other", "error"),
        ("PRAGMA table_info(pets)", "error"),
        ("SELECT load_extension('x')", "error"),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n", "too_many_rows"),
    ],
)
def test_a_query_is_as_right_as_its_rows(query, expected):
    assert reason(query) == expected


def test_a_query_that_never_ends_is_wrong_and_says_so():
    query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    (score,) = score_queries(question(), [query], time_limit=0.3)
    assert (score.value, score.info["reason"], score.info["cause"]) == (0, "time", "it took more than 0.3 s")


def test_the_order_counts_where_the_right_query_has_one():
    ordered = "SELECT name FROM pets ORDER BY name"
    assert reason("SELECT name FROM pets ORDER BY name DESC", ordered) == "wrong"
    assert reason("SELECT name FROM pets ORDER BY lower(name)", ordered) == "found"


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("SELECT a FROM t\norder\n by a LIMIT 1", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT rank() OVER (PARTITION BY (b) ORDER BY a) FROM t", False),
        ("SELECT 'order by' FROM t", False),
        ('SELECT "order by", [order by] FROM t -- order by', False),
    ],
)
def test_only_the_order_of_the_query_itself_counts(query, ordered):
    assert is_ordered(query) is ordered


def test_rows_are_compared_as_bags_and_numbers_by_value():
    assert same_rows([(1, "a"), (2, None)], [(2.0, None), (1, "a")], ordered=False)
    assert not same_rows([(1,), (1,), (2,)], [(1,), (2,), (2,)], ordered=False)
    assert not same_rows([("1",)], [(1,)], ordered=False)
    assert same_rows([(0.1 + 0.2,)], [(0.3,)], ordered=True)
    assert not same_rows([(0.3001,)], [(0.3,)], ordered=True)
    assert same_rows([], [], ordered=False)


def test_what_could_not_be_run_is_an_error_and_tried_again_the_next_time(monkeypatch):
    asked = question("SELECT name FROM pets ORDER BY name, 1")
    results = [[QueryResult(None, "time", "it took more than 5 s")]]
    run = sql_module.run_queries
    monkeypatch.setattr(sql_module, "run_queries", lambda *a, **k: results.pop(0) if results else run(*a, **k))
    assert "the right query" in verify_sql(asked, GOLD).error
    assert verify_sql(asked, asked.answer).value == 1
    results.append([QueryResult(None, "broken", "the process broke down")])
    assert verify_sql(asked, GOLD).error == "the process broke down"


def test_more_databases_tell_more_queries_apart():
    lucky = "SELECT name FROM pets WHERE kind = 'cat' OR age > 3"
    assert reason(lucky) == "found"
    other = SCHEMA + "INSERT INTO pets VALUES ('Old', 'dog', 15);"
    assert reason(lucky, schema=[SCHEMA, other]) == "wrong"
    assert reason(GOLD, schema=[SCHEMA, other]) == "found"


def test_a_file_is_read_and_never_written(tmp_path):
    path = tmp_path / "zoo 1" / "zoo.sqlite"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA)
    before = path.read_bytes()
    sample = Sample((user("Which?"),), answer=GOLD, meta={"db_id": "zoo"})
    pattern = str(tmp_path / "{db_id} 1" / "{db_id}.sqlite")
    texts = [GOLD, "DELETE FROM pets", "INSERT INTO pets VALUES (1, 2, 3)"]
    assert [score.value for score in score_queries(sample, texts, database=pattern)] == [1, 0, 0]
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_is_wrong_with_the_sample_is_an_error_and_no_wrong_answer():
    assert "has no query" in verify_sql(question(None), GOLD).error
    assert "no such column: x" in verify_sql(question("SELECT x FROM pets"), GOLD).error
    assert "syntax error" in verify_sql(question(schema="CREATE TABEL pets"), GOLD).error
    with pytest.raises(UserError, match="has no database"):
        verify_sql(Sample((user("Which?"),), answer=GOLD), GOLD)
    with pytest.raises(UserError, match="has no 'db_id'"):
        score_queries(question(), [GOLD], database="{db_id}.sqlite")
    with pytest.raises(UserError, match=r"'none\.sqlite' does not exist"):
        run_queries([GOLD], Database("none.sqlite"))


@pytest.mark.parametrize(
    "text",
    [
        GOLD,
        f"  {GOLD}\n",
        f"```sql\n{GOLD}\n```",
        f"All cats:\n```\n{GOLD}\n```\nDone.",
        f"<think>SELECT 1</think>\n<answer>{GOLD}</answer>",
        f"<answer>\n```sql\n{GOLD}\n```\n</answer>",
        f"```sql\nSELECT 1\n```\nNo:\n```sql\n{GOLD}",
    ],
)
def test_the_query_is_found_in_the_answer(text):
    assert query_text(text) == GOLD


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("SELECT a FROM t", 'select "A"\n  from  T -- all', True),
        ("SELECT count(*) FROM t WHERE a != 1", "select COUNT(*) from t where a <> 1", True),
        ("SELECT a FROM t WHERE b = 'x'", "SELECT a FROM t WHERE b = 'X'", False),
        ("SELECT a, b FROM t", "SELECT b, a FROM t", False),
        ("SELECT a FROM t WHERE (", "SELECT a FROM t WHERE (", False),
    ],
)
def test_the_same_query_in_another_spelling(a, b, same):
    assert same_query(a, b) is same


def test_the_reward_scores_all_attempts_in_their_order():
    attempts = [
        Attempt(question(), text, np.zeros(1, np.int32), np.zeros(1, np.float32), "stop")
        for text in (GOLD, "SELECT 1", GOLD.replace("name", "name AS n"), "SELECT")
    ]
    assert [score.value for score in sql(attempts, 0.0)] == [1, 0, 1, 0]
    assert [score.value for score in sql(attempts, 0.0, match="exact")] == [1, 0, 0, 0]
    with pytest.raises(UserError, match="'match'"):
        build_reward({"name": "sql", "match": "nearly"})


def test_results_of_a_database_say_what_went_wrong():
    assert run_queries(["SELECT count(*) FROM pets", "SELEC"], PETS)[0].rows == ((3,),)
