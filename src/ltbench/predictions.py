"""The predictions that a run keeps, so that metrics can be recomputed and methods compared."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ltbench import records
from ltbench.data.datasets import Batch
from ltbench.methods.base import Method

LOGITS_KEPT = 10_000_000


class KeepPredictions(Callback):
    """Store what the chosen weights of a run predict for the validation and the test images.

    Args:
        folder: The run folder.

    Attributes:
        selection: Which weights are evaluated, for the names of the files; while it is None
            nothing is kept.
    """

    def __init__(self, folder: Path) -> None:
        """Keep nothing before a selection is named."""
        self.folder = folder
        self.selection: str | None = None
        self._outputs: dict[str, list[dict[str, Tensor]]] = {}

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores of every test image, where the method gives any."""
        self._collect("test", outputs, batch)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores of the chosen weights; those of every epoch would be too many."""
        assert isinstance(pl_module, Method)
        if pl_module.data.watched[dataloader_idx] == "val":
            self._collect("val", outputs, batch)

    def _collect(self, split: str, outputs: object, batch: Batch) -> None:
        if self.selection is None or not isinstance(outputs, dict):
            return
        row = {"index": batch["index"], "label": batch["label"], **outputs}
        self._outputs.setdefault(split, []).append(
            {name: tensor.cpu() for name, tensor in row.items()}
        )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Store the scores of the validation set, as those of the test set."""
        self._store(trainer)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring the scores of all ranks together and store them on the first."""
        self._store(trainer)

    def _store(self, trainer: L.Trainer) -> None:
        if self.selection is None:
            return
        found: list[dict[str, list[dict[str, Tensor]]]] = [self._outputs]
        if trainer.world_size > 1:
            found = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(found, self._outputs)
        self._outputs = {}
        if not trainer.is_global_zero:
            return
        for split in {split: None for shard in found for split in shard}:
            batches = [batch for shard in found for batch in shard.get(split, [])]
            columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
            self.save_predictions(split, columns)

    def save_predictions(self, split: str, columns: dict[str, Tensor]) -> None:
        """Write ``predictions_<selection>.npz`` (test) or ``<split>_predictions_<selection>.npz``.

        It opens with ``allow_pickle=False``. Arrays, a row an image, in the order of the source:
        ``index`` (N,), ``label`` (N,), ``prediction`` (N,), ``confidence`` (N,), ``logits`` (N, C)
        up to 10 million of them, and ``prediction_<head>`` (N,) of each further head.

        Args:
            split: Which images.
            columns: ``index`` and ``label``, then the logits (N, C) of each head.
        """
        index, label, *heads = columns.values()
        order = index.argsort(stable=True)
        logits = heads[0][order].float()
        confidence, prediction = logits.softmax(1).max(1)
        arrays: dict[str, Any] = {
            "index": index[order],
            "label": label[order],
            "prediction": prediction,
            "confidence": confidence,
        }
        if logits.numel() <= LOGITS_KEPT:
            arrays["logits"] = logits
        for name in list(columns)[3:]:
            arrays[f"prediction_{name}"] = columns[name][order].argmax(1)
        stem = "predictions" if split == "test" else f"{split}_predictions"
        path = self.folder / f"{stem}_{self.selection}.npz"
        arrays = {name: tensor.numpy() for name, tensor in arrays.items()}
        records.write_whole(path, lambda file: np.savez_compressed(file, **arrays))
