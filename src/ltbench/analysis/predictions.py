"""What a run recorded of a split; neither data nor network is read."""

from pathlib import Path

from ltbench.errors import UserError
from ltbench.metrics.counts import Classes
from ltbench.records import Predictions, RunFolder


def recorded(folder: Path, selection: str, split: str) -> tuple[Predictions, Classes] | None:
    """Return what a run stored when it was evaluated, and its classes; None where it is not there.

    Args:
        folder: The run folder.
        selection: ``last`` or ``best``.
        split: ``test`` or ``val``.

    Raises:
        UserError: They are damaged, or do not fit the record.
    """
    run = RunFolder(folder)
    path = run.predictions(selection, split)
    if not (path.is_file() and run.record.is_file()):
        return None
    record = run.read()
    stored = run.read_predictions(record, selection, split, logits=False)
    if stored is None or stored.confidence is None:
        raise UserError(f"{path} is damaged: it has no column 'confidence'.")
    return stored, Classes.of(record["data"])
