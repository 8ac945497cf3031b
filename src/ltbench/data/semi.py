"""Semi-supervised data: a labelled long tail, and images whose labels are hidden."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from ltbench import seeding
from ltbench.data import profiles
from ltbench.data.datamodule import LongTailDataModule
from ltbench.data.protocols import Protocol, ReleasedProtocol
from ltbench.data.samplers import SAMPLERS, SideBySide, TrainingSampler, UniformSampler
from ltbench.data.streams import MAIN, Stream, Streams
from ltbench.data.transforms.basic import BatchTransform
from ltbench.errors import UserError
from ltbench.naming import Name, resolve


class SemiSupervisedDataModule(LongTailDataModule):
    """Labelled images (``train``), unlabelled ones in two views, validation and test.

    A training batch is that of the labelled images, weakly augmented, with one more entry:
    ``unlabelled``, a dict of ``weak`` and ``strong`` (mu B, C, H, W), the two views of each image,
    and ``index`` (mu B,), its row in the unlabelled split. True labels are in no batch and no
    split; :meth:`oracle_labels` returns them if the config allows it.

    Images are drawn uniformly, with replacement, as a function of seed and epoch: a step has the
    same images on any number of ranks.

    Args:
        source: Where images come from; ``ltbench list datasets`` names them.
        root: Folder of the data; default: the environment variable ``LTBENCH_DATA``, else ``data``.
        protocol: Which images are labelled, unlabelled, validation and test; default: that of the
            released code of CSST and SelMix.
        mu: Unlabelled images per labelled one in a batch; 0 leaves them out.
        steps_per_epoch: Steps per epoch.
        strong_augment: Transforms of the strong view, before the weak ones (``augment``).
        sampler: How labelled images are drawn, as in
            :class:`~ltbench.data.datamodule.LongTailDataModule`; default: uniformly.
        oracle: Give access to the true labels of the unlabelled images, for ablations.
        **kwargs: ``batch_size`` (labelled images per step, over all ranks), ``augment``, and
            further arguments of :class:`~ltbench.data.base.DataModule`.

    Raises:
        UserError: An argument is out of range.
    """

    def __init__(
        self,
        source: Name = "digits",
        root: str | None = None,
        protocol: Protocol | None = None,
        mu: int = 4,
        steps_per_epoch: int = 1024,
        strong_augment: Sequence[BatchTransform] = (),
        sampler: Name | None = None,
        oracle: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        # Not the constructor of LongTailDataModule: a protocol takes the place of its profile.
        super(LongTailDataModule, self).__init__(
            source, root, protocol or ReleasedProtocol(), **kwargs
        )
        if mu < 0 or steps_per_epoch < 1:
            raise UserError("data.mu must be at least 0 and data.steps_per_epoch at least 1.")
        self.mu = mu
        self.steps_per_epoch = steps_per_epoch
        self.strong_augment = list(strong_augment)
        self.sampler = resolve("sampler", sampler or "uniform", SAMPLERS, TrainingSampler)
        self.oracle = oracle

    @property
    @override
    def index_hash(self) -> str:
        parts = [self.splits[name].indices for name in ("train", "unlabelled")]
        return profiles.index_hash(np.concatenate([parts[0], [-1], parts[1]]))

    @override
    def streams(self) -> Streams:
        strong = [*self.strong_augment, *self.augment]
        streams = {MAIN: Stream("train", {"image": self.augment})}
        if self.mu:
            views = {"weak": self.augment, "strong": strong}
            streams["unlabelled"] = Stream("unlabelled", views, self.mu)
        seed, sizes = seeding.run_seed(), [s.images * self.batch_size for s in streams.values()]
        samplers = [
            (self.sampler if name == MAIN else UniformSampler)(
                self.splits[stream.split].labels, seed, self.steps_per_epoch * size
            )
            for (name, stream), size in zip(streams.items(), sizes, strict=True)
        ]
        return Streams(SideBySide(samplers, sizes, seed), streams)

    def oracle_labels(self) -> Tensor:
        """Return the true labels (U,) of the unlabelled images, by row.

        Raises:
            UserError: ``oracle`` is not set, or the source does not know them.
        """
        if not self.oracle:
            raise UserError(
                "the labels of the unlabelled images are hidden: set data.oracle to true, which "
                "the record will mention."
            )
        if self._unlabelled_counts() is None:
            raise UserError(
                f"{self.source.display_name} does not know the labels of its unlabelled images."
            )
        return torch.from_numpy(self._true_labels())

    def _true_labels(self) -> NDArray[np.int64]:
        split = self.splits["unlabelled"]
        return self.source.labels(split.part)[split.indices]

    def _unlabelled_counts(self) -> list[int] | None:
        labels = self._true_labels()
        if labels.min() < 0:
            return None
        counts: list[int] = np.bincount(labels, minlength=self.num_classes).tolist()
        return counts

    @override
    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "unlabelled_counts": self._unlabelled_counts(),
            "oracle": self.oracle,
        }
