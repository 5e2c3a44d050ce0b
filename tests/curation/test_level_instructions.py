import pytest

from posttrain.curation import curate
from posttrain.data import Sample, assistant, user
from posttrain.errors import UserError

SAMPLES = [Sample((user(f"{k} + 1?"),), (assistant(str(k + 1)),), answer=str(k + 1), task="t") for k in range(600)]
TEXTS = {"short": "Think briefly.", "medium": "Think normally.", "long": "Think at length."}


def test_each_prompt_says_one_level_drawn_uniformly_by_the_seed() -> None:
    found = curate("levels", SAMPLES, 3, {})
    assert found == curate("levels", SAMPLES, 3, {}) != curate("levels", SAMPLES, 4, {})
    for before, after in zip(SAMPLES, found, strict=True):
        level = after.meta["level"]
        assert after.prompt_text == f"{before.prompt_text}\n{TEXTS[level]}"
        assert (after.response, after.answer, after.task) == (before.response, before.answer, before.task)
    counts = [sum(sample.meta["level"] == level for sample in found) for level in TEXTS]
    assert all(160 < count < 240 for count in counts)


def test_one_level_for_all_and_words_of_ones_own() -> None:
    spec = {"name": "levels", "level": "low", "instructions": {"low": "[low]", "high": "[high]"}, "separator": " "}
    found = curate(spec, SAMPLES[:3], 0, {})
    assert [sample.prompt_text for sample in found] == ["0 + 1? [low]", "1 + 1? [low]", "2 + 1? [low]"]
    assert {sample.meta["level"] for sample in found} == {"low"}


def test_what_cannot_be_marked_is_refused() -> None:
    with pytest.raises(UserError, match=r"option 'level'.*short"):
        curate({"name": "levels", "level": "shrt"}, SAMPLES, 0, {})
    with pytest.raises(UserError, match="instructions"):
        curate({"name": "levels", "instructions": {}}, SAMPLES, 0, {})
    with pytest.raises(UserError, match="does not end with a user's turn"):
        curate("levels", [Sample((user("a"), assistant("b")))], 0, {})
