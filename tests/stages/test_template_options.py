"""What a recipe says of the chat template reaches training and asking alike."""

import pytest
from architectures import build, tokenizer

from posttrain.data import Sample
from posttrain.data.rendering import Rendering, render
from posttrain.data.sample import assistant, user
from posttrain.recipe import Train
from posttrain.stages.encoded import prompts_of, rendering_of

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def a_model():
    return build("llama")


def test_options_of_the_template_reach_training_and_prompts(a_model):
    reader = tokenizer()
    reader.chat_template = "{% if brief %}[brief]{% endif %}" + TEMPLATE
    sample = Sample((user("2?"),), (assistant("2"),))
    for options, begin in (({}, "<user>"), ({"brief": True}, "[brief]<user>")):
        trained = render(sample, reader, rendering_of(Train(template_options=options), a_model))
        prompt = prompts_of([sample], reader, Rendering(64, template_options=options), 8)[sample.id]
        assert reader.decode(prompt).startswith(begin)
        assert trained.tokens[: len(prompt)].tolist() == prompt.tolist()


def test_the_end_token_of_plain_text_can_be_left_out(a_model):
    reader = tokenizer()
    sample = Sample((user("2?"),), (assistant("2"),))
    ended, open_ended = (
        render(sample, reader, rendering_of(Train(template="none", append_eos=keep), a_model)).tokens.tolist()
        for keep in (True, False)
    )
    assert ended == [*open_ended, reader.eos_token_id]
