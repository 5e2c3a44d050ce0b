"""`sql`: questions about two small tables, answered by a query, which is right if it gives the right rows.

The questions are simple so that small models can learn them; Spider and BIRD have the real ones (reward `sql`).
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from posttrain.data import Sample
from posttrain.rewards import Score
from posttrain.rewards.sql import verify_sql
from posttrain.tasks.answers import answered, worked
from posttrain.tasks.generated import GeneratedTask
from posttrain.tasks.task import Difficulty, tasks

NAMES = "Ada Bob Eva Ida Jan Kim Leo Lou Max Mia Pat Rex Sam Tom Una Zoe"


@dataclass(frozen=True)
class Table:
    """A table of things: a column of words and one of numbers (lowest and highest), besides names or an owner."""

    name: str
    word: str
    words: tuple[str, ...]
    number: str
    numbers: tuple[int, int]


@dataclass(frozen=True)
class Schema:
    """Owners with a name, and what they own; `owned` points to its owner by `{owner}_id`."""

    owner: Table
    owned: Table


SCHEMAS = (
    Schema(
        Table("customer", "city", ("Arden", "Esk", "Hale", "Kest", "Moss"), "age", (18, 90)),
        Table("purchase", "item", ("chair", "desk", "lamp", "shelf", "sofa"), "price", (5, 400)),
    ),
    Schema(
        Table("animal", "kind", ("bear", "fox", "goat", "owl", "seal"), "weight", (1, 300)),
        Table("meal", "food", ("corn", "fish", "hay", "meat", "nuts"), "grams", (10, 900)),
    ),
)
OWNERS, OWNED = 7, 9


@dataclass(frozen=True)
class Question:
    """A question and its `query`, of some `template`, about tables that `columns` describes and `databases` fill."""

    template: str
    text: str
    query: str
    columns: str
    databases: tuple[str, ...]


Template = Callable[[Random, Schema], tuple[str, str]]


def _where(rng: Random, schema: Schema) -> tuple[str, str]:
    table, word = schema.owner, rng.choice(schema.owner.words)
    return f"Names of {table.name}s with {table.word} {word}.", (
        f"SELECT name FROM {table.name} WHERE {table.word} = '{word}'"
    )


def _compared(rng: Random, schema: Schema) -> tuple[str, str]:
    table, limit = schema.owner, rng.randint(*schema.owner.numbers)
    side, sign = rng.choice((("over", ">"), ("under", "<")))
    return f"Names of {table.name}s with {table.number} {side} {limit}.", (
        f"SELECT name FROM {table.name} WHERE {table.number} {sign} {limit}"
    )


def _counted(rng: Random, schema: Schema) -> tuple[str, str]:
    table = rng.choice((schema.owner, schema.owned))
    word = rng.choice(table.words)
    return f"How many {table.name}s have {table.word} {word}?", (
        f"SELECT count(*) FROM {table.name} WHERE {table.word} = '{word}'"
    )


def _extreme(rng: Random, schema: Schema) -> tuple[str, str]:
    table = rng.choice((schema.owner, schema.owned))
    asked, function = rng.choice((("highest", "max"), ("lowest", "min"), ("average", "avg")))
    word = rng.choice(table.words)
    return f"The {asked} {table.number} of {table.name}s with {table.word} {word}.", (
        f"SELECT {function}({table.number}) FROM {table.name} WHERE {table.word} = '{word}'"
    )


def _grouped(rng: Random, schema: Schema) -> tuple[str, str]:
    table = rng.choice((schema.owner, schema.owned))
    asked, function = rng.choice((("highest", "max"), ("lowest", "min"), ("average", "avg"), ("total", "sum")))
    return f"Each {table.word} with the {asked} {table.number} of its {table.name}s.", (
        f"SELECT {table.word}, {function}({table.number}) FROM {table.name} GROUP BY {table.word}"
    )


def _sorted(rng: Random, schema: Schema) -> tuple[str, str]:
    table, (asked, way) = schema.owner, rng.choice((("highest", " DESC"), ("lowest", "")))
    return f"Names of {table.name}s by {table.number}, {asked} first.", (
        f"SELECT name FROM {table.name} ORDER BY {table.number}{way}"
    )


def _top(rng: Random, schema: Schema) -> tuple[str, str]:
    table, (asked, way) = schema.owner, rng.choice((("highest", " DESC"), ("lowest", "")))
    count = rng.randint(2, 4)
    return f"Names of the {count} {table.name}s with the {asked} {table.number}, in that order.", (
        f"SELECT name FROM {table.name} ORDER BY {table.number}{way} LIMIT {count}"
    )


def _joined(rng: Random, schema: Schema) -> tuple[str, str]:
    owner, owned, word = schema.owner, schema.owned, rng.choice(schema.owned.words)
    return f"Names of {owner.name}s that have a {owned.name} with {owned.word} {word}, each once.", (
        f"SELECT DISTINCT name FROM {_join(schema)} WHERE {owned.word} = '{word}'"
    )


def _summed(rng: Random, schema: Schema) -> tuple[str, str]:
    owner, owned, word = schema.owner, schema.owned, rng.choice(schema.owner.words)
    asked, function = rng.choice((("total", "sum"), ("highest", "max"), ("average", "avg")))
    return (
        f"Names of {owner.name}s with {owner.word} {word}, with the {asked} {owned.number} of their {owned.name}s.",
        (
            f"SELECT name, {function}({owned.number}) FROM {_join(schema)} WHERE {owner.word} = '{word}' "
            f"GROUP BY {owner.name}.id"
        ),
    )


def _without(rng: Random, schema: Schema) -> tuple[str, str]:
    owner, owned, word = schema.owner, schema.owned, rng.choice(schema.owned.words)
    return f"Names of {owner.name}s without a {owned.name} with {owned.word} {word}.", (
        f"SELECT name FROM {owner.name} WHERE id NOT IN "
        f"(SELECT {owner.name}_id FROM {owned.name} WHERE {owned.word} = '{word}')"
    )


TEMPLATES: dict[Difficulty, tuple[Template, ...]] = {
    "in": (_where, _compared, _counted, _extreme, _grouped, _sorted, _top),
    "harder": (_joined, _summed, _without),
}


@tasks.register("sql")
class SqlTask(GeneratedTask[Question]):
    """Write a SQLite query: 7 kinds of question about one table (3 kinds about two tables in `harder`), two schemas.

    Right is every query that gives the right rows, in the right order where one is asked for, on both of two databases
    with rows drawn at random; it runs in a process of its own (`rewards.sandbox`: Linux). Styles: "direct" (the query
    alone), "steps" (its parts first, a line each).
    """

    name = "sql"
    styles = ("direct", "steps")

    def problem(self, rng: Random, difficulty: Difficulty) -> Question:
        """Draw a question, and rows until the answer has some."""
        schema, template = rng.choice(SCHEMAS), rng.choice(TEMPLATES[difficulty])
        text, query = template(rng, schema)
        columns = "\n".join(_described(rng, table, schema) for table in (schema.owner, schema.owned))
        for _ in range(100):
            databases = (_filled(rng, schema), _filled(rng, schema))
            if all(_has_answer(query, script) for script in databases):
                return Question(template.__name__.strip("_"), text, query, columns, databases)
        return self.problem(rng, difficulty)

    def prompt(self, problem: Question) -> str:
        """The tables with their columns, a line each, then the question."""
        return f"{problem.columns}\n{problem.text}"

    def canonical(self, problem: Question) -> str:
        """The question, in whatever order the columns are listed."""
        return problem.text

    def demonstration(self, problem: Question, style: str) -> str:
        """The query."""
        if style == "direct":
            return answered(problem.query)
        selected, _, rest = problem.query.partition(" FROM ")
        source, where, condition = rest.partition(" WHERE ")
        return worked(
            "\n".join([f"FROM {source}", *([f"WHERE {condition}"] if where else []), selected]), problem.query
        )

    def answer(self, problem: Question) -> str:
        """The query."""
        return problem.query

    def details(self, problem: Question) -> dict[str, Any]:
        """`schema`: scripts of the databases that queries are run on. `template`: the kind of question."""
        return {"schema": list(problem.databases), "template": problem.template}

    def verify(self, sample: Sample, answer: str) -> Score:
        """Run the query; see `rewards.sql`."""
        return verify_sql(sample, answer)


def _join(schema: Schema) -> str:
    owner, owned = schema.owner.name, schema.owned.name
    return f"{owner} JOIN {owned} ON {owned}.{owner}_id = {owner}.id"


def _described(rng: Random, table: Table, schema: Schema) -> str:
    first = ["id", "name"] if table is schema.owner else [f"{schema.owner.name}_id"]
    return f"{table.name}({', '.join(rng.sample([*first, table.word, table.number], len(first) + 2))})"


def _filled(rng: Random, schema: Schema) -> str:
    """A script that makes both tables, with rows. Numbers come once each: there are no ties to sort."""
    owner, owned = schema.owner, schema.owned
    ages = rng.sample(range(owner.numbers[0], owner.numbers[1] + 1), OWNERS)
    prices = rng.sample(range(owned.numbers[0], owned.numbers[1] + 1), OWNED)
    owners = [
        f"({row + 1},'{name}','{rng.choice(owner.words)}',{ages[row]})"
        for row, name in enumerate(rng.sample(NAMES.split(), OWNERS))
    ]
    things = [f"({rng.randint(1, OWNERS)},'{rng.choice(owned.words)}',{price})" for price in prices]
    return (
        f"CREATE TABLE {owner.name} (id INTEGER, name TEXT, {owner.word} TEXT, {owner.number} INTEGER);"
        f"CREATE TABLE {owned.name} ({owner.name}_id INTEGER, {owned.word} TEXT, {owned.number} INTEGER);"
        f"INSERT INTO {owner.name} VALUES {','.join(owners)};INSERT INTO {owned.name} VALUES {','.join(things)};"
    )


def _has_answer(query: str, script: str) -> bool:
    """Are there rows, not all NULL or 0? Both are ours, so that they need no sandbox."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(script)
        return any(any(row) for row in connection.execute(query))
    finally:
        connection.close()
