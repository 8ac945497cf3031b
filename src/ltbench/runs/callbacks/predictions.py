"""The predictions of a run, stored so that metrics can be recomputed and methods compared."""

from typing import Any

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

MAX_LOGITS = 10_000_000


class KeepPredictions(Callback):
    """Store what the selected weights of a run predict for the validation and the test images.

    Args:
        context: The run; nothing is stored while it has no selection.
    """

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self._outputs: dict[str, list[dict[str, Tensor]]] = {}

    def _collect(self, module: L.LightningModule, outputs: object, batch: Batch, name: str) -> None:
        if self.context.selection is None or not isinstance(outputs, dict):
            return
        assert isinstance(module, Method)
        images = len(module.data.splits[name].labels)
        self._outputs.setdefault(name, []).append(predicted(batch, outputs, images))

    @override
    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        self._collect(pl_module, outputs, batch, "test")

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, Method)
        if pl_module.data.watched[dataloader_idx] == "val":
            self._collect(pl_module, outputs, batch, "val")

    @override
    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.context.selection is None:
            return
        shards: list[dict[str, list[dict[str, Tensor]]]] = [self._outputs]
        if trainer.world_size > 1:
            shards = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(shards, self._outputs)
        self._outputs = {}
        if not trainer.is_global_zero:
            return
        for split in {split: None for shard in shards for split in shard}:
            batches = [batch for shard in shards for batch in shard.get(split, [])]
            columns = {
                name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]
            }
            heads = {name: columns.pop(name) for name in [*columns] if name not in COLUMNS}
            path = self.context.folder.predictions(self.context.selection, split)
            Predictions(**columns, heads=heads).write(path)

    on_validation_epoch_end = on_test_epoch_end


def predicted(batch: Batch, outputs: dict[str, Tensor], images: int) -> dict[str, Tensor]:
    """Reduce the logits of a batch at once: those of 8,142 classes and three heads take gigabytes.

    Args:
        batch: With ``index`` and ``label``, (B,) each.
        outputs: Logits (B, C) of each head.
        images: Number of images in the whole split.

    Returns:
        On the CPU the columns of :class:`~ltbench.records.Predictions`, with ``logits`` if the
        split has at most 10 million, and the predictions of each further head by its name.
    """
    first, *further = outputs
    logits = outputs[first].float()
    columns = {
        "index": batch["index"],
        "label": batch["label"],
        "prediction": logits.argmax(1),
        "confidence": logits.softmax(1).amax(1),
        **{head: outputs[head].argmax(1) for head in further},
    }
    if images * logits.shape[1] <= MAX_LOGITS:
        columns["logits"] = logits
    return {name: tensor.cpu() for name, tensor in columns.items()}
