"""The loop, its gradient, its optimisers and schedules, checkpoints, and the processes of a run."""
