"""Make the tokenizer and the configuration of the small base model: `python scripts/tiny_tokenizer.py FOLDER`.

Byte-level, so that every text can be written; digits and punctuation marks are tokens of their own, so that a number
always looks the same; letters merge into the words of the tasks' texts. The weights come from
`posttrain run tiny-base`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config

from posttrain.tasks import tasks

VOCABULARY = 704
TASKS = (
    "chains",
    "countdown",
    "facts",
    "logic",
    "multiplication",
    "word_problems",
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>", "<|mask|>"]
READABLE = [
    *("<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>", "<tool_response>"),
    *(
        "</tool_response>",
        "<image>",
        "</image>",
        "<plan>",
        "</plan>",
        "<execute>",
        "</execute>",
        "<latent>",
        "</latent>",
    ),
]
RESERVED = [f"<|reserved_{index}|>" for index in range(11)]
TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}<|im_start|>assistant
{% generation %}{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{%- endgeneration %}
{% elif message.role == 'tool' %}<|im_start|>tool
<tool_response>{{ message.content }}</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def texts() -> Iterator[str]:
    """Questions and answers of every task, style and difficulty."""
    for name in TASKS:
        task = tasks[name]()
        for difficulty in ("in", "harder"):
            for style in task.styles:
                for sample in task.samples(600, 1, difficulty=difficulty, style=style):
                    yield f"{sample.prompt_text}\n{sample.response_text}"
    yield from ("user", "assistant", "system", "tool", "Tools: ") * 20_000


def main(folder: Path) -> None:
    """Write tokenizer and configuration to `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[^\w\s]|\s+(?=[^\w\s]|\d)"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [*CONTROL, *READABLE, *RESERVED]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(added),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", model_max_length=1024
    )
    fast.add_special_tokens({"additional_special_tokens": [*CONTROL[:2], CONTROL[4], *RESERVED]})
    # Not "special": they are part of an answer's text and must survive decoding.
    fast.add_tokens(READABLE, special_tokens=False)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=480,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=fast.pad_token_id,
        dtype="float32",
        architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(folder)
    assert len(fast) == VOCABULARY, len(fast)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
