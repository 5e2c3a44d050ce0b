"""Answers by way of plans: what is drawn, carried out, elected and counted, with a model that is a script."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import running

from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError
from posttrain.evaluation import Answer
from posttrain.recipe import Evaluate, check_recipe
from posttrain.stages.answers import planning
from posttrain.stages.answers.carrying_out import asked_for
from posttrain.stages.answers.planning import ask_by_plans, plan_metrics, plan_plans

SAMPLE = Sample((user("?"),), (assistant("<P>own</P><E>5"),), answer="5")
TAGS = {"opened": "<P>", "end": "</P>", "execute": "<E>"}


class Script:
    """Stands for `ask`: plans and the judge's words as listed, an execution of plan x says x; 10 tokens each.

    Of a plan that begins with `?` it says nothing. `revised`: the plans that are written anew, one after the other.
    """

    def __init__(self, plans: list[str], judge: str = "", revised: tuple[str, ...] = ()) -> None:
        self.plans, self.judge, self.asked, self.calls = plans, judge, list[str](), list[int]()
        self.revised = iter(revised)

    def __call__(self, context: Any, name: Any, stage: Any, samples: Any, *rest: Any, forced: Any = "") -> Any:
        found = []
        self.calls.append(len(samples))
        for sample in samples:
            begin = forced if isinstance(forced, str) else forced[sample.id]
            revising = sample.prompt_text.startswith("again")
            self.asked.append(sample.prompt_text if revising or not begin else begin)
            if "<E>" in begin:
                texts = [f"{begin}so it ends"]
            elif revising:
                texts = [f"<P>{next(self.revised)}</P>"]
                assert (stage.n, stage.temperature, stage.stop) == (1, 0.3, ["</P>"])
            else:
                texts = [f"<P>{plan}" for plan in self.plans] if begin else [self.judge]
            found += [answer_of(sample, text, draw) for draw, text in enumerate(texts)]
        return found


def answer_of(sample: Sample, text: str, draw: int) -> Answer:
    said = text.partition("</P><E>")[0].removeprefix("<P>").partition(" ")[0]
    info = {"extracted": said if said not in ("", "?") else None}
    return Answer(sample.id, "", "", "5", text, float(said == "5"), {}, info, None, "stop", 10, 0.0, draw)


@pytest.fixture
def by_plans(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Answer, Script, dict[str, float]]]:
    def run(
        plans: list[str],
        said: str = "",
        revised: tuple[str, ...] = (),
        samples: tuple[Sample, ...] = (SAMPLE,),
        **rules: Any,
    ) -> tuple[Answer, Script, dict[str, float]]:
        script = Script([f"{plan}</P>" for plan in plans], said, revised)
        monkeypatch.setattr(planning, "ask", script)
        given = {} if rules.get("select") == "given" else {"k": max(len(plans), 1)}
        stage = Evaluate.model_validate({"plans": {**given, **TAGS, **rules}})
        recipe = type("Recipe", (), {"seed": 0})
        kept: list[Answer] = []
        ask_by_plans(type("Context", (), {"recipe": recipe}), "", stage, list(samples), None, None, kept.append)  # type: ignore[arg-type]
        assert stage.plans is not None
        return kept[0], script, plan_metrics(kept, stage.plans, 1.0)

    return run


def executed(answer: Answer) -> list[tuple[str, float]]:
    return [(one["plan"], one["votes"]) for one in answer.info["executions"]]


def test_all_plans_vote_and_the_same_one_is_carried_out_once(by_plans: Any) -> None:
    answer, script, metrics = by_plans(["4", "5", "5", "4 ", "5"], select="all")
    assert executed(answer) == [("4", 1), ("5", 3), ("4 ", 1)]
    assert (answer.extracted, answer.value, answer.sample_id) == ("5", 1, SAMPLE.id)
    assert script.asked == ["<P>", "<P>4</P><E>", "<P>5</P><E>", "<P>4 </P><E>"]
    assert answer.tokens == 5 * 10 + 3 * 10
    assert metrics == {"decoded_tokens": 80, "executions": 3, "token_share": 0.8, "majority@5": 1.0}


def test_a_cluster_votes_by_its_size(by_plans: Any) -> None:
    answer, _, _ = by_plans(["5 a", "4 b", "4 b c", "4 b d"], select="clusters", clusters=2)
    assert sorted(votes for _, votes in executed(answer)) == [1, 3]
    assert answer.extracted == "4"


def test_one_random_plan_is_carried_out(by_plans: Any) -> None:
    answer, _, _ = by_plans(["1", "2", "5"], select="random")
    assert len(executed(answer)) == 1
    assert answer.tokens == 40


def test_the_judge_sees_all_plans_and_its_tokens_count(by_plans: Any) -> None:
    answer, script, _ = by_plans(["1 one", "5 five"], "5 five</P>", select="judge")
    assert executed(answer) == [("5 five", 1)]
    assert "1 one\n\n5 five" in script.asked[1]
    assert answer.tokens == 20 + 10 + 10


def test_a_given_plan_is_carried_out_and_nothing_is_drawn(by_plans: Any) -> None:
    _, script, metrics = by_plans([], select="given")
    assert script.asked == ["<P>own</P><E>"]
    assert metrics == {"decoded_tokens": 10, "executions": 1}


LOOP = {"select": "judge", "revise": {"ask": "again {question} | {plan} | {execution}", "excerpt": 7}}


def test_a_plan_that_comes_to_an_answer_is_not_revised(by_plans: Any) -> None:
    answer, script, metrics = by_plans(["4 four", "5 five"], "4 four", **LOOP)
    assert executed(answer) == [("4 four", 1)]
    assert (answer.extracted, answer.tokens, script.calls) == ("4", 20 + 10 + 10, [1, 1, 1])
    assert (metrics["revisions"], metrics["executions"]) == (0, 1)


def test_a_plan_that_comes_to_none_is_written_anew_from_the_end_of_its_execution(by_plans: Any) -> None:
    answer, script, metrics = by_plans(["? a", "4 four"], "? a", ("? b", "5 c"), **LOOP)
    assert executed(answer) == [("? a", 1), ("? b", 1), ("5 c", 1)]
    assert script.asked[3:] == ["again ? | ? a | it ends", "<P>? b</P><E>", "again ? | ? b | it ends", "<P>5 c</P><E>"]
    assert (answer.extracted, answer.value) == ("5", 1)
    assert answer.tokens == 20 + 10 + 3 * 10 + 2 * 10  # plans, judge, executions, revisions
    first, second, third = answer.info["executions"]
    assert first["text"] == "<P>? a</P><E>so it ends"
    assert [one["revised"]["text"] for one in (first, second)] == ["<P>? b</P>", "<P>5 c</P>"]
    assert "revised" not in third
    assert metrics["token_share"] == 80 / (30 + 2 * 10)
    assert (metrics["revisions"], metrics["executions"], metrics["decoded_tokens"]) == (2, 3, 80)


@pytest.mark.parametrize(("rounds", "plans"), [(1, "? a|? b"), (3, "? a|? b|? c|? d")])
def test_after_so_many_rounds_there_is_no_answer(rounds: int, plans: str, by_plans: Any) -> None:
    loop = {**LOOP, "revise": {**LOOP["revise"], "rounds": rounds}}  # type: ignore[dict-item]
    answer, script, metrics = by_plans(["? a", "4 four"], "? a", ("? b", "? c", "? d", "5 e"), **loop)
    assert [plan for plan, _ in executed(answer)] == plans.split("|")
    assert (answer.extracted, metrics["revisions"]) == (None, rounds)
    assert len(script.calls) == 3 + 2 * rounds


def test_a_plan_that_was_not_carried_out_stands_in_for_a_revision_that_says_the_same(by_plans: Any) -> None:
    drawn = ["? a b c", "? d e f", "? a b c", "5 g h i"]
    answer, _, _ = by_plans(drawn, drawn[0], ("? c b a", "? e f d"), **LOOP)
    assert [plan for plan, _ in executed(answer)] == ["? a b c", "? d e f", "5 g h i"]
    assert answer.extracted == "5"
    answer, _, metrics = by_plans(drawn[:3], drawn[0], ("? c b a", "? e f d"), **LOOP)
    assert [plan for plan, _ in executed(answer)] == ["? a b c", "? d e f"]  # then none is left
    assert (answer.extracted, metrics["revisions"]) == (None, 2)
    assert answer.tokens == 30 + 10 + 2 * 10 + 2 * 10


def test_every_plan_that_votes_may_be_revised(by_plans: Any) -> None:
    answer, _, _ = by_plans(["? a", "4 b", "? c", "? a"], revised=("5 x", "5 x"), **{**LOOP, "select": "all"})
    assert executed(answer) == [("? a", 2), ("5 x", 2), ("4 b", 1), ("? c", 1)]  # 5 x is carried out already
    assert answer.extracted == "5"


def test_all_problems_go_through_a_round_side_by_side(by_plans: Any) -> None:
    others = tuple(Sample((user(f"{number}?"),), (), answer="5") for number in range(3))
    answer, script, _ = by_plans(["? a"], "? a", ("? b", "5 c", "5 d", "5 e"), samples=others, **LOOP)
    assert script.calls == [3, 3, 3, 3, 3, 1, 1]
    assert [plan for plan, _ in executed(answer)] == ["? a", "? b", "5 e"]


def test_what_judges_and_revises_plans_has_to_fit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fits(context: Any, stage: Evaluate, samples: Any, *, forced: Any) -> tuple[dict[str, int], tuple[str, ...]]:
        asked.append((stage.max_new_tokens, samples[0].prompt_text))
        return {"problems": len(asked)}, ()

    monkeypatch.setattr(planning, "plan_questions", fits)
    loop = {**LOOP, "judge": "{question} of {plans}", "k": 4, "max_new_tokens": 30}
    stage = Evaluate.model_validate({"max_new_tokens": 20, "plans": {**TAGS, **loop}})
    assert plan_plans(None, stage, [SAMPLE]) == ({"problems": 1}, ())  # type: ignore[arg-type]
    assert asked == [(50, "?"), (5 * 30, "? of "), (7 + 2 * 30, "again ? |  | ")]


def test_what_stands_in_braces_in_a_plan_stays_as_it_is() -> None:
    made = asked_for(SAMPLE, "{question} {plan} {other}", plan="\\frac{question}{2}")
    assert made.prompt_text == "? \\frac{question}{2} {other}"


@pytest.mark.parametrize(
    ("rules", "longest", "begun"),
    [
        ({"max_new_tokens": 30}, 50, "<P></P><E>"),
        ({"select": "given"}, 20, "<P>own</P><E>"),
    ],
)
def test_a_plan_and_its_execution_have_to_fit(
    rules: dict[str, Any], longest: int, begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fits(context: Any, stage: Evaluate, samples: Any, *, forced: Any) -> tuple[dict[str, int], tuple[str, ...]]:
        assert (stage.max_new_tokens, forced) == (longest, {SAMPLE.id: begun})
        return {"problems": 1}, ()

    monkeypatch.setattr(planning, "plan_questions", fits)
    stage = Evaluate.model_validate({"max_new_tokens": 20, "plans": {**TAGS, **rules}})
    assert plan_plans(None, stage, [SAMPLE]) == ({"problems": 1}, ())  # type: ignore[arg-type]


def test_a_response_without_a_plan_is_found_before_anything_runs() -> None:
    stage = Evaluate.model_validate({"plans": {"select": "given"}})
    with pytest.raises(UserError, match="no '</EXPLORATION>' that ends a plan"):
        plan_plans(None, stage, [SAMPLE])  # type: ignore[arg-type]


def test_executions_without_an_answer_do_not_vote(by_plans: Any) -> None:
    answer, _, _ = by_plans(["", "", "5"], select="all")
    assert answer.extracted == "5"


def test_a_response_without_a_plan_cannot_be_given(by_plans: Any) -> None:
    with pytest.raises(UserError, match="no '</X>' that ends a plan"):
        by_plans([], select="given", end="</X>")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"plans": {"select": "given", "revise": {}}}, "'revise' has no effect"),
        ({"plans": {"revise": {"ask": "again"}}}, "'ask' has to show"),
        ({"plans": {"select": "given", "k": 3}}, "'k' has no effect"),
        ({"plans": {"clusters": 2}}, "'clusters' has no effect"),
        ({"plans": {"temperature": 0}}, "16 plans at temperature 0"),
        ({"plans": {"select": "judge", "judge": "which?"}}, "'judge' has to show"),
        ({"plans": {}, "n": 2, "temperature": 1.0}, "'n' has no effect with 'plans'"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_recipe({"name": "t", "stages": {"test": {"kind": "evaluate", **keys}}})


@pytest.mark.parametrize("select", ["all", "clusters", "judge", "random"])
@pytest.mark.parametrize("revise", [False, True])
def test_a_model_answers_by_way_of_plans(select: str, revise: bool, tmp_path: Path) -> None:
    model = running.save_tiny(tmp_path / "model")
    plans: dict[str, Any] = {"k": 3, "select": select, "max_new_tokens": 5, "end": "</plan>"}
    if select == "judge":
        plans["judge"] = "{question} {plans}"
    if revise:
        plans["revise"] = {"rounds": 2, "ask": "{question} {plan} {execution}", "excerpt": 20}
    stages = {"plans": {"kind": "evaluate", "max_new_tokens": 4, "plans": plans}}
    running.run_quietly(running.small_recipe(model, tmp_path / "run", stages))
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples" / "plans.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    for row in rows:
        assert row["text"].startswith("<EXPLORATION>")
        assert "</plan><EXECUTION>" in row["text"]
        executions = row["info"]["executions"]
        again = [one["revised"]["tokens"] for one in executions if "revised" in one]
        assert row["tokens"] == row["info"]["plan_tokens"] + sum(one["tokens"] for one in executions) + sum(again)
        assert bool(again) == revise  # a model that was never trained comes to no answer
    found = json.loads((tmp_path / "run" / "results" / "plans.json").read_text())
    assert found["tokens"] == sum(row["tokens"] for row in rows)
    assert found["metrics"]["majority@3"] == found["metrics"]["accuracy"]
