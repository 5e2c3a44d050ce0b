"""Problems, demonstrations, verifiers."""

from posttrain.tasks import chains, countdown, facts, files, logic, multiplication, word_problems
from posttrain.tasks.task import Difficulty, Task, tasks

__all__ = [
    "Difficulty",
    "Task",
    "chains",
    "countdown",
    "facts",
    "files",
    "logic",
    "multiplication",
    "tasks",
    "word_problems",
]
