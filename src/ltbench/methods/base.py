"""What every method shares: its paper's card, seeded steps, and what its checkpoints hold."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import lightning as L
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset
from typing_extensions import override

from ltbench import seeding
from ltbench.data.base import DataModule
from ltbench.data.datasets import Batch, Images
from ltbench.data.streams import Streams
from ltbench.errors import UserError
from ltbench.methods.parts.stages import Trained
from ltbench.models import InputStatistics
from ltbench.optim.guard import FirstBadStep

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def always(run: Any) -> bool:  # noqa: ANN401 - any method
    """A deviation that every run of a method has."""
    return True


@dataclass(frozen=True)
class Paper:
    """Where a method comes from.

    Args:
        title: Title of the paper.
        venue: Where and when it appeared.
        arxiv: Its arXiv number.
        equations: Equation or section -> the function here that computes it.
        deviations: Where this implementation differs from the paper or its code, and why -> whether
            a method after ``setup`` has that deviation. ``ltbench show`` reads the texts from the
            source, so they are literals.
    """

    title: str
    venue: str
    arxiv: str
    equations: Mapping[str, str] = field(default_factory=dict)
    deviations: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)


def method_name(method: type) -> str:
    """Return what a method is called in records and lists: the name of its file or folder."""
    return method.__module__.removesuffix(".method").rpartition(".")[2]


class Method(L.LightningModule):
    """Base of every method: what the command line, the record and a resumed run rely on.

    Attributes:
        paper: The method's card, printed by ``ltbench show``.
        stage: What its runs are called in records.
        averages: Whether it evaluates an average of its weights that it keeps itself.
        monitor: The validation metric whose best epoch is kept beside the last; None keeps none.
        network: Arguments of :func:`~ltbench.models.build_backbone` that rebuild ``self.net``;
            empty where there is no such network.
        starts: The trained networks that a run begins with, by the name of their argument.
        lineage: Where those came from, for the record.
        bad_step: The first step whose loss was not finite.
        traces: Arrays that describe an epoch, by name: the record keeps them when an epoch ends,
            before the method's own ``on_train_epoch_end``.
        pictures: PNG files by their path in a run folder: the record writes them after an
            evaluation.
        evaluation_arguments: Names of arguments that only evaluation reads, and may change.
    """

    paper: ClassVar[Paper | None] = None
    stage: ClassVar[str] = "train"
    averages: ClassVar[bool] = False
    evaluation_arguments: ClassVar[frozenset[str]] = frozenset()
    monitor: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.network: dict[str, Any] = {}
        self.starts: dict[str, Trained] = {}
        self.lineage: list[dict[str, Any]] = []
        self.traces: dict[str, Tensor] = {}
        self.pictures: dict[str, bytes] = {}
        self.bad_step = FirstBadStep()

    @property
    def deviations(self) -> Sequence[str]:
        """Where this run differs from its paper, for the record."""
        card = self.paper.deviations if self.paper else {}
        return [text for text, applies in card.items() if applies(self)]

    @property
    def input_statistics(self) -> InputStatistics | None:
        """How images are brought to the weights that a run starts from.

        None where it starts from scratch, or they do not say: by the data's own statistics.
        """
        return None

    @property
    def data(self) -> DataModule:
        """The data module of the running trainer."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, DataModule):
            raise UserError(
                "ltbench methods need to know their data: pass a LongTailDataModule to the trainer "
                "as datamodule=..."
            )
        return data

    def streams(self, data: DataModule) -> Streams:
        """Return what a training batch holds: what the data's config says."""
        return data.streams()

    def images(self, data: DataModule, split: str) -> Images:
        """Return what batches of a split are made of, unless they are augmented: its images."""
        return data.dataset(split)

    def to_predict(self, data: DataModule) -> Dataset[Batch]:
        """Return what ``predict_step`` is called on: the images of the data's config."""
        return data.images_to_predict()

    @override
    def setup(self, stage: str) -> None:
        if self.trainer.precision not in PRECISIONS:
            raise UserError(
                f"trainer.precision {self.trainer.precision} does not keep the weights in float32: "
                f"use one of {', '.join(PRECISIONS)}."
            )

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        key = ("step", self.global_rank, self.trainer.global_step)
        seeding.seed_device(self.device, seeding.derive(seeding.run_seed(), *key))

    def no_sync(self) -> AbstractContextManager[object]:
        """Open a context in which backward passes do not average gradients over ranks."""
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if block else nullcontext()

    def summed(self, values: Tensor) -> Tensor:
        """Add up a tensor over ranks."""
        total: Tensor = self.trainer.strategy.reduce(values, reduce_op="sum")
        return total

    def agree_on(self, network: nn.Module) -> None:
        """Give a network the first rank's buffers: batch norm has seen other images on each."""
        if dist.is_available() and dist.is_initialized():
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def warnings(self, logged: Mapping[str, Tensor]) -> dict[str, str]:
        """Return what a user should be warned of at the end of an epoch, once per kind.

        Args:
            logged: What has been logged, by name.
        """
        return {}

    def test_details(self) -> dict[str, Any]:
        """Return what the record keeps beside the logged metrics of the test split."""
        return {}

    def check_output(self, output: str | None) -> None:
        """Raise a UserError, before anything is predicted, where ``output`` cannot be written."""

    def write_predictions(self, batches: Sequence[Any], output: str | None) -> str:
        """Write what ``predict_step`` returned for each batch to a file or folder.

        Returns:
            A line that says what was written where.
        """
        raise UserError(f"{type(self).__name__} does not predict anything.")

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A later stage rebuilds the network from this.
        checkpoint["ltbench_network"] = self.network

    @override
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            reason = (str(error).splitlines()[1:2] or [str(error)])[0].strip()
            raise UserError(
                f"the checkpoint does not fit the model of the config: {reason:.300}"
            ) from error
