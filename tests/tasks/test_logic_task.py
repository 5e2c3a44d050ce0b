import re
from collections import Counter

import pytest
import z3
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.tasks.logic import Logic

TASK = Logic()
few = settings(max_examples=25, deadline=None)
difficulties = st.sampled_from(["in", "harder"])


def literal(text: str) -> z3.BoolRef:
    return z3.Not(z3.Bool(text[4:])) if text.startswith("not ") else z3.Bool(text)


def read(prompt: str) -> tuple[list[str], list[tuple[list[str], str]], str]:
    """Facts, rules and the quality asked for, read back from the text of the question."""
    name, facts = re.match(r"(\w+) is ([^.]+)\.", prompt).groups()
    rules = [(body.split(" and "), head) for body, head in re.findall(r"If ([^.]+) then ([^.]+)\.", prompt)]
    return facts.split(", "), rules, re.search(rf"Is {name} (\w+): yes, no or unknown\?$", prompt)[1]


def truth(prompt: str) -> str:
    """The answer by z3, in classical logic, from the text of the question."""
    facts, rules, question = read(prompt)
    solver = z3.Solver()
    solver.add(*[literal(fact) for fact in facts])
    solver.add(*[z3.Implies(z3.And(*map(literal, body)), literal(head)) for body, head in rules])
    assert solver.check() == z3.sat, "the premises contradict each other"
    possible = [solver.check(claim) == z3.sat for claim in (literal(question), z3.Not(literal(question)))]
    return {(True, False): "yes", (False, True): "no", (True, True): "unknown"}[tuple(possible)]


@pytest.mark.parametrize("difficulty", ["in", "harder"])
def test_z3_agrees_with_every_label(difficulty):
    for sample in TASK.samples(400, 7, difficulty=difficulty):
        assert truth(sample.prompt_text) == sample.answer, sample.prompt_text


@few
@given(seed=st.integers(0, 10**9), difficulty=difficulties, style=st.sampled_from(Logic.styles))
def test_every_demonstration_is_right_and_other_answers_are_wrong(seed, difficulty, style):
    for sample in TASK.samples(20, seed, difficulty=difficulty, style=style):
        assert TASK.verify(sample, sample.response_text).value == 1
        for other in {"yes", "no", "unknown", "maybe"} - {sample.answer}:
            assert TASK.verify(sample, f"<answer>{other}</answer>").value == 0
        assert TASK.verify(sample, "<answer>yes</answer><answer>no</answer>").value == 0


@few
@given(seed=st.integers(0, 10**9), difficulty=difficulties)
def test_every_line_of_a_derivation_follows_from_what_is_known_by_a_rule_of_the_question(seed, difficulty):
    for sample in TASK.samples(20, seed, difficulty=difficulty):
        facts, rules, question = read(sample.prompt_text)
        known = set(facts)
        lines = list(sample.meta["steps"])
        if sample.answer == "unknown":
            assert lines.pop() == "nothing more"
        for line in lines:
            body, head = line.split(" so ")
            assert (body.split(" and "), head) in rules
            assert known.issuperset(body.split(" and "))
            assert head not in known, "a line says nothing new"
            known.add(head)
        if sample.answer == "unknown":
            assert all(head in known or not known.issuperset(body) for body, head in rules), "something more follows"
        else:
            assert lines[-1].endswith(f" so {question}" if sample.answer == "yes" else f" so not {question}")


def rounds(prompt: str) -> int | None:
    """After how many rounds of firing all rules at once the question is answered."""
    facts, rules, question = read(prompt)
    known = set(facts)
    for count in range(len(rules) + 1):
        if known & {question, f"not {question}"}:
            return count
        known |= {head for body, head in rules if known.issuperset(body)}
    return None


def test_proofs_are_as_deep_as_the_difficulty_says():
    for difficulty, depths in (("in", {1, 2}), ("harder", {3, 4})):
        samples = TASK.samples(300, 0, difficulty=difficulty)
        assert {sample.meta["depth"] for sample in samples} == depths
        for sample in samples:
            assert rounds(sample.prompt_text) == (None if sample.answer == "unknown" else sample.meta["depth"])


@pytest.mark.parametrize("difficulty", ["in", "harder"])
def test_answers_are_balanced_and_the_look_of_a_problem_does_not_tell_them(difficulty):
    samples = TASK.samples(6000, 0, difficulty=difficulty)
    answers = Counter(sample.answer for sample in samples)
    assert all(0.30 < answers[answer] / 6000 < 0.37 for answer in ("yes", "no", "unknown"))
    looks = {"facts": lambda f, r: len(f), "rules": lambda f, r: len(r), "nots": lambda f, r: str((f, r)).count("not ")}
    for look, count in looks.items():
        means = []
        for answer in answers:
            values = [count(*read(s.prompt_text)[:2]) for s in samples if s.answer == answer]
            means.append(sum(values) / len(values))
        assert max(means) - min(means) < 0.05 * max(means), (look, means)
    for sample in samples:
        heads = [head for _, head in read(sample.prompt_text)[1]]
        question = read(sample.prompt_text)[2]
        assert heads.count(question) == heads.count(f"not {question}") == 1


def test_styles_of_one_seed_demonstrate_the_same_problems_and_seeds_differ():
    texts = [[s.prompt_text for s in TASK.samples(30, 5, style=style)] for style in Logic.styles]
    assert texts[0] == texts[1] == texts[2]
    assert TASK.samples(30, 5) == TASK.samples(30, 5)
    assert not {s.prompt_text for s in TASK.samples(30, 5)} & {s.prompt_text for s in TASK.samples(30, 6)}


def test_no_problem_of_the_test_part_is_in_the_train_part_in_another_order():
    def contents(part: str) -> set[str]:
        found = [read(sample.prompt_text) for sample in Logic(part=part).samples(800, 0)]
        return {str((sorted(facts), sorted(rules), question)) for facts, rules, question in found}

    assert not contents("train") & contents("test")
