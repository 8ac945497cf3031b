"""What the callbacks of a run know of it, beside its model and its data."""

from dataclasses import dataclass
from typing import Any

from ltbench.records import RunFolder


@dataclass
class RunContext:
    """What identifies a run, where it lies and what it is doing; its callbacks share one of these.

    Attributes:
        name: Name of the run, for people.
        job_id: Hash of everything that could change its result, 16 hex digits.
        folder: Where it writes its files.
        config: The resolved config.
        starts: Identity of each trained network that it starts from, by the model's argument.
        made_from: Class and all arguments of the model.
        selection: Which weights are evaluated: ``last``; ``best``, the first epoch that was best on
            validation; ``given``, a checkpoint named by the user; None while training.
    """

    name: str
    job_id: str
    folder: RunFolder
    config: dict[str, Any]
    starts: dict[str, dict[str, Any]]
    made_from: dict[str, Any]
    selection: str | None = None
