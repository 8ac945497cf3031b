"""What every classification method shares: exact evaluation, seeded steps, and its paper's card."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from ltbench import seeding
from ltbench.data.datamodule import Batch, LongTailDataModule
from ltbench.errors import UserError
from ltbench.metrics import LongTailMetrics


@dataclass(frozen=True)
class Paper:
    """Where a method comes from.

    Args:
        title: Title of the paper.
        venue: Where and when it appeared.
        arxiv: Its arXiv number.
        equations: Equation or section -> the function here that computes it.
        deviations: Where this implementation differs from the paper or its code, and why.
    """

    title: str
    venue: str
    arxiv: str
    equations: Mapping[str, str] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()


class ClassificationModule(L.LightningModule):
    """Base of the classification methods.

    A method builds its networks in ``__init__`` and gives :meth:`forward` and
    :meth:`training_step`. Evaluation counts are summed over ranks once; nothing is averaged.

    Attributes:
        paper: The method's card, printed by ``ltbench show``; every method of ltbench has one.
        class_counts: (C,) float buffer, training images of each class; known after ``setup``.
    """

    paper: ClassVar[Paper | None] = None
    class_counts: Tensor

    def __init__(self, num_classes: int) -> None:
        """Make room for what depends on the data."""
        super().__init__()
        self.num_classes = num_classes
        self.config: dict[str, Any] | None = None
        self.register_buffer("class_counts", torch.ones(num_classes))
        self.watched_metrics = nn.ModuleDict()
        self.test_metrics = nn.ModuleDict()

    @property
    def deviations(self) -> Sequence[str]:
        """Where this run differs from its paper, for the record."""
        return self.paper.deviations if self.paper else ()

    @property
    def data(self) -> LongTailDataModule:
        """The data module of the running trainer."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, LongTailDataModule):
            raise UserError(
                "ltbench methods need the class counts of the training set: "
                "pass a LongTailDataModule to the trainer as datamodule=..."
            )
        return data

    def setup(self, stage: str) -> None:
        """Take the class counts from the data and make one metric collector a split."""
        if self.data.num_classes != self.num_classes:
            raise UserError(
                f"the model has {self.num_classes} classes, the data {self.data.num_classes}: "
                "make the model with num_classes=data.num_classes."
            )
        if stage == "predict":
            return
        counts = torch.from_numpy(self.data.class_counts)
        self.class_counts.copy_(counts)
        self.watched_metrics = nn.ModuleDict(
            {name: LongTailMetrics(self.num_classes, counts) for name in self.data.watched}
        )
        self.test_metrics = nn.ModuleDict({"test": LongTailMetrics(self.num_classes, counts)})

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout, mixing and noise of this step by (seed, rank, step)."""
        key = ("step", self.global_rank, self.trainer.global_step)
        torch.manual_seed(seeding.derive(seeding.run_seed(), *key))

    def no_sync(self) -> AbstractContextManager[object]:
        """Open a context in which backward passes do not average gradients over ranks."""
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if block else nullcontext()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count one batch of a watched split."""
        name = self.data.watched[dataloader_idx]
        _collector(self.watched_metrics[name]).update(self(batch["image"]), batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Log every metric of every watched split, computed once from the summed counts."""
        for name, metric in self.watched_metrics.items():
            prefix = "val" if name == "val" else f"{name}_watched"
            self._log_all(prefix, _collector(metric))

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Count one batch of the test split and return its logits (B, C)."""
        logits: Tensor = self(batch["image"])
        _collector(self.test_metrics["test"]).update(logits, batch["label"])
        return logits

    def on_test_epoch_end(self) -> None:
        """Log every metric of the test split."""
        metric = _collector(self.test_metrics["test"])
        self.test_recalls = metric.per_class_recall()
        self._log_all("test", metric)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return class probabilities (B, C)."""
        return self(batch["image"]).float().softmax(1).cpu()  # type: ignore[no-any-return]

    def _log_all(self, prefix: str, metric: LongTailMetrics) -> None:
        # Every rank holds the same summed counts, so there is nothing left to reduce.
        self.log_dict(
            {f"{prefix}/{name}": value for name, value in metric.compute().items()},
            rank_zero_only=False,
            sync_dist=False,
        )
        metric.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write what the model was made from beside its weights."""
        checkpoint["ltbench_model"] = self.config
        checkpoint["ltbench_data"] = self.data.identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another method, of other arguments, or of other data.

        Raises:
            UserError: Naming each argument that differs.
        """
        self._check_model(checkpoint.get("ltbench_model"))
        self._check_data(checkpoint.get("ltbench_data", {}))

    def _check_model(self, theirs: dict[str, Any] | None) -> None:
        ours = self.config
        if theirs is None or ours is None:
            return
        differing = [
            f"{key}: checkpoint {theirs.get(key)!r}, config {ours.get(key)!r}"
            for key in sorted(theirs.keys() | ours.keys())
            if theirs.get(key) != ours.get(key)
        ]
        if differing:
            raise UserError(
                f"the checkpoint was trained with another model ({'; '.join(differing)}). "
                "Use the config.yaml that lies in its run folder."
            )

    def _check_data(self, theirs: dict[str, Any]) -> None:
        ours = self.data.identity()
        if theirs.get("class_names", ours["class_names"]) != ours["class_names"]:
            raise UserError(
                "the checkpoint was trained on classes of other names "
                f"({', '.join(theirs['class_names'][:3])}, ...) than this data has."
            )
        same = theirs.get("training_set", ours["training_set"]) == ours["training_set"]
        if not same and self.trainer.state.fn in (TrainerFn.FITTING, TrainerFn.VALIDATING):
            raise UserError(
                "the checkpoint was trained on other images, which may be in this validation set: "
                "use the data settings of the config.yaml in its run folder."
            )


def _collector(module: nn.Module) -> LongTailMetrics:
    assert isinstance(module, LongTailMetrics)
    return module
