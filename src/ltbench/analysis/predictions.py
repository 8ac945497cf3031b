"""Predictions on a split: those that a run recorded, or those of a network now."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltbench import records
from ltbench.counts import Indices, index_groups


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
    """
    stem = "predictions" if split == "test" else f"{split}_predictions"
    path, record = folder / f"{stem}_{selection}.npz", folder / "record.json"
    if not (path.is_file() and record.is_file()):
        return None
    data = records.read_record(record)["data"]
    with np.load(path, allow_pickle=False) as found:
        return Predictions(
            found["label"],
            found["prediction"],
            found["confidence"].astype(np.float64),
            np.array(data["class_counts"]),
            data["class_names"],
            split,
        )
