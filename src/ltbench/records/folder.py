"""The files of a run folder, and the predictions in it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ltbench.errors import UserError
from ltbench.records.files import Form, npz_forms, read_npz, write_npz
from ltbench.records.schema import Record, read_record, text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECORD = "record.json"
_CHECKPOINTS = "checkpoints"
COLUMNS, _HEAD = ("index", "label", "prediction", "confidence", "logits"), "prediction_"


MAX_NAME = 200  # bytes; file systems allow 255


def plain_name(name: object, what: str) -> str:
    """Return a name that stands for one file or folder below another, and nowhere else.

    Whatever is read from a record, a plan or a config passes here before it becomes part of a path.

    Args:
        name: As it was read.
        what: Whose name it is, for the message.

    Raises:
        UserError: It is not a text, is empty or too long, leads elsewhere, or cannot be printed.
    """
    if (
        not text(name)
        or name in ("", ".", "..")
        or "/" in name
        or len(name.encode(errors="replace")) > MAX_NAME
        or any("\ud800" <= letter <= "\udfff" for letter in name)
    ):
        raise UserError(
            f"{what} is {name!r:.60}, which cannot name a folder: use at most {MAX_NAME} letters, "
            "no slash."
        )
    return name


class RunFolder:
    """Where a run keeps its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / RECORD  # what the run is and what came of it: see schema
        self.config = path / "config.yaml"  # what builds the run again
        self.curves = path / "metrics.csv"  # a row per epoch
        self.traces = path / "traces.npz"  # arrays of the method by epoch; traces.png draws them
        self.lock = path / "lock"  # held by the process that trains the run
        self.checkpoints = path / _CHECKPOINTS
        self.analyses = path / "analysis"  # the results of ltbench analyze
        self.features = path / "features"  # of its network, for later heads; may be deleted

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> RunFolder:
        """Return the folder of the run that a checkpoint belongs to, else its own folder."""
        above = checkpoint.parent
        return cls(above.parent if above.name == _CHECKPOINTS else above)

    def checkpoint(self, selection: str) -> Path:
        """Return the weights of the ``last`` epoch, or of the ``best`` on validation."""
        return self.checkpoints / f"{selection}.ckpt"

    def predictions(self, selection: str, split: str = "test") -> Path:
        """Return the file of what those weights predict for a split."""
        stem = "predictions" if split == "test" else f"{split}_predictions"
        return self.path / f"{stem}_{selection}.npz"

    def corrected(self, selection: str) -> Path:
        """Return the file of corrections of those predictions that need no training."""
        return self.path / f"corrected_{selection}.json"

    def clear(self) -> None:
        """Remove all but the lock; the record first, without which nothing is taken for a run."""
        self.record.unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self.lock:
                path.unlink()

    def read(self) -> Record:
        """Read the record.

        Raises:
            UserError: It is missing, damaged or of a newer ltbench.
        """
        return read_record(self.record)

    def read_predictions(
        self, record: Record, selection: str, split: str = "test", logits: bool = True
    ) -> Predictions | None:
        """Read predictions and check them against the record; None where there are none.

        Raises:
            UserError: They are damaged, or do not fit the record.
        """
        path = self.predictions(selection, split)
        if not path.exists():
            return None
        if problem := _unfit_form(npz_forms(path), record, split):  # not decompressed yet
            raise UserError(f"{path} {problem}")
        predictions = Predictions.read(path, logits)
        if problem := predictions.misfit(record, selection, split):
            raise UserError(f"{path} {problem}")
        return predictions


@dataclass(frozen=True)
class Predictions:
    """What a run predicts for each of the N images of a split, in the order of the source."""

    index: NDArray[np.int64]  # (N,) positions in the source
    label: NDArray[np.int64]  # (N,) classes
    prediction: NDArray[np.int64]  # (N,) classes
    confidence: NDArray[np.floating] | None = None  # (N,) probability of the prediction
    logits: NDArray[np.float32] | None = None  # (N, C), where they are kept
    heads: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)  # (N,) of further heads

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the prediction is the label."""
        right: NDArray[np.bool_] = self.prediction == self.label
        return right

    def write(self, path: Path) -> None:
        """Write them whole, sorted by index; the file opens with ``allow_pickle=False``."""
        columns = {name: getattr(self, name) for name in COLUMNS} | {
            f"{_HEAD}{head}": column for head, column in self.heads.items()
        }
        order = self.index.argsort(kind="stable")
        write_npz(path, {name: c[order] for name, c in columns.items() if c is not None})

    @classmethod
    def read(cls, path: Path, logits: bool = True) -> Predictions:
        """Read a file, without its logits if they are not needed: they take ten times as long.

        Raises:
            UserError: The file is damaged.
        """
        stored = read_npz(path, *(() if logits else ("logits",)))
        heads = {k.removeprefix(_HEAD): v for k, v in stored.items() if k.startswith(_HEAD)}
        return cls(heads=heads, **{name: stored[name] for name in COLUMNS if name in stored})

    def misfit(self, record: Record, selection: str, split: str) -> str | None:
        """Say how their values contradict the record of their run; None if they do not."""
        import numpy as np

        classes = len(record["data"]["class_counts"])
        labels = (self.label, self.prediction, *self.heads.values())
        if any(((column < 0) | (column >= classes)).any() for column in labels):
            return f"does not fit its record: it has labels beyond the {classes} classes."
        shares = self.confidence
        if shares is not None and not ((shares >= 0) & (shares <= 1)).all():
            return "is damaged: a confidence lies outside [0, 1]."
        if self.logits is not None and not np.isfinite(self.logits).all():
            return "is damaged: its logits are not all finite."
        accuracy = (record["metrics"].get(selection, {}).get(split) or {}).get("accuracy")
        if isinstance(accuracy, int | float) and abs(self.correct.mean() - accuracy) > 1e-6:
            return (
                f"has accuracy {self.correct.mean():.4f}, but its record says {accuracy:.4f}: they "
                "belong to different runs."
            )
        return None


def _unfit_form(forms: Mapping[str, Form], record: Record, split: str) -> str | None:
    """Say which column is missing, or of another shape or type than the record lets expect."""
    images, classes = record["data"]["images"].get(split), len(record["data"]["class_counts"])
    if missing := {"index", "label", "prediction"} - forms.keys():
        return f"is damaged: it has no column '{min(missing)}'."
    for name, (shape, kind) in forms.items():
        if name not in COLUMNS and not name.startswith(_HEAD):
            return f"is damaged: nothing is known of a column '{name:.40}'."
        if name == "logits":
            if shape != (images, classes) or kind.kind != "f" or kind.itemsize > 4:
                return f"is damaged: its logits are not {images} x {classes} numbers of 32 bits."
        elif kind.kind not in ("f" if name == "confidence" else "iu") or len(shape) != 1:
            numbers = "fractions" if name == "confidence" else "whole numbers"
            return f"is damaged: the column '{name:.40}' does not consist of {numbers}."
        elif shape != (images,):
            return f"does not fit its record, which counts {images} images."
    return None
