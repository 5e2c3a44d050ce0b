"""What a stage is going to do, found out before anything is computed."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plan:
    """`numbers`: derived values to print before the start. `notes`: what the user should know besides."""

    numbers: dict[str, int | float | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
