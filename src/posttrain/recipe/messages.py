"""What is wrong with a recipe, in a sentence each: the place, the key, what was found, what would be right."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from posttrain.errors import nearest, said, wanted, written
from posttrain.recipe.fields import STAGE_KINDS, Recipe
from posttrain.recipe.inputs import Data, Model
from posttrain.recipe.yaml_text import line_of

Keys = tuple[str, ...]

ELSEWHERE = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "micro_batch_tokens",
    "micro_batch_size": "micro_batch_tokens",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "min_lr_ratio": "floor",
    "optim": "optimizer",
    "max_grad_norm": "gradient_clip",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "logging_steps": "log_every",
    "save_steps": "checkpoint_every",
    "eval_steps": "watch",
    "loss": "objective",
    "ref_model": "reference",
    "max_tokens": "max_new_tokens",
    "max_completion_length": "max_new_tokens",
    "num_generations": "n",
    "num_return_sequences": "n",
    "attn_implementation": "attention",
    "torch_dtype": "dtype",
    "model_name_or_path": "path",
    "output_dir": "out",
    "report_to": "trackers",
    "datasets": "data",
    "dataset": "data",
    "max_samples": "count",
}
"""What other trainers call a key -> what it is called here."""


def suggestion(key: str, known: Iterable[str]) -> str:
    """A clause for an unknown key: its name here, where other trainers have one, else the nearest."""
    names = list(known)
    here = ELSEWHERE.get(key)
    return f"here it is called '{here}'" if here in names else nearest(key, names)


@dataclass(frozen=True)
class Place:
    """Where a key was written: `where` is the file with the YAML `text`, or an override set it."""

    where: str
    text: str
    overrides: Mapping[Keys, str]

    def __call__(self, keys: Keys) -> str:
        """The place of a key: `recipe.yaml:7`, or the override that set it (or, of a missing key, made its parent)."""
        line, depth = line_of(self.text, keys)
        parent = keys[: max(depth, len(keys) - 1)]
        for path, given in self.overrides.items():
            within = depth < len(parent) and path[: len(parent)] == parent
            if keys[: len(path)] == path or within or (depth < len(keys) and path[: len(keys)] == keys):
                return f"override '{given}'"
        return f"{self.where}:{line}" if line else self.where


def messages(
    error: ValidationError, content: Any, place: Place, fields_at: Callable[[Keys], list[str]] | None = None
) -> list[str]:
    """A message for each wrong key, in order. Where a value fits none of several types, one message stands for all.

    `fields_at`: which names may stand at a place; default: of a recipe.
    """
    found: dict[Keys, list[Any]] = {}
    for item in error.errors():
        tagged = tuple(str(part) for part in item["loc"])
        keys = _without_tags(tagged)
        if item["type"] not in ("extra_forbidden", "missing"):
            keys = written(keys, content)[0] or keys
        found.setdefault(keys, []).append((tagged, item))
    deepest = [
        keys for keys in found if not any(len(keys) < len(other) and other[: len(keys)] == keys for other in found)
    ]
    known = fields_at or _fields_at
    return [f"{place(keys)}: {_message(keys, found[keys], content, known)}" for keys in deepest]


def _message(keys: Keys, items: list[tuple[Keys, Any]], content: Any, fields_at: Callable[[Keys], list[str]]) -> str:
    tagged, error = items[0]
    name = ".".join(keys)
    if not keys:  # of the file as a whole
        return str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"unknown key '{name}': {suggestion(keys[-1], fields_at(tagged[:-1]))}"
    if tagged[-1] == "[key]":
        return f"the key {tagged[-2]} in '{'.'.join(tagged[:-2])}' has to be text: put it in quotes"
    if error["type"] == "missing" and not keys[-1].isdecimal():
        return f"'{name}' is missing"
    if error["type"] == "union_tag_invalid":
        kind = error["input"].get("kind")
        return f"'{name}.kind' is {said(kind)}: {nearest(str(kind), STAGE_KINDS)}"
    if error["type"] == "value_error":
        return f"'{name}': {str(error['msg']).removeprefix('Value error, ')}"
    if error["type"] == "missing":
        keys = keys[:-1]
    wants = [wanted(each) for _, each in items]
    right = " or ".join(dict.fromkeys(want.removeprefix("has to be ") for want in wants))
    verb = "" if right.startswith("has to") else "has to be "
    there, value = written(keys, content)
    return f"'{'.'.join(keys)}' {verb}{right}, found {said(value if there == keys else error['input'])}"


def _without_tags(keys: Keys) -> Keys:
    """pydantic puts a stage's kind behind its name; the YAML does not."""
    return keys[:2] + keys[3:] if len(keys) > 2 and keys[0] == "stages" and keys[2] in STAGE_KINDS else keys


def _fields_at(keys: Keys) -> list[str]:
    """Names that may stand at a place of the recipe."""
    if not keys:
        return list(Recipe.model_fields)
    if keys[0] in ("model", "models"):
        return list(Model.model_fields)
    if keys[0] == "data":
        return list(Data.model_fields)
    if keys[0] == "stages" and len(keys) > 2:
        model: Any = STAGE_KINDS.get(keys[2], Recipe)
        for key in keys[3:]:
            field = model.model_fields.get(key)
            inner = [t for t in get_args(field.annotation) if _is_model(t)] if field else []
            model = inner[0] if inner else model
        return list(model.model_fields)
    return list(Recipe.model_fields)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
