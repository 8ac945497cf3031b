"""Semi-supervised data: a labelled long tail beside images whose labels nobody may see."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ltbench import seeding
from ltbench.data import profiles
from ltbench.data.datamodule import LongTailDataModule
from ltbench.data.datasets import Batch, CroppedImages, Images
from ltbench.data.protocols import Protocol, ReleasedProtocol
from ltbench.data.samplers import TrainingSampler
from ltbench.data.sources.files import FileSource
from ltbench.data.transforms.basic import BatchTransform
from ltbench.errors import UserError


class Unlabelled(Images):
    """A split without its labels: ``label`` is -1, and ``index`` is the row in this split."""

    def __init__(self, images: Images) -> None:
        """Hide the place of ``images`` in the source; their labels are hidden already."""
        self.images = images

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitems__(self, rows: list[Any]) -> Batch:
        """Return the batch of these rows, or pairs (row, number) of images to be cropped."""
        chosen = [row[0] if isinstance(row, tuple) else row for row in rows]
        index = torch.tensor(chosen, dtype=torch.long)
        batch = self.images.__getitems__(rows)
        return batch | {"index": index.to(batch["image"].device, non_blocking=True)}


class LabelledAndUnlabelled(Images):
    """Batches of both kinds; the rows of the unlabelled images follow those of the labelled.

    Args:
        labelled: Labelled images.
        unlabelled: Unlabelled images.
        numbered: Whether a row comes with a number, from which the random crops of the image are
            drawn as it is decoded.
    """

    def __init__(self, labelled: Images, unlabelled: Images, numbered: bool = False) -> None:
        """Put the two side by side."""
        self.labelled, self.unlabelled, self.numbered = labelled, unlabelled, numbered

    def __len__(self) -> int:
        """Return the number of images of both kinds."""
        return len(self.labelled) + len(self.unlabelled)

    def __getitems__(self, rows: list[Any]) -> dict[str, Any]:
        """Return the labelled batch, which holds the other one under ``unlabelled``."""
        numbered = rows if self.numbered else [(row, None) for row in rows]
        parts: tuple[list[Any], list[Any]] = ([], [])
        for row, number in numbered:
            hidden = row >= len(self.labelled)
            row = row - len(self.labelled) if hidden else row
            parts[hidden].append((row, number) if self.numbered else row)
        labelled, unlabelled = parts
        batch = self.labelled.__getitems__(labelled)
        return {**batch, "unlabelled": self.unlabelled.__getitems__(unlabelled)}


class PairedSampler(TrainingSampler):
    """Rows of labelled and of unlabelled images, drawn uniformly with replacement for each step.

    The rows of the unlabelled images follow those of the labelled ones.

    Args:
        images: Number of labelled and of unlabelled images.
        draws: Rows of each for one step, all ranks together.
        steps: Steps of an epoch.
        seed: See :class:`~ltbench.data.samplers.TrainingSampler`.
        numbered: See :class:`~ltbench.data.samplers.TrainingSampler`.
    """

    def __init__(
        self,
        images: tuple[int, int],
        draws: tuple[int, int],
        steps: int,
        seed: int,
        numbered: bool = False,
    ) -> None:
        """Shard the draws over the ranks of the default process group, if there is one."""
        self.images, self.draws, self.steps = images, draws, steps
        super().__init__(range(sum(images)), seed, numbered)

    def _length(self, images: int) -> int:
        return self.steps * sum(self.draws)

    def _order(self, generator: torch.Generator) -> Tensor:
        labelled, unlabelled = (
            torch.randint(images, (self.steps, draws), generator=generator)
            for images, draws in zip(self.images, self.draws, strict=True)
        )
        return torch.cat([labelled, unlabelled + self.images[0]], 1).flatten()


class SemiSupervisedDataModule(LongTailDataModule):
    """Labelled images (``train``), unlabelled ones in two views, validation and test.

    A training batch is that of the labelled images, weakly augmented, with one more entry:
    ``unlabelled``, a dict of ``weak`` and ``strong`` (mu B, C, H, W), the two views of each image,
    and ``index`` (mu B,), its row in the unlabelled split. True labels are in no batch and no
    split; :meth:`oracle_labels` opens them where the config says so.

    Images are drawn uniformly, with replacement, as a function of seed and epoch: a step holds the
    same images on any number of ranks.

    Args:
        source: Where images come from; ``ltbench list datasets`` names them.
        root: Folder of the data; default: the environment variable ``LTBENCH_DATA``, else ``data``.
        protocol: Which images are labelled, unlabelled, validation and test; default: that of the
            released code of CSST and SelMix.
        subset_seed: Seed of that draw, apart from the run's seed.
        mu: Unlabelled images for each labelled one of a batch; 0 leaves them out.
        steps_per_epoch: Steps that make an epoch.
        strong_augment: Transforms of the strong view, before the weak ones (``augment``).
        oracle: Open the true labels of the unlabelled images, for ablations and statistics.
        **kwargs: ``batch_size`` (labelled images a step, over all ranks), ``augment``, and the rest
            of :class:`~ltbench.data.datamodule.LongTailDataModule`.

    Raises:
        UserError: An argument is out of its range.
    """

    def __init__(
        self,
        source: str = "digits",
        root: str | None = None,
        protocol: Protocol | None = None,
        subset_seed: int = 0,
        mu: int = 4,
        steps_per_epoch: int = 1024,
        strong_augment: Sequence[BatchTransform] = (),
        oracle: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Find the source; its images are decoded when a loader first needs them."""
        self.protocol = protocol or ReleasedProtocol()
        super().__init__(
            source,
            root,
            profile=str(self.protocol),
            imbalance_factor=1,
            largest=None,
            subset_seed=subset_seed,
            val_fraction=0.0,
            sampler="shuffled",
            views=None,
            **kwargs,
        )
        if mu < 0 or steps_per_epoch < 1:
            raise UserError("data.mu must be at least 0 and data.steps_per_epoch at least 1.")
        self.mu = mu
        self.steps_per_epoch = steps_per_epoch
        self.strong_augment = list(strong_augment)
        self.oracle = oracle

    @property
    def index_hash(self) -> str:
        """Hash of which images are trained on, labelled and unlabelled."""
        parts = [self.splits[name].indices for name in ("train", "unlabelled")]
        return profiles.index_hash(np.concatenate([parts[0], [-1], parts[1]]))

    def setup(self, stage: str | None = None) -> None:
        """Name the splits; the same on every rank and at every call."""
        if not self.splits:
            self.source.check_names()
            self.splits = self.protocol.split(self.source, self.subset_seed)

    def dataset(self, name: str) -> Images:
        """Return the images of a split; those of ``unlabelled`` without label and place."""
        found = super().dataset(name)
        return Unlabelled(found) if name == "unlabelled" else found

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return ``steps_per_epoch`` batches of labelled and unlabelled images."""
        if self.pairs:
            return super().train_dataloader()
        cropped = self.source.decoding.random_crop is not None
        images = self.training_images("train")
        if self.mu:
            images = LabelledAndUnlabelled(images, self.training_images("unlabelled"), cropped)
        sizes = (len(self.splits["train"].labels), len(self.splits["unlabelled"].labels))
        draws = (self.batch_size, self.mu * self.batch_size)
        seed = seeding.run_seed()
        sampler = PairedSampler(sizes, draws, self.steps_per_epoch, seed, numbered=cropped)
        return self._training_loader(images, sampler, rows=1 + self.mu)

    def training_images(self, name: str) -> Images:
        """Return the images of a split as training sees them; unlabelled ones in two crops."""
        if name != "unlabelled" or self.source.decoding.random_crop is None:
            return super().training_images(name)
        assert isinstance(self.source, FileSource)
        views = ["image", "strong"]
        split = self.splits[name]
        return Unlabelled(CroppedImages(self.source, split, seeding.run_seed(), views))

    def _workers(self, dataset: Dataset[Batch]) -> int:
        if isinstance(dataset, LabelledAndUnlabelled):
            dataset = dataset.labelled
        return super()._workers(dataset)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Make the views of a training batch on the device; normalise."""
        if "unlabelled" not in batch:
            return super().on_after_batch_transfer(batch, dataloader_idx)
        labelled, hidden = batch["image"], batch["unlabelled"]
        assert self.trainer is not None
        key = ("augment", self.trainer.global_rank, self.trainer.global_step)
        draws = seeding.generator(labelled.device, seeding.run_seed(), *key)
        labelled = self.normalise(self.weak(labelled, draws))
        views = {
            "weak": self.normalise(self.weak(hidden["image"], draws)),
            "strong": self.normalise(self.strong(hidden.get("strong", hidden["image"]), draws)),
            "index": hidden["index"],
        }
        return {**batch, "image": labelled, "unlabelled": views}

    def weak(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Return the weak view of (B, C, H, W) uint8 images."""
        for transform in self.augment:
            images = transform(images, draws)
        return images

    def strong(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Return the strong view of (B, C, H, W) uint8 images: strong, then weak transforms."""
        for transform in self.strong_augment:
            images = transform(images, draws)
        return self.weak(images, draws)

    def oracle_labels(self) -> Tensor:
        """Return the true labels (U,) of the unlabelled images, by row.

        Raises:
            UserError: ``oracle`` is not set, or the source does not know them.
        """
        if not self.oracle:
            raise UserError(
                "the labels of the unlabelled images are hidden: set data.oracle to true, which "
                "the record will tell."
            )
        if self._unlabelled_counts() is None:
            raise UserError(f"{self.source.display_name} does not know the labels that are asked.")
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

    def describe(self) -> dict[str, Any]:
        """Return what a record says of the data; needs :meth:`setup`."""
        return {
            **super().describe(),
            "unlabelled_counts": self._unlabelled_counts(),
            "oracle": self.oracle,
        }
