"""What stands between two turns of the assistant: the environment's reply, as the chat template writes it."""

from typing import TYPE_CHECKING

from posttrain.data.chat_template import TEMPLATE_ERRORS, Tools, Turns, render_text, turn_format
from posttrain.data.rendering import Rendering
from posttrain.data.sample import Message, assistant, user
from posttrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER, _REPLY = "posttrainanswer", "posttrainreply"


def continuation(
    tokenizer: "PreTrainedTokenizerBase",
    rendering: Rendering,
    reply: Message,
    *,
    tools: Tools = (),
    ended: bool = True,
) -> list[int]:
    """The tokens from behind a drawn turn to the place where the next one begins: the reply and the generation prompt.

    They follow the token that ended the turn; `ended=False` puts that token first, for a turn that a stop string cut
    off. Found by rendering a chat of placeholders: what a template makes of earlier turns (it may drop their
    reasoning) takes no part, and what was drawn stays as it was drawn.

    Raises `UserError` where the template refuses or leaves out such a reply, and for `template: none`.
    """
    if rendering.template == "none":
        raise UserError("a reply needs a chat template that says where a turn ends: template is 'none'")
    refused = ""
    for answer in _answers(reply):
        try:
            between = _behind_answer(tokenizer, rendering, answer, {**reply, "content": _REPLY}, tools)
            whole = _behind_answer(tokenizer, rendering, answer, reply, tools)
        except TEMPLATE_ERRORS as error:
            refused = refused or f": {error}"
            continue
        if between is None or whole is None or _REPLY not in between:
            continue
        ids: list[int] = tokenizer(whole, add_special_tokens=False)["input_ids"]
        before: list[int] = tokenizer(between.partition(_REPLY)[0], add_special_tokens=False)["input_ids"]
        ends = {end for end, _ in turn_format(tokenizer, rendering.template_options, tools).ends}
        place = next((place for place, token in enumerate(before) if token in ends), None)
        if place is not None:
            return ids[place + (1 if ended else 0) :]
        # The template never ends a turn: what was drawn brought its end of sequence along.
        return ids if ended or tokenizer.eos_token_id is None else [tokenizer.eos_token_id, *ids]
    raise UserError(
        f"the chat template {'refuses' if refused else 'leaves out'} a turn of role '{reply['role']}' behind the "
        f"assistant's{refused}; give a template that knows such turns, or let the environment reply in another role"
    )


def _answers(reply: Message) -> list[Message]:
    """Placeholders for the turn that is replied to: templates may want a call before the result of a tool."""
    if reply["role"] != "tool":
        return [assistant(_ANSWER)]
    call = {"name": reply.get("name", "probe"), "arguments": {"argument": _ANSWER}}
    named = {"type": "function", "function": call, "id": reply.get("tool_call_id", "probe0000")}
    return [{"role": "assistant", "content": "", "tool_calls": [named]}, assistant(_ANSWER)]


def _behind_answer(
    tokenizer: "PreTrainedTokenizerBase", rendering: Rendering, answer: Message, reply: Message, tools: Tools
) -> str | None:
    """What the template writes behind the placeholder of the answer; None where it leaves that out."""
    turns = Turns((user("question"), answer, reply), tools, generation_prompt=True)
    _, found, text = render_text(tokenizer, turns, rendering.template_options).partition(_ANSWER)
    return text if found else None
