"""What every classification method shares: exact evaluation of its heads, and predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from typing_extensions import override

from ltbench import records
from ltbench.data.datasets import Batch
from ltbench.errors import UserError
from ltbench.escaping import cells
from ltbench.methods.base import Method
from ltbench.methods.parts.trainable import evaluation_mode
from ltbench.metrics.collector import LongTailMetrics


class ClassificationModule(Method):
    """Base of the classification methods.

    A method builds its networks in ``__init__`` and gives :meth:`forward` and
    :meth:`training_step`; one with another rule at test time overrides :meth:`outputs`. Evaluation
    counts are summed over ranks once; nothing is averaged.

    Attributes:
        class_counts: (C,) float buffer, training images of each class; known after ``setup``.
    """

    monitor = "val/mean_recall"
    class_counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("class_counts", torch.ones(num_classes))
        self.collectors = nn.ModuleDict()

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the outputs that are evaluated; the first one, "", is the prediction."""
        return ("",)

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.data.num_classes != self.num_classes:
            raise UserError(
                f"the model has {self.num_classes} classes, the data {self.data.num_classes}: "
                "set the model's num_classes to data.num_classes."
            )
        if stage == "predict":
            return
        self.class_counts.copy_(torch.from_numpy(self.data.class_counts))
        self.collect()

    def collect(self) -> None:
        """Make a metric collector for each split and head."""
        counts = torch.from_numpy(self.data.class_counts)
        # On every rank, also on one that gets no image: the sums are collective.
        self.collectors = nn.ModuleDict(
            {
                f"{split}/{head}": LongTailMetrics(
                    self.num_classes, counts, head_mid_tail=self.data.head_mid_tail
                )
                for split in [*self.data.watched, "test"]
                for head in self.heads
            }
        )

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits (B, C) of each of :attr:`heads` for images (B, in_chans, H, W)."""
        return {self.heads[0]: self(images)}

    def outputs_of(self, batch: Batch) -> dict[str, Tensor]:
        """Return the logits (B, C) of each of :attr:`heads` for what :meth:`images` gives."""
        return self.outputs(batch["image"])

    @override
    def on_validation_epoch_start(self) -> None:
        # The average of the weights, where there is one, is in place now. DDP does not send buffers
        # around where optimization is manual.
        self.agree_on(self)

    @override
    def on_test_epoch_start(self) -> None:
        self.agree_on(self)

    @override
    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        return self._count(self.data.watched[dataloader_idx], batch)

    @override
    def on_validation_epoch_end(self) -> None:
        for split in self.data.watched:
            self._log_all(split, "val" if split == "val" else f"{split}_watched")

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._count("test", batch)

    @override
    def on_test_epoch_end(self) -> None:
        self._test_recalls = self._collector("test", self.heads[0]).per_class_recall()
        self._log_all("test", "test")

    @override
    def test_details(self) -> dict[str, Any]:
        return {"per_class_recall": self._test_recalls.tolist()}

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.outputs(batch["image"])[self.heads[0]].float().softmax(1).cpu()

    @override
    def check_output(self, output: str | None) -> None:
        records.require_place(Path(output or "predictions.csv"))

    @override
    def write_predictions(self, batches: Sequence[Any], output: str | None) -> str:
        scores = torch.cat([scores for scores in batches if isinstance(scores, Tensor)])
        file = Path(output or "predictions.csv")
        paths = self.data.images_to_predict().paths
        table = cells(prediction_table(paths, scores, self.data.source.class_names))
        # Bytes of a path that are not UTF-8 are written as they are.
        records.write_whole(
            file, lambda stream: table.to_csv(stream, index=False, errors="surrogateescape")
        )
        return f"{len(table)} images classified: {file}"

    def confusion(self, network: nn.Module, split: str = "val") -> Tensor:
        """Count a split's images by true and predicted class, in one pass without augmentation.

        Args:
            network: Maps normalised images to logits; its mode is restored.
            split: Name of a split.

        Returns:
            (C, C) int64, rows the truth, summed over ranks.
        """
        self.agree_on(network)
        counts = torch.zeros(self.num_classes**2, dtype=torch.long, device=self.device)
        forward = self.trainer.precision_plugin.forward_context()
        with evaluation_mode(network), torch.no_grad(), forward:
            for batch in self.data.evaluation_batches(split, self.device):
                cells = batch["label"] * self.num_classes + network(batch["image"]).argmax(1)
                counts = counts.index_add(0, cells, torch.ones_like(cells))
        return self.summed(counts).view(self.num_classes, self.num_classes)

    def _collector(self, split: str, head: str) -> LongTailMetrics:
        collector = self.collectors[f"{split}/{head}"]
        assert isinstance(collector, LongTailMetrics)
        return collector

    def _count(self, split: str, batch: Batch) -> dict[str, Tensor]:
        if len(batch["label"]):
            logits = self.outputs_of(batch)
        else:  # other ranks have one batch more
            none = torch.zeros(0, self.num_classes, device=self.device)
            logits = dict.fromkeys(self.heads, none)
        for head, scores in logits.items():
            self._collector(split, head).update(scores, batch["label"])
        return logits

    def _log_all(self, split: str, prefix: str) -> None:
        # Every rank holds the same summed counts, so there is nothing left to reduce.
        for head in self.heads:
            collector = self._collector(split, head)
            place = f"{prefix}/{head}" if head else prefix
            self.log_dict({f"{place}/{key}": value for key, value in collector.compute().items()})
            collector.reset()


def prediction_table(paths: Sequence[Path], scores: Tensor, names: Sequence[str]) -> pd.DataFrame:
    """Lay out predictions: path, class, confidence, and the five most likely classes.

    Args:
        paths: The N images.
        scores: Class probabilities, (N, C).
        names: Names of the C classes.
    """
    top, which = scores.topk(min(5, len(names)))
    table = pd.DataFrame({"image": [str(path) for path in paths]})
    table["class"] = [names[i] for i in which[:, 0].tolist()]
    table["confidence"] = top[:, 0].numpy()
    for k in range(top.shape[1]):
        table[f"top{k + 1}"] = [names[i] for i in which[:, k].tolist()]
        table[f"top{k + 1}_confidence"] = top[:, k].numpy()
    return table
