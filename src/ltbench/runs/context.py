"""What is known of a run beside its model and its data."""

from dataclasses import dataclass
from typing import Any

from ltbench.records import RunFolder


@dataclass
class RunContext:
    """What names a run, where it lies and what it is doing: its callbacks share one of these.

    Attributes:
        name: Of the run, for people.
        job_id: 16 hex digits of what could change its result.
        folder: Where it leaves its files.
        config: The resolved config.
        starts: What names the trained networks that it begins with, by the model's argument.
        made_from: What the model is made from: its class and all of its arguments.
        selection: Which weights are evaluated: ``last``; ``best``, the first epoch that was best on
            validation; ``given``, a checkpoint that the user named; None while training.
    """

    name: str
    job_id: str
    folder: RunFolder
    config: dict[str, Any]
    starts: dict[str, dict[str, Any]]
    made_from: dict[str, Any]
    selection: str | None = None
