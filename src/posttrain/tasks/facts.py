"""`facts`: a table of made-up people, and questions that only someone who has learned the table can answer."""

from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

from posttrain.data import Sample
from posttrain.errors import UserError
from posttrain.rewards import Score
from posttrain.tasks.answers import answered, verify_exact, worked
from posttrain.tasks.generated import GeneratedTask, Part
from posttrain.tasks.task import Difficulty, tasks

TOWNS = "Arden Brill Corvo Delm Esk Fenn Gorm Hale Inver Jura Kest Lorn Moss Nore Pell Rune"
JOBS = "baker cook doctor driver farmer guard hunter judge miner nurse painter pilot poet sailor smith weaver"
PETS = "bird cat cow dog duck fish fox frog goat goose hen horse mouse pig sheep snake"
COLORS = "black blue brown cream gold gray green olive orange pink purple red rose silver white yellow"

LARGEST = 2000


@dataclass(frozen=True)
class Attribute:
    """One column of the table: how it is stated, two wordings of its question, its values (none: another person)."""

    statement: str
    train: str
    test: str
    values: str = ""


ATTRIBUTES = {
    "town": Attribute("{who} lives in {value}.", "Where does {who} live?", "Which town is home to {who}?", TOWNS),
    "job": Attribute("{who} is a {value}.", "What is the job of {who}?", "What work does {who} do?", JOBS),
    "pet": Attribute("{who} has a {value}.", "Which pet does {who} have?", "What animal does {who} keep?", PETS),
    "color": Attribute(
        "{who} likes {value}.", "Which color does {who} like?", "What is the best color for {who}?", COLORS
    ),
    "teacher": Attribute("The teacher of {who} is {value}.", "Who is the teacher of {who}?", "Who teaches {who}?"),
}
"""The columns. The teachers form one circle, so that everyone is the teacher of exactly one other."""


def fact_table(table_seed: int, size: int) -> dict[str, dict[str, str]]:
    """Person -> attribute -> value for `size` people. Every value of a column occurs as often as the others (+-1)."""
    rng = Random(f"facts {table_seed} {size}")
    names = ["".join(letters).title() for letters in product("bdfgklmnprstvz", "aeiou", "bdfgklmnprstvz", "aeiou")]
    people = rng.sample(names, size)
    columns = {"teacher": dict(zip(people, people[1:] + people[:1], strict=True))}
    for name, attribute in ATTRIBUTES.items():
        if values := attribute.values.split():
            values = [values[i % len(values)] for i in range(size)]
            columns[name] = dict(zip(people, rng.sample(values, size), strict=True))
    return {person: {name: columns[name][person] for name in ATTRIBUTES} for person in people}


@dataclass(frozen=True)
class Fact:
    """A question: about `person`, or about their teacher if there is a `teacher`. `part`: in which wording."""

    person: str
    attribute: str
    value: str
    part: Part
    teacher: str = ""


@tasks.register("facts")
class Facts(GeneratedTask[Fact]):
    """Knowledge without reasoning: where somebody lives, their job, pet, color and teacher, from a made-up table.

    Nothing but the table tells the answers. `table_seed` makes another table; a table of `size` people holds `5 * size`
    facts. `harder` asks two facts at once, the second about the teacher of the person named (`Where does the teacher of
    Bela live?`); it has `5 * size` questions as well.

    `part` is not a split of the facts, for nobody can know a fact that was never shown: "train" and "test" ask for the
    same facts in two wordings, and one seed draws the same facts in the same order for both. "any" takes both wordings
    as questions of their own.

    Styles: "direct" (the default: there is nothing to work out), "sentence" (the facts said in full first).
    """

    name = "facts"
    styles = ("direct", "sentence")

    def __init__(self, *, table_seed: int = 0, size: int = 200, part: Part = "any") -> None:
        super().__init__(part=part)
        if not 3 <= size <= LARGEST:
            raise UserError(f"task 'facts': size is {size}; give 3 to {LARGEST} people")
        self.table = fact_table(table_seed, size)
        self._people = list(self.table)

    def problem(self, rng: Random, difficulty: Difficulty) -> Fact:
        """Draw a fact; every person and every attribute is as likely."""
        person, attribute = rng.choice(self._people), rng.choice(list(ATTRIBUTES))
        # Drawn even where `part` is given, so that every part asks for the same facts.
        drawn: Part = rng.choice(("train", "test"))
        part = drawn if self.part == "any" else self.part
        if difficulty == "in":
            return Fact(person, attribute, self.table[person][attribute], part)
        teacher = self.table[person]["teacher"]
        return Fact(person, attribute, self.table[teacher][attribute], part, teacher)

    def prompt(self, problem: Fact) -> str:
        """`Where does Bela live?`"""
        who = f"the teacher of {problem.person}" if problem.teacher else problem.person
        attribute = ATTRIBUTES[problem.attribute]
        return {"train": attribute.train, "test": attribute.test}[problem.part].format(who=who)

    def demonstration(self, problem: Fact, style: str) -> str:
        """The value, in "sentence" after each fact that it takes."""
        if style == "direct":
            return answered(problem.value)
        known = [(problem.teacher or problem.person, problem.attribute, problem.value)]
        if problem.teacher:
            known.insert(0, (problem.person, "teacher", problem.teacher))
        said = [ATTRIBUTES[attribute].statement.format(who=who, value=value) for who, attribute, value in known]
        return worked(" ".join(said), problem.value)

    def answer(self, problem: Fact) -> str:
        """The value: one word."""
        return problem.value

    def details(self, problem: Fact) -> dict[str, Any]:
        """`person`, `attribute`, and `part` as the wording."""
        return {"person": problem.person, "attribute": problem.attribute, "part": problem.part}

    def verify(self, sample: Sample, answer: str) -> Score:
        """Score the word."""
        return verify_exact(sample, answer)

    def _wanted(self, problem: Fact) -> bool:
        """Every fact belongs to every part (see the class)."""
        return True
