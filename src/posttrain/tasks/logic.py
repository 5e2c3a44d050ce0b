"""`logic`: facts, if-then rules, and a question that is answered yes, no or unknown.

Two chains of rules lead towards the question, one to the claim and one to its opposite, and at most one of them holds
from end to end: the other misses a fact or a link. So the look of a problem says nothing of its answer, only the
derivation does. Harder problems have longer chains and more rules that lead nowhere.

reasoning-gym's `propositional_logic` asks for any conclusion that follows, and gives neither the conclusion nor a
proof; demonstrations need both, so these problems are our own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from posttrain.data import Sample
from posttrain.rewards import Score
from posttrain.tasks.answers import answered, verify_exact, worked
from posttrain.tasks.generated import GeneratedTask
from posttrain.tasks.task import Difficulty, tasks

DEPTH: dict[Difficulty, tuple[int, int]] = {"in": (1, 2), "harder": (3, 4)}
DISTRACTORS: dict[Difficulty, tuple[int, int]] = {"in": (0, 1), "harder": (1, 3)}

NAMES = ("Rex", "Kim", "Pat", "Lou", "Jan", "Ada", "Bob", "Una")
QUALITIES = (
    "big brave calm clean cold dry fair fast glad good kind loud neat nice old proud rich round sharp strong tall "
    "tired wild wise"
)
NEGATED = 1 / 3
"""How often a fact or a link of a chain is negated."""

Truth = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Rule:
    """If everything in `body` holds, `head` holds. What holds is a quality or `not` and a quality."""

    body: tuple[str, ...]
    head: str

    def __str__(self) -> str:
        return f"If {' and '.join(self.body)} then {self.head}."


@dataclass(frozen=True)
class LogicProblem:
    """What is said of `name`, and the quality asked for. `depth`: how many rules the proof takes."""

    name: str
    facts: tuple[str, ...]
    rules: tuple[Rule, ...]
    question: str
    answer: Truth
    depth: int


@tasks.register("logic")
class Logic(GeneratedTask[LogicProblem]):
    """Does a claim follow from facts and rules: yes, no (its opposite follows) or unknown, each one time in three.

    A proof takes 1 or 2 rules (3 or 4 in `harder`), among 2 to 5 (7 to 11). An unknown claim has chains of the same
    length that lack something. Styles: "steps" (forward chaining, what follows from what on each line), "prose" (the
    same in sentences), "direct" (the answer alone).
    """

    name = "logic"
    styles = ("steps", "prose", "direct")

    def problem(self, rng: Random, difficulty: Difficulty) -> LogicProblem:
        """Draw a problem; every depth and answer is as likely."""
        return logic_problem(rng, rng.randint(*DEPTH[difficulty]), rng.randint(*DISTRACTORS[difficulty]))

    def prompt(self, problem: LogicProblem) -> str:
        """`Rex is big, not red. If big then kind. If red then not kind. Is Rex kind: yes, no or unknown?`"""
        facts = f"{problem.name} is {', '.join(problem.facts)}."
        question = f"Is {problem.name} {problem.question}: yes, no or unknown?"
        return " ".join([facts, *map(str, problem.rules), question])

    def demonstration(self, problem: LogicProblem, style: str) -> str:
        """The derivation in `style`, then the answer."""
        if style == "direct":
            return answered(problem.answer)
        return worked(_prose(problem) if style == "prose" else "\n".join(_steps(problem)), problem.answer)

    def answer(self, problem: LogicProblem) -> str:
        """`yes`, `no` or `unknown`."""
        return problem.answer

    def canonical(self, problem: LogicProblem) -> str:
        """Facts, rules and question whatever their order and whoever they are about."""
        return " ".join([*sorted(problem.facts), *sorted(map(str, problem.rules)), problem.question])

    def details(self, problem: LogicProblem) -> dict[str, Any]:
        """`steps`: the lines of the derivation. `depth`: how many rules the proof (or each failing chain) takes."""
        return {"steps": _steps(problem), "depth": problem.depth}

    def verify(self, sample: Sample, answer: str) -> Score:
        """Score the word."""
        return verify_exact(sample, answer)


def _steps(problem: LogicProblem) -> list[str]:
    """`big and red so kind` for each rule that fires; `nothing more` where that does not answer the question."""
    lines = [f"{' and '.join(rule.body)} so {rule.head}" for rule in derivation(problem)]
    return [*lines, "nothing more"] if problem.answer == "unknown" else lines


def _prose(problem: LogicProblem) -> str:
    name = problem.name
    lines = [f"{name} is {' and '.join(rule.body)}, so {name} is {rule.head}." for rule in derivation(problem)]
    end = [f"Nothing says if {name} is {problem.question}."] if problem.answer == "unknown" else []
    return " ".join(lines + end)


def opposite(literal: str) -> str:
    """`not big` for `big`, and `big` for `not big`."""
    return literal.removeprefix("not ") if literal.startswith("not ") else f"not {literal}"


def derivation(problem: LogicProblem) -> list[Rule]:
    """Forward chaining: the rules as they fire, always the first one that says something new.

    Ends when the question is answered or nothing new follows.
    """
    goals = {problem.question, opposite(problem.question)}
    known, fired = set(problem.facts), []
    while not goals & known:
        rule = next((rule for rule in problem.rules if rule.head not in known and known.issuperset(rule.body)), None)
        if rule is None:
            break
        known.add(rule.head)
        fired.append(rule)
    return fired


def logic_problem(rng: Random, depth: int, distractors: int) -> LogicProblem:
    """A random problem with chains of `depth` rules, and `distractors` further rules."""
    answer: Truth = rng.choice(("yes", "no", "unknown"))
    unused = QUALITIES.split()
    rng.shuffle(unused)
    question = unused.pop()
    facts: list[str] = []
    rules: list[Rule] = []
    for goal, holding in ((question, "yes"), (opposite(question), "no")):
        chain = _chain(rng, goal, depth, unused)
        new_facts, new_rules = chain if answer == holding else _broken(rng, *chain, unused)
        facts += new_facts
        rules += new_rules
    # A head of its own keeps a further rule from deciding anything, whether it fires or not.
    rules += [Rule((rng.choice(rules).body[0],), _literal(rng, unused)) for _ in range(distractors)]
    rng.shuffle(facts)
    rng.shuffle(rules)
    return LogicProblem(rng.choice(NAMES), tuple(facts), tuple(rules), question, answer, depth)


def _literal(rng: Random, unused: list[str]) -> str:
    quality = unused.pop()
    return opposite(quality) if rng.random() < NEGATED else quality


def _chain(rng: Random, goal: str, depth: int, unused: list[str]) -> tuple[list[str], list[Rule]]:
    """Facts and `depth` rules that prove `goal`; sometimes one of the rules needs a second fact."""
    links = [_literal(rng, unused) for _ in range(depth)] + [goal]
    facts = [links[0]]
    bodies: list[tuple[str, ...]] = [(link,) for link in links[:-1]]
    if rng.random() < 0.4:
        facts.append(_literal(rng, unused))
        place = rng.randrange(depth)
        bodies[place] = (*bodies[place], facts[-1])
    return facts, [Rule(body, head) for body, head in zip(bodies, links[1:], strict=True)]


def _broken(
    rng: Random, facts: Sequence[str], rules: Sequence[Rule], unused: list[str]
) -> tuple[list[str], list[Rule]]:
    """The chain with one fact or one link (never the last) leading elsewhere: as many facts and rules as before."""
    facts, rules = list(facts), list(rules)
    place = rng.randrange(len(facts) + len(rules) - 1)
    if place < len(facts):
        # Facts turn into their opposites as often from `not big` as from `big`, so that counting `not` tells nothing.
        turns = 0.4 * (1 - NEGATED) / NEGATED if facts[place].startswith("not ") else 0.4
        facts[place] = opposite(facts[place]) if rng.random() < turns else _literal(rng, unused)
    else:
        link = place - len(facts)
        rules[link] = Rule(rules[link].body, _literal(rng, unused))
    return facts, rules
