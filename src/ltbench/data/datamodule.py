"""Data = source x profile x split: the data module of every supervised classification run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ltbench import seeding
from ltbench.data import profiles
from ltbench.data.datasets import (
    Batch,
    CroppedImages,
    DecodedImages,
    Images,
    ImagesOfFolder,
    MemoryImages,
    Split,
    as_is,
)
from ltbench.data.loading import Loader
from ltbench.data.samplers import SAMPLERS, EvaluationBatches, EvaluationSampler, TrainingSampler
from ltbench.data.sources import build_source
from ltbench.data.sources.decoding import Decoding
from ltbench.data.sources.files import FileSource
from ltbench.data.transforms.basic import BatchTransform, constants
from ltbench.errors import UserError
from ltbench.metrics.counts import default_sizes

MOST_WORKERS = 256  # of a loader: each is a process


class LongTailDataModule(L.LightningDataModule):
    """A long tail cut from a source, with validation carved from training data, never from test.

    Batches are dicts: ``image`` (B, C, H, W), uint8 in the loader, normalised float32 after the
    transfer to the device; ``label`` (B,) int64; ``index`` (B,) int64, the position in the source.

    Args:
        source: Where images come from; ``ltbench list datasets`` names them.
        root: Folder of the data; default: the environment variable ``LTBENCH_DATA``, else ``data``.
        profile: How many training images each class keeps (:mod:`ltbench.data.profiles`);
            ``natural`` keeps all.
        imbalance_factor: Largest over smallest class, >= 1; not used by ``natural``.
        largest: Images of the largest class; default: as many as every class could give.
        subset_seed: Seed of the draw of the long tail, apart from the run's seed, as in the field.
        val_fraction: Share of the long-tailed training images kept for validation, stratified;
            0 trains on all of them, as the papers do, and leaves only the last epoch to report.
        watch_test: Also evaluate the test set during training, as ``test_watched/...``. Those
            numbers are for learning curves; no checkpoint is ever chosen by them.
        batch_size: Images per step over all ranks.
        eval_batch_size: Images per evaluation step and rank.
        sampler: Which training images an epoch shows: each once (``shuffled``), every class equally
            often (``class_balanced``) or by the square root of its images (``square_root``), or a
            third of them three times (``repeated``); see :mod:`ltbench.data.samplers`.
        augment: Batched transforms of training images, in order.
        views: Further views of each training image, by name, and what transforms each instead of
            ``augment``; a batch then has them beside ``image``.
        image_size: Side in pixels that image files are brought to; default: that of the first
            image of a folder, and 224 for lists.
        decoding: How image files of any shape become squares: random crops, evaluation's centre.
        num_workers: Processes that decode images of sets too large for memory, or to be cropped.
        on_bad_image: What a missing or unreadable image file does: stop with its path, or be left
            out.
        predict_folder: Folder of images to classify with ``ltbench predict``.
    """

    texts: ClassVar[bool] = False  # whether it is for texts

    def __init__(
        self,
        source: str = "digits",
        root: str | None = None,
        profile: str = "exp",
        imbalance_factor: float = 100,
        largest: int | None = None,
        subset_seed: int = 0,
        val_fraction: float = 0.1,
        watch_test: bool = False,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        sampler: Literal["shuffled", "class_balanced", "square_root", "repeated"] = "shuffled",
        augment: Sequence[BatchTransform] = (),
        views: Mapping[str, Sequence[BatchTransform]] | None = None,
        image_size: int | None = None,
        decoding: Decoding | None = None,
        num_workers: int = 2,
        on_bad_image: Literal["error", "skip"] = "error",
        predict_folder: str | None = None,
    ) -> None:
        """Find the source; its images are decoded when a loader first needs them."""
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise UserError(f"data.val_fraction is {val_fraction}; it must lie in [0, 1).")
        if batch_size < 1 or eval_batch_size < 1 or not 0 <= num_workers <= MOST_WORKERS:
            raise UserError(
                "data.batch_size and data.eval_batch_size must be at least 1, data.num_workers "
                f"0 to {MOST_WORKERS}."
            )
        if taken := {"image", "label", "index"} & set(views or ()):
            raise UserError(
                f"data.views: a batch has an entry '{min(taken)}' already: choose another name."
            )
        self.source_name = source
        self.root = Path(root or os.environ.get("LTBENCH_DATA", "data"))
        self.profile = profile
        self.imbalance_factor = imbalance_factor
        self.largest = largest
        self.subset_seed = subset_seed
        self.val_fraction = val_fraction
        self.watch_test = watch_test
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.sampler = sampler
        self.augment = list(augment)
        self.views = {name: list(transforms) for name, transforms in (views or {}).items()}
        self.num_workers = num_workers
        self.predict_folder = predict_folder
        self.source = build_source(source, self.root, image_size, on_bad_image, decoding)
        if self.source.texts != self.texts:
            kind = "texts" if self.source.texts else "images"
            raise UserError(f"data source '{source}' has {kind}; TextDataModule is for texts.")
        if self.num_classes < 2:
            raise UserError(
                f"{self.source.display_name} in {self.root} has {self.num_classes} class(es): to "
                "tell them apart there must be two at least."
            )
        self.splits: dict[str, Split] = {}
        self.to_predict: Dataset[Batch] | None = None
        self._to_classify: ImagesOfFolder | None = None
        # What a method trains on in place of the split `train`, where it draws its own batches.
        self.pairs: tuple[Images, TrainingSampler] | None = None
        self._loaded: dict[str, Images] = {}
        self.first_epoch = 0  # of this sitting: a resumed run's is later

    @property
    def num_classes(self) -> int:
        """Number of classes of the source."""
        return self.source.num_classes

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return self.source.channels

    @cached_property
    def image_size(self) -> int:
        """Side in pixels of the images that a network sees."""
        return int(self.source.images("train", [0]).shape[-1])

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Training images of each class, (C,), after validation was carved off."""
        return np.bincount(self.splits["train"].labels, minlength=self.num_classes)

    @property
    def head_mid_tail(self) -> tuple[int, int, int]:
        """Numbers of head, mid and tail classes: those of the set's papers, else 30/40/30 %."""
        sizes = self.source.head_mid_tail
        return (
            sizes if sizes and sum(sizes) == self.num_classes else default_sizes(self.num_classes)
        )

    @property
    def index_hash(self) -> str:
        """Hash of which images of the source are trained on, by their positions in it."""
        return profiles.index_hash(self.splits["train"].indices)

    def setup(self, stage: str | None = None) -> None:
        """Draw the long tail and name the splits; the same on every rank and at every call."""
        if self.splits:
            return
        self.source.check_names()
        labels = self.source.labels("train")
        train = self._long_tail(labels)
        if self.source.has("val"):
            self.splits["val"] = self._whole("val")
        elif self.val_fraction:
            train, val = profiles.split_validation(
                labels, train, self.val_fraction, self.subset_seed
            )
            if len(val):  # single images stay in training
                self.splits["val"] = Split("train", val, labels[val])
        self.splits["train"] = Split("train", train, labels[train])
        if self.source.has("test"):
            self.splits["test"] = self._whole("test")

    def _long_tail(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        counts = None
        if self.profile != "natural":
            available = np.bincount(labels, minlength=self.num_classes)
            counts = profiles.class_counts(
                int(available.min()) if self.largest is None else self.largest,
                self.num_classes,
                self.imbalance_factor,
                self.profile,
            )
        return profiles.select(labels, counts, self.subset_seed)

    def _whole(self, part: str) -> Split:
        labels = self.source.labels(part)
        if not len(labels):
            raise UserError(
                f"the {part} images of {self.source.display_name}, in {self.root}, are none: add "
                "some, or take that folder or list away."
            )
        return Split(part, np.arange(len(labels)), labels)

    def dataset(self, name: str) -> Images:
        """Return the images of a split; small sets are decoded once and kept on the device."""
        if name not in self.splits:
            raise UserError(
                f"{self.source.display_name} has no {name} images: add {self.root / name}/<class>/ "
                "or choose another source."
            )
        if name not in self._loaded:
            kind = MemoryImages if self.source.in_memory else DecodedImages
            self._loaded[name] = kind(self.source, self.splits[name])
        found = self._loaded[name]
        return found.to(self.device) if isinstance(found, MemoryImages) else found

    @property
    def device(self) -> torch.device:
        """Where this rank trains or evaluates; the CPU as long as no trainer has said so."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _workers(self, dataset: Dataset[Batch]) -> int:
        cropped = isinstance(dataset, CroppedImages)
        return 0 if self.source.in_memory and not cropped else self.num_workers

    def _processes(self, dataset: Dataset[Batch]) -> dict[str, Any]:
        """Return what a loader is told of its workers."""
        return {
            "num_workers": self._workers(dataset),
            "generator": seeding.generator("cpu", seeding.run_seed(), "workers"),
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches of an epoch; the last one may be smaller."""
        if self.pairs:
            return self._training_loader(*self.pairs, 1)
        images = self.training_images("train")
        labels, cropped = self.splits["train"].labels, isinstance(images, CroppedImages)
        sampler = SAMPLERS[self.sampler](labels, seeding.run_seed(), numbered=cropped)
        return self._training_loader(images, sampler, 1)

    def training_images(self, name: str) -> Images:
        """Return the images of a split as training sees them: random crops, where there are any."""
        if self.source.decoding.random_crop is None:
            return self.dataset(name)
        assert isinstance(self.source, FileSource)
        views = ["image", *self.views]
        return CroppedImages(self.source, self.splits[name], seeding.run_seed(), views)

    def _training_loader(
        self, dataset: Dataset[Batch], sampler: TrainingSampler, rows: int
    ) -> DataLoader[Batch]:
        """Load batches of ``rows`` images for each one that ``batch_size`` counts."""
        world = self.trainer.world_size if self.trainer else 1
        if self.batch_size % world:
            raise UserError(
                f"data.batch_size {self.batch_size} is the batch over all ranks and does not "
                f"divide by {world}; the next that does is {-(-self.batch_size // world) * world}."
            )
        if self.trainer:
            # Lightning starts workers before it tells the sampler the epoch; in a resumed run, if
            # the length of the training is asked for, even before it knows the epoch itself.
            progress = self.trainer.fit_loop.epoch_progress.current
            seen = progress.processed  # type: ignore[attr-defined]
            sampler.set_epoch(max(seen, self.first_epoch))
        return Loader(
            dataset,
            batch_size=self.batch_size // world * rows,
            sampler=sampler,
            collate_fn=as_is,
            persistent_workers=self._workers(dataset) > 0,
            **self._processes(dataset),
        )

    def evaluation_dataloader(self, name: str) -> DataLoader[Batch]:
        """Return a split in order, each image on exactly one rank, which may get empty batches."""
        dataset = self.dataset(name)
        return Loader(
            dataset,
            batch_size=None,
            sampler=EvaluationBatches(dataset, self.eval_batch_size),
            collate_fn=as_is,
            **self._processes(dataset),
        )

    def evaluation_batches(self, name: str, device: torch.device) -> Iterator[Batch]:
        """Yield this rank's share of a split: normalised, on ``device``, without augmentation."""
        for batch in self.evaluation_dataloader(name):
            if len(batch["label"]):
                moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
                yield {**moved, "image": self.normalise(moved["image"])}

    @property
    def watched(self) -> list[str]:
        """Names of the splits evaluated during training, in the order of their loaders."""
        names = ["val"] if "val" in self.splits else []
        return [*names, "test"] if self.watch_test else names

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return one loader for each split in :attr:`watched`."""
        return [self.evaluation_dataloader(name) for name in self.watched]

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test split."""
        return self.evaluation_dataloader("test")

    def images_to_predict(self) -> ImagesOfFolder:
        """Return the images below ``predict_folder``, brought to the size that was trained on."""
        if self.predict_folder is None:
            raise UserError("predict needs --data.predict_folder DIR: the images to classify.")
        if self._to_classify is None:
            self._to_classify = ImagesOfFolder(
                Path(self.predict_folder),
                self.channels,
                self.image_size,
                self.source.decoding,
                self.source.on_bad_image,
            )
        return self._to_classify

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return what a method left in ``to_predict``; else ``predict_folder``, in path order."""
        dataset = self.to_predict or self.images_to_predict()
        return DataLoader(
            dataset,
            batch_size=self.eval_batch_size,
            sampler=EvaluationSampler(dataset),
            collate_fn=as_is,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment (training only) and normalise on the device."""
        if "image" not in batch:  # a generator predicts on latents
            return batch
        images = batch["image"]
        views = {"image": images}
        if self.trainer and self.trainer.training:
            key = ("augment", self.trainer.global_rank, self.trainer.global_step)
            draws = seeding.generator(images.device, seeding.run_seed(), *key)
            for name, transforms in {"image": self.augment, **self.views}.items():
                view = batch.get(name, images)
                for transform in transforms:
                    view = transform(view, draws)
                views[name] = view
        return {**batch, **{name: self.normalise(view) for name, view in views.items()}}

    def normalise(self, images: Tensor) -> Tensor:
        """Turn (B, C, H, W) uint8 images into standardised float32, channels last."""
        return standardised(images, self.source.mean, self.source.std)

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint keeps to know its own data again."""
        return {
            "class_names": self.source.class_names,
            "training_set": f"{self.source.fingerprint}:{self.index_hash}",
            "mean": list(self.source.mean),
            "std": list(self.source.std),
            "image_size": self.image_size,
        }

    def describe(self) -> dict[str, Any]:
        """Return what a record says of the data; needs :meth:`setup`."""
        counts = self.class_counts
        return {
            "source": self.source.display_name,
            "fingerprint": self.source.fingerprint,
            "profile": self.profile,
            "imbalance_factor": profiles.imbalance_factor(counts),
            "class_names": self.source.class_names,
            "class_counts": counts.tolist(),
            "head_mid_tail": list(self.head_mid_tail),
            "images": {name: len(split.labels) for name, split in self.splits.items()},
            "index_hash": self.index_hash,
        }


def standardised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (B, C, H, W) uint8 images as float32, channels last, with mean 0 and variance 1.

    Args:
        images: The images.
        mean: Of each channel, of values scaled to [0, 1].
        std: Standard deviations, likewise.
    """
    shift, scale = (constants(tuple(v), images.device).view(-1, 1, 1) for v in (mean, std))
    images = images.contiguous(memory_format=torch.channels_last)
    return images.to(torch.float32).sub_(shift * 255).div_(scale * 255)
