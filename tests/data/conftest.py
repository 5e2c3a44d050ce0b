"""Small tokenizers with chat templates of every kind that the data room has to cope with."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_HEADER = "{{ '<|im_start|>' + m['role'] + '\n' }}"
_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_EACH, _END = "{% for m in messages %}", "{% endfor %}"

TEMPLATES = {
    "chatml": _EACH + _HEADER + "{{ m['content'] + '<|im_end|>\n' }}" + _END + _PROMPT,
    "marks": _EACH
    + _HEADER
    + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    + "{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}"
    + _END
    + _PROMPT,
    "marks_without_end": _EACH
    + _HEADER
    + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    + "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}"
    + _END
    + _PROMPT,
    "strips_thinking": _EACH
    + _HEADER
    + "{% set text = m['content'] %}"
    + "{% if not loop.last and '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}"
    + "{{ text + '<|im_end|>\n' }}"
    + _END
    + _PROMPT,
    "strips_every_thought": _EACH
    + _HEADER
    + "{{ m['content'].split('</think>')[-1] + '<|im_end|>\n' }}"
    + _END
    + _PROMPT,
    "empty_thinking": _EACH
    + _HEADER
    + "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}"
    + _END
    + _PROMPT
    + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    + "{{ '<think>\n\n</think>\n\n' }}{% endif %}",
    "no_end": _EACH
    + "{{ m['role'] + ':\n' + m['content'] + '\n' }}"
    + _END
    + "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}",
    "trims": _EACH + _HEADER + "{{ m['content'] | trim + '<|im_end|>\n' }}" + _END + _PROMPT,
    "eos_at_end": _EACH
    + _HEADER
    + "{{ m['content'] + '<|im_end|>\n' }}"
    + _END
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}",
    "tools": "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    + _EACH
    + _HEADER
    + "{{ m['content'] or '' }}{% for c in m['tool_calls'] or [] %}"
    + "{{ '<tool_call>' + (c['function'] | tojson) + '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    + _END
    + _PROMPT,
    "calls_end_otherwise": _EACH
    + _HEADER
    + "{% if m['tool_calls'] %}{{ (m['tool_calls'] | tojson) + '</tool_call>' }}"
    + "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}"
    + _END
    + _PROMPT,
    "drops_results": _EACH
    + "{% if m['role'] != 'tool' %}"
    + _HEADER
    + "{{ m['content'] + '<|im_end|>\n' }}{% endif %}"
    + _END
    + _PROMPT,
    "alternates": _EACH
    + "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    + _HEADER
    + "{{ m['content'] + '<|im_end|>\n' }}"
    + _END
    + _PROMPT,
}

TEMPLATES["tools_and_eos_at_end"] = TEMPLATES["tools"] + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>"]
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # as in Qwen's tokenizers
_TEXT = [
    "The cat sat on the mat, and then the cat ate.\n\nassistant\n\n",
    "user system assistant tool 12 + 30 = 42\n",
] * 4


def _tokenizer(template: str | None, eos: str | None = "<|im_end|>", bos: bool = False) -> PreTrainedTokenizerFast:
    model = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    model.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    model.train_from_iterator(_TEXT, trainer)
    names = {"eos_token": eos} if eos else {}
    if bos:
        model.post_processor = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
        names["bos_token"] = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, **names)
    tokenizer.chat_template = TEMPLATES[template] if template else None
    return tokenizer


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """`make_tokenizer(template, eos, bos)`: a byte-level tokenizer with one of `TEMPLATES`, or with none."""
    return _tokenizer


@pytest.fixture(scope="session")
def released_tokenizer() -> Callable[[str, str], PreTrainedTokenizerFast]:
    """`released_tokenizer(name, end)`: with a released model's template, as TRL ships it; `end` ends a turn."""
    trl = pytest.importorskip("trl")

    def make(name: str, end: str) -> PreTrainedTokenizerFast:
        path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
        if not path.is_file():
            pytest.skip(f"this version of TRL ships no {name}.jinja")
        tokenizer = _tokenizer(None, bos=True)
        tokenizer.chat_template = path.read_text().replace("<end_of_turn>", "<turn>")
        tokenizer.add_special_tokens({"additional_special_tokens": [end]})
        return tokenizer

    return make
