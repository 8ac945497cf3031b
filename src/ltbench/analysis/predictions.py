"""Predictions on a split: those that a run recorded, or those of a network now."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltbench import records
from ltbench.errors import UserError
from ltbench.metrics.counts import Indices, index_groups


@dataclass(frozen=True)
class Predictions:
    """What was predicted of N images.

    Attributes:
        labels: (N,).
        predicted: (N,).
        confidences: Probability of what was predicted, (N,).
        class_counts: Training images of each class, (C,).
        class_names: C names.
        split: What images they are.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidences: NDArray[np.float64]
    class_counts: NDArray[np.int64]
    class_names: list[str]
    split: str

    @property
    def groups(self) -> dict[str, Indices]:
        """Labels of the head, mid and tail classes, by training images."""
        return index_groups(self.class_counts)

    @property
    def group_of(self) -> NDArray[np.str_]:
        """Name of the group of each class, (C,)."""
        found = np.empty(len(self.class_counts), dtype="<U4")
        for name, members in self.groups.items():
            found[members] = name
        return found


def recorded(folder: Path, selection: str, split: str) -> Predictions | None:
    """Return what a run stored when it was evaluated, or None; neither data nor network is read.

    Args:
        folder: The run folder.
        selection: ``last`` or ``best``.
        split: ``test`` or ``val``.

    Raises:
        UserError: They are damaged, or do not fit the record.
    """
    stem = "predictions" if split == "test" else f"{split}_predictions"
    path, record = folder / f"{stem}_{selection}.npz", folder / "record.json"
    if not (path.is_file() and record.is_file()):
        return None
    try:
        data = records.read_record(record)["data"]
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            stored = Predictions(
                found["label"],
                found["prediction"],
                found["confidence"].astype(np.float64),
                np.array(data["class_counts"]),
                list(data["class_names"]),
                split,
            )
    except records.NPZ_DAMAGE as error:
        raise UserError(f"{path} is damaged, or {record} is: {error}") from error
    classes, size = range(len(stored.class_counts)), len(stored.labels)
    for found in (stored.labels, stored.predicted):
        if (
            len(stored.class_names) != len(classes)
            or len(found) != size
            or not {*np.unique(found).tolist()} <= {*classes}
        ):
            raise UserError(f"{path} does not fit the {len(classes)} classes of {record}.")
    if not ((stored.confidences >= 0) & (stored.confidences <= 1)).all():
        raise UserError(f"{path} is damaged: a confidence is not in [0, 1].")
    return stored
