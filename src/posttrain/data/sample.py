"""`Sample`: one item as text."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Message = dict[str, Any]
"""One turn in the Hugging Face chat format: `role`, `content`, and what templates read besides (`tool_calls`, ...)."""


@dataclass(frozen=True)
class Sample:
    """One item as text: what is asked, what was demonstrated, and what counts as right.

    `prompt` holds every turn before the response; earlier assistant turns may be among them. `response` starts with an
    assistant turn; it is empty for an unlabelled prompt. `rejected` is the other response of a preference pair.
    `answer` is what the task's verifier compares with. `tools` and `images` ride along in the Hugging Face formats.
    `scalars` are numbers that a loss reads (`reference_score` ...); they take no part in `id`.
    `meta` is free (`style`, `difficulty`, `source` and `line` of a file row ...) and takes no part in `id`.
    """

    prompt: tuple[Message, ...]
    response: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    answer: str | None = None
    task: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    images: tuple[Any, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Stable name of the content: 16 hex digits, the same in every process, file and order."""
        content = [self.prompt, self.response, self.rejected, self.answer, self.task, self.tools, self.images]
        return _digest(content)

    @cached_property
    def prompt_id(self) -> str:
        """Stable name of the question alone: the same for every response to it."""
        return _digest([self.prompt, self.task, self.tools, self.images])

    @property
    def prompt_text(self) -> str:
        """The content of the last turn of the prompt: what a table of answers shows."""
        return str(self.prompt[-1]["content"]) if self.prompt else ""

    @property
    def response_text(self) -> str:
        """The content of the demonstrated assistant turn, or the empty string."""
        return str(self.response[0].get("content") or "") if self.response else ""

    def to_json(self) -> dict[str, Any]:
        """A row that `from_json` reads back to an equal sample (images are left to the readers of image data)."""
        row: dict[str, Any] = {"id": self.id, "prompt": list(self.prompt)}
        if self.response:
            row["response"] = list(self.response)
        if self.rejected:
            row["rejected"] = list(self.rejected)
        if self.answer is not None:
            row["answer"] = self.answer
        if self.task:
            row["task"] = self.task
        if self.tools:
            row["tools"] = list(self.tools)
        if self.meta:
            row["meta"] = dict(self.meta)
        if self.scalars:
            row["scalars"] = dict(self.scalars)
        return row

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> "Sample":
        """Inverse of `to_json`."""
        return Sample(
            prompt=tuple(row["prompt"]),
            response=tuple(row.get("response", ())),
            rejected=tuple(row.get("rejected", ())),
            answer=row.get("answer"),
            task=row.get("task", ""),
            tools=tuple(row.get("tools", ())),
            meta=row.get("meta", {}),
            scalars=row.get("scalars", {}),
        )


def _digest(content: list[Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_image_digest)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _image_digest(item: Any) -> str:
    """Images take part in an id by their pixels; anything else that JSON lacks, by its text."""
    content = item.tobytes() if hasattr(item, "tobytes") else item if isinstance(item, bytes) else str(item).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def user(content: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant's turn."""
    return {"role": "assistant", "content": content}
