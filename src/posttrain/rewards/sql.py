"""Answers that are SQL queries: run on a SQLite database, and their rows compared with those of the right query.

Execution accuracy of Spider and BIRD (arXiv 1809.08887, 2305.03111). One database tells queries apart only as far as
its rows do: several with different rows are stricter (test-suite accuracy, arXiv 2010.02840).
"""

import re
from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.rewards.attempt import Attempt
from posttrain.rewards.reward import group_reward
from posttrain.rewards.sandbox import Limits, Outcome, run_python_many
from posttrain.rewards.score import Score

Row = tuple[Any, ...]
MAX_ROWS = 10_000
_OUTPUT_BYTES = 16 << 20
_MEMORY_BYTES = 1 << 30

_BLOCK = re.compile(
    r"^[ \t]*```(?:sql|sqlite)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.IGNORECASE | re.MULTILINE
)

# Runs in a process of its own (`sandbox`): reading is all that a query is allowed.
_RUN = """
import sqlite3
connection = sqlite3.connect(address, uri=True)
connection.text_factory = lambda text: text.decode(errors="replace")
found = {}
try:
    connection.executescript(script)
    allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
    connection.set_authorizer(
        lambda action, first, second, *rest:
            sqlite3.SQLITE_OK if action in allowed and second != "load_extension" else sqlite3.SQLITE_DENY
    )
    cursor = connection.execute(query)
    if cursor.description is None:
        raise sqlite3.ProgrammingError("it selects nothing")
    rows = cursor.fetchmany(most + 1)
    if len(rows) > most:
        found = {"reason": "too_many_rows", "cause": f"more than {most:,} rows"}
    else:
        found = {"rows": [[v.hex() if isinstance(v, bytes) else v for v in row] for row in rows]}
except MemoryError:
    raise
except (sqlite3.Error, sqlite3.Warning) as error:
    found = {"reason": "error", "cause": str(error)}
"""


@dataclass(frozen=True)
class Database:
    """A SQLite file, which is never written to, or (empty path) a `script` that makes one in memory."""

    path: str = ""
    script: str = ""


@dataclass(frozen=True)
class QueryResult:
    """The rows of a query, or None and the reason: "error" (of SQLite), "too_many_rows", "time", "memory" ..."""

    rows: tuple[Row, ...] | None
    reason: str = "found"
    cause: str = ""


def run_queries(queries: List[str], database: Database, *, time_limit: float = 5.0) -> list[QueryResult]:
    """The rows of each query, run side by side, `time_limit` seconds at most, without writing anything.

    Raises `UserError` where the database is a file that does not exist.
    """
    path = Path(database.path).expanduser().absolute()
    if database.path and not path.is_file():
        raise UserError(f"the database '{database.path}' does not exist")
    # Immutable: SQLite then asks for no lock and no journal, which would have to be written.
    address = f"{path.as_uri()}?mode=ro&immutable=1" if database.path else ":memory:"
    given = {"address": address, "script": database.script, "most": MAX_ROWS}
    found = run_python_many(
        [_RUN] * len(queries),
        Limits(seconds=time_limit, memory_bytes=_MEMORY_BYTES, output_bytes=_OUTPUT_BYTES),
        result="found",
        inputs=[{**given, "query": query} for query in queries],
        readable=[str(path)] if database.path else [],
    )
    return [_result(outcome) for outcome in found]


def query_text(text: str) -> str:
    """The query of an answer: what `<answer>` holds, there or in the text the last code fence, else all of it.

    Only what follows the last `</think>` is read.
    """
    text = text.rpartition("</think>")[2]
    if tagged := re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL):
        text = tagged[-1]
    if blocks := _BLOCK.findall(text):
        text = blocks[-1]
    return re.sub(r"^(?:sql|query): *", "", str(text).strip().strip("`"), flags=re.IGNORECASE)


def same_rows(a: List[Row], b: List[Row], *, ordered: bool) -> bool:
    """Whether two results are equal: as lists, or (not `ordered`) as bags of rows.

    The columns' order counts, their names do not. 1 and 1.0 are equal, and so are numbers up to nine digits.
    """
    first, second = ([tuple(map(_comparable, row)) for row in rows] for rows in (a, b))
    return first == second if ordered else sorted(first) == sorted(second)


def is_ordered(query: str) -> bool:
    """Whether the query itself, and not one inside of it, has an ORDER BY."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", " ", query, flags=re.DOTALL)
    before = None
    while before != bare:  # from the inside out
        before, bare = bare, re.sub(r"\([^()]*\)", " ", bare)
    return re.search(r"\border\s+by\b", bare, re.IGNORECASE) is not None


def same_query(a: str, b: str) -> bool:
    """Whether two queries are the same but for case, spaces, comments and quotes around names."""
    first, second = _normal(a), _normal(b)
    return first is not None and first == second


def databases_of(sample: Sample, database: str | None = None) -> list[Database]:
    """Where the sample's query is run: `meta["schema"]`, a script of tables and rows or several, or a file.

    The file is `meta["database"]`, or `database`, a path with names of `meta` in it
    (`spider/database/{db_id}/{db_id}.sqlite`).
    """
    scripts = sample.meta.get("schema")
    if database is None and scripts:
        return [Database(script=script) for script in ([scripts] if isinstance(scripts, str) else scripts)]
    pattern = database or sample.meta.get("database")
    if not pattern:
        raise UserError(
            f"sample {sample.id} has no database: give 'database' in the reward, or 'schema' or 'database' in its meta"
        )
    try:
        return [Database(path=str(pattern).format_map(dict(sample.meta)))]
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"database '{pattern}': the meta of sample {sample.id} has no {error}") from None


def score_queries(
    sample: Sample,
    texts: List[str],
    *,
    database: str | None = None,
    match: Literal["execution", "exact"] = "execution",
    time_limit: float = 5.0,
) -> list[Score]:
    """1 for each query that gives the rows of `sample.answer` (`match: exact`: that is the same query), else 0.

    The order of the rows counts where the right query has an ORDER BY. `parts`: "correct", "format" (it ran). `info`:
    "extracted", "reason" ("found", "wrong", "missing", "error", "time", "too_many_rows" ...), "cause". Where the right
    query itself does not run, or nothing can be run, the score has an error.
    """
    gold = sample.answer or ""
    if not gold.strip():
        return [Score(0.0, error=f"sample {sample.id} has no query to compare with") for _ in texts]
    queries = [query_text(text) for text in texts]
    if match == "exact":
        return [_score(query, same_query(query, gold), "") for query in queries]
    verdicts: list[tuple[bool | None, str, str]] = [(True, "found", "")] * len(queries)
    for each in databases_of(sample, database):
        try:
            wanted = _right_rows(gold, each, time_limit)
        except _QueryError as error:
            return [Score(0.0, error=f"the right query of sample {sample.id} fails: {error}") for _ in texts]
        for place, found in enumerate(run_queries(queries, each, time_limit=time_limit)):
            if found.rows is None:
                verdicts[place] = (None, found.reason, found.cause)
            elif verdicts[place][0] and not same_rows(wanted, found.rows, ordered=is_ordered(gold)):
                verdicts[place] = (False, "wrong", f"{len(found.rows)} rows, right are {len(wanted)}")
    return [
        _score(query, right, cause, reason) for query, (right, reason, cause) in zip(queries, verdicts, strict=True)
    ]


def verify_sql(sample: Sample, text: str, *, time_limit: float = 5.0) -> Score:
    """A task's verifier for answers that are queries: 1 or 0, by execution."""
    return score_queries(sample, [text], time_limit=time_limit)[0]


@group_reward("sql")
def sql(
    attempts: List[Attempt],
    progress: float,
    *,
    database: str | None = None,
    match: Literal["execution", "exact"] = "execution",
    time_limit: Annotated[float, Field(gt=0)] = 5.0,
) -> list[Score]:
    """1 for a query that gives the same rows as the sample's answer (`score_queries`); the attempts run side by side.

    `database`: path of the SQLite file, with names of the sample's meta in braces; default: what the meta says.
    """
    texts = [attempt.text for attempt in attempts]
    return score_queries(attempts[0].sample, texts, database=database, match=match, time_limit=time_limit)


class _QueryError(Exception):
    """Why a query gave no rows."""


@lru_cache(maxsize=256)
def _right_rows(query: str, database: Database, time_limit: float) -> tuple[Row, ...]:
    """Raises `_QueryError`, which is not kept: a busy machine may only have been too slow this time."""
    (found,) = run_queries([query], database, time_limit=time_limit)
    if found.rows is None:
        raise _QueryError(found.cause)
    return found.rows


def _score(query: str, right: bool | None, cause: str, reason: str = "") -> Score:
    if reason == "broken":
        return Score(0.0, error=cause)
    reason = "missing" if not query else reason or ("found" if right else "wrong")
    parts = {"correct": float(right is True), "format": float(right is not None)}
    info: Mapping[str, Any] = {"extracted": query or None, "reason": reason}
    return Score(float(right is True), parts, {**info, "cause": cause} if cause else info)


def _result(outcome: Outcome) -> QueryResult:
    if outcome.failure is not None:
        return QueryResult(None, outcome.failure, outcome.error)
    found = outcome.value
    if "rows" not in found:
        return QueryResult(None, found["reason"], found["cause"])
    return QueryResult(tuple(tuple(row) for row in found["rows"]))


def _comparable(value: Any) -> tuple[int, Any]:
    """Values of several types in one order; NULL first."""
    if value is None:
        return 0, 0
    if isinstance(value, (int, float)):
        return 1, float(f"{value:.9g}") if isinstance(value, float) or abs(value) < 2**53 else value
    return 2, str(value)


@lru_cache(maxsize=4096)
def _normal(query: str) -> str | None:
    import sqlglot  # only who compares text needs it
    from sqlglot import exp

    try:
        tree = sqlglot.parse_one(query, read="sqlite")
    except sqlglot.errors.SqlglotError:
        return None
    for name in tree.find_all(exp.Identifier):
        name.set("quoted", False)
        name.set("this", name.this.lower())
    return str(tree.sql(dialect="sqlite", normalize_functions="upper", comments=False))
