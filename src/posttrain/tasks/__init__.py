"""Problems, demonstrations, verifiers."""

from posttrain.tasks import (
    assistant,
    chains,
    countdown,
    digits,
    facts,
    files,
    general_points,
    logic,
    multiplication,
    screening,
    sokoban,
    sql,
    tool_calls,
    toolrl,
    word_problems,
)
from posttrain.tasks.task import Difficulty, Interactive, Task, tasks

__all__ = [
    "Difficulty",
    "Interactive",
    "Task",
    "assistant",
    "chains",
    "countdown",
    "digits",
    "facts",
    "files",
    "general_points",
    "logic",
    "multiplication",
    "screening",
    "sokoban",
    "sql",
    "tasks",
    "tool_calls",
    "toolrl",
    "word_problems",
]
