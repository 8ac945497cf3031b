"""The predictions that a run keeps, so that metrics can be recomputed and methods compared."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from ltbench.data.datasets import Batch
from ltbench.methods.base import Method
from ltbench.records import Predictions
from ltbench.records.folder import COLUMNS
from ltbench.runs.context import RunContext

LOGITS_KEPT = 10_000_000


class KeepPredictions(Callback):
    """Store what the chosen weights of a run predict for the validation and the test images.

    Args:
        context: The run; while it has no selection nothing is kept.
    """

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self._outputs: dict[str, list[dict[str, Tensor]]] = {}

    @override
    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._collect(pl_module, "test", outputs, batch)

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, Method)
        if pl_module.data.watched[dataloader_idx] == "val":
            self._collect(pl_module, "val", outputs, batch)

    def _collect(
        self, pl_module: L.LightningModule, split: str, outputs: object, batch: Batch
    ) -> None:
        if self.context.selection is None or not isinstance(outputs, dict):
            return
        assert isinstance(pl_module, Method)
        images = len(pl_module.data.splits[split].labels)
        self._outputs.setdefault(split, []).append(predicted(batch, outputs, images))

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._store(trainer)

    @override
    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._store(trainer)

    def _store(self, trainer: L.Trainer) -> None:
        if self.context.selection is None:
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
            columns = {
                name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]
            }
            heads = {name: columns.pop(name) for name in [*columns] if name not in COLUMNS}
            path = self.context.folder.predictions(self.context.selection, split)
            Predictions(**columns, heads=heads).write(path)


def predicted(batch: Batch, outputs: dict[str, Tensor], images: int) -> dict[str, Tensor]:
    """Reduce the logits of a batch at once: those of 8,142 classes and three heads take gigabytes.

    Args:
        batch: With ``index`` and ``label``, (B,) each.
        outputs: Logits (B, C) of each head.
        images: Number of images in the whole split.

    Returns:
        On the CPU the columns of :class:`~ltbench.records.Predictions`, with ``logits`` where the
        split has 10 million or less, and what each further head predicts by its name.
    """
    first, *further = outputs
    logits = outputs[first].float()
    found = {
        "index": batch["index"],
        "label": batch["label"],
        "prediction": logits.argmax(1),
        "confidence": logits.softmax(1).amax(1),
        **{head: outputs[head].argmax(1) for head in further},
    }
    if images * logits.shape[1] <= LOGITS_KEPT:
        found["logits"] = logits
    return {name: tensor.cpu() for name, tensor in found.items()}
