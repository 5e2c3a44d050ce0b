"""Problems, demonstrations, verifiers."""

from posttrain.tasks.task import Difficulty, Task, tasks

__all__ = ["Difficulty", "Task", "tasks"]
