"""Data = source x partition x streams: the base of all data modules."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from ltbench import seeding
from ltbench.data import profiles
from ltbench.data.datasets import (
    Batch,
    CroppedImages,
    DecodedImages,
    FeatureRows,
    Images,
    ImagesOfFolder,
    MemoryImages,
    as_is,
)
from ltbench.data.loading import Loader
from ltbench.data.samplers import EvaluationBatches, EvaluationSampler
from ltbench.data.sources import build_source
from ltbench.data.sources.decoding import Decoding
from ltbench.data.sources.files import FileSource
from ltbench.data.splits import Partition, Split
from ltbench.data.streams import MAIN, StreamImages, Streams
from ltbench.data.transforms.basic import BatchTransform, constants
from ltbench.errors import UserError
from ltbench.metrics.counts import default_sizes
from ltbench.naming import Name

MAX_WORKERS = 256  # of a loader: each is a process


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, of values scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class DataModule(L.LightningDataModule):
    """A source divided into splits, their loaders, and training batches made of streams.

    Batches are dicts: ``image`` (B, C, H, W), uint8 in the loader, normalised float32 after the
    transfer to the device; ``label`` (B,) int64; ``index`` (B,) int64, the position in the source.
    A training batch may hold more: see :meth:`streams`, which a method can replace.

    Args:
        source: Where images come from: a name of ``ltbench list datasets``, or the import path of
            a subclass of :class:`~ltbench.data.sources.base.Source`.
        root: Folder of the data; default: the environment variable ``LTBENCH_DATA``, else ``data``.
        partition: Which images belong to which split.
        subset_seed: Seed of that draw, separate from the run's seed, as in the field.
        watch_test: Also evaluate the test set during training, as ``test_watched/...``. These
            numbers are for learning curves; no checkpoint is ever chosen by them.
        batch_size: Images per step over all ranks.
        eval_batch_size: Images per evaluation step and rank.
        augment: Batched transforms of training images, in order.
        image_size: Side in pixels that image files are resized to; default: that of the first
            image of a folder, and 224 for lists.
        decoding: How image files of any shape become squares: random crops, evaluation's centre.
        num_workers: Processes that decode images, if they do not fit in memory or are cropped.
        on_bad_image: Whether a missing or unreadable image file is an error or is left out.
        predict_folder: Folder of images to classify with ``ltbench predict``.
        drop_last: Whether an epoch leaves out its last batch if that is smaller than the others.

    Attributes:
        normalisation: Statistics that images are normalised by in place of the source's; see
            :meth:`normalise_for`.
    """

    texts: ClassVar[bool] = False  # whether this module is for texts

    def __init__(
        self,
        source: Name,
        root: str | None,
        partition: Partition,
        subset_seed: int = 0,
        watch_test: bool = False,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        augment: Sequence[BatchTransform] = (),
        image_size: int | None = None,
        decoding: Decoding | None = None,
        num_workers: int = 2,
        on_bad_image: Literal["error", "skip"] = "error",
        predict_folder: str | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1 or not 0 <= num_workers <= MAX_WORKERS:
            raise UserError(
                "data.batch_size and data.eval_batch_size must be at least 1, and data.num_workers "
                f"0 to {MAX_WORKERS}."
            )
        self.source_name = source if isinstance(source, str) else str(source.get("class_path"))
        self.root = Path(root or os.environ.get("LTBENCH_DATA", "data"))
        self.partition = partition
        self.subset_seed = subset_seed
        self.watch_test = watch_test
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.drop_last = drop_last
        self.augment = list(augment)
        self.num_workers = num_workers
        self.predict_folder = predict_folder
        self.source = build_source(source, self.root, image_size, on_bad_image, decoding)
        if self.source.texts != self.texts:
            kind = "texts" if self.source.texts else "images"
            raise UserError(
                f"data source '{self.source_name}' has {kind}; TextDataModule is for texts."
            )
        if self.num_classes < 2:
            raise UserError(
                f"{self.source.display_name} in {self.root} has {self.num_classes} class(es); "
                "classification needs at least two."
            )
        self.normalisation: Statistics | None = None
        self.splits: dict[str, Split] = {}
        self._loaded: dict[str, Images] = {}
        self._training: Streams | None = None
        self._to_classify: ImagesOfFolder | None = None
        self.first_epoch = 0  # above 0 in a resumed run

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
        """Training images per class, (C,), without those held out for validation."""
        return np.bincount(self.splits["train"].labels, minlength=self.num_classes)

    @property
    def head_mid_tail(self) -> tuple[int, int, int]:
        """Numbers of head, mid and tail classes: those of the papers, or 30/40/30 %."""
        sizes = self.source.head_mid_tail
        if sizes and sum(sizes) == self.num_classes:
            return sizes
        return default_sizes(self.num_classes)

    @property
    def index_hash(self) -> str:
        """Hash of the training images, by their positions in the source."""
        return profiles.index_hash(self.splits["train"].indices)

    @override
    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            self.source.check_names()
            self.splits = self.partition.split(self.source, self.subset_seed)

    def dataset(self, name: str) -> Images:
        """Return the images of a split; small sets are decoded once and stay on the device."""
        if name not in self.splits:
            raise UserError(
                f"{self.source.display_name} has no {name} images: add {self.root / name}/<class>/ "
                "or choose another source."
            )
        if name not in self._loaded:
            kind = MemoryImages if self.source.in_memory else DecodedImages
            self._loaded[name] = kind(self.source, self.splits[name])
        images = self._loaded[name]
        return images.to(self.device) if isinstance(images, MemoryImages) else images

    @property
    def device(self) -> torch.device:
        """Where this rank trains or evaluates; the CPU without a trainer."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def streams(self) -> Streams:
        """Return what a training batch holds; needs ``setup``, and a method can replace it."""
        raise NotImplementedError

    @property
    def _method(self) -> Any:  # noqa: ANN401 - a `ltbench.methods.base.Method`, one floor up
        """The method of the trainer, if it decides which streams it trains on."""
        method = getattr(self.trainer, "lightning_module", None)
        return method if hasattr(method, "streams") else None

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        world = self.trainer.world_size if self.trainer else 1
        if self.batch_size % world:
            raise UserError(
                f"data.batch_size {self.batch_size} is the batch over all {world} processes, but "
                f"not a multiple of {world}; try {-(-self.batch_size // world) * world}."
            )
        streams = self._training = self._method.streams(self) if self._method else self.streams()
        parts = {name: self._images(name, streams) for name in streams.streams}
        sampler = streams.sampler
        sampler.numbered = cropped = self.source.decoding.random_crop is not None
        if self.trainer:
            # Lightning starts workers before it tells the sampler the epoch; in a resumed run that
            # asks for the length of the training, even before Lightning itself knows the epoch.
            progress = self.trainer.fit_loop.epoch_progress.current
            seen = progress.processed  # type: ignore[attr-defined]
            sampler.set_epoch(max(seen, self.first_epoch))
        rows = sum(stream.images for stream in streams.streams.values())
        if self.drop_last and len(sampler) < self.batch_size // world * rows:
            raise UserError(
                f"data.drop_last leaves no batch: {len(self.splits['train'].labels)} training "
                f"images, data.batch_size {self.batch_size}."
            )
        features = any(isinstance(part, FeatureRows) for part in parts.values())
        decodes = not features and (cropped or not self.source.in_memory)
        return self._loader(
            parts[MAIN] if len(parts) == 1 else StreamImages(parts),
            decodes,
            batch_size=self.batch_size // world * rows,
            sampler=sampler,
            drop_last=self.drop_last,
            persistent_workers=decodes and self.num_workers > 0,
        )

    def _images(self, name: str, streams: Streams) -> Images:
        """Return the images of a stream; with random crops, one for each of its views."""
        split = streams.streams[name].split
        if self.source.decoding.random_crop is None:
            return self._seen(split) if streams.plain else self.dataset(split)
        assert isinstance(self.source, FileSource)
        views = streams.views_of(name)
        return CroppedImages(self.source, self.splits[split], seeding.run_seed(), views)

    def _loader(self, dataset: Dataset[Batch], decodes: bool, **options: Any) -> DataLoader[Batch]:  # noqa: ANN401
        """Return a loader of images on the device, or of those that workers decode.

        A GPU can only take a batch while it computes from pinned memory.
        """
        return Loader(
            dataset,
            self.num_workers if decodes else 0,
            pin_memory=decodes and self.device.type == "cuda",
            collate_fn=as_is,
            generator=seeding.generator("cpu", seeding.run_seed(), "workers"),
            **options,
        )

    def evaluation_dataloader(self, name: str) -> DataLoader[Batch]:
        """Return a split in order, each image on exactly one rank; batches may be empty."""
        return self._in_order(self.dataset(name))

    def _in_order(self, dataset: Images) -> DataLoader[Batch]:
        sampler = EvaluationBatches(dataset, self.eval_batch_size)
        decodes = not isinstance(dataset, FeatureRows) and not self.source.in_memory
        return self._loader(dataset, decodes, batch_size=None, sampler=sampler)

    def _seen(self, name: str) -> Images:
        """Return the images of a split, or what the method takes in their place."""
        method = self._method
        images: Images = method.images(self, name) if method else self.dataset(name)
        return images

    def evaluation_batches(self, name: str, device: torch.device) -> Iterator[Batch]:
        """Yield this rank's share of a split: normalised, on ``device``, without augmentation."""
        for batch in self.evaluation_dataloader(name):
            if len(batch["label"]):
                moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
                yield {**moved, "image": self.normalise(moved["image"])}

    @property
    def watched(self) -> list[str]:
        """Names of the splits that are evaluated during training, in the order of their loaders."""
        names = ["val"] if "val" in self.splits else []
        return [*names, "test"] if self.watch_test else names

    @override
    def val_dataloader(self) -> list[DataLoader[Batch]]:
        return [self._in_order(self._seen(name)) for name in self.watched]

    @override
    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order(self._seen("test"))

    def images_to_predict(self) -> ImagesOfFolder:
        """Return the images below ``predict_folder``, in the size of the training images."""
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

    @override
    def predict_dataloader(self) -> DataLoader[Batch]:
        method = self._method
        dataset = method.to_predict(self) if method else self.images_to_predict()
        return DataLoader(
            dataset,
            batch_size=self.eval_batch_size,
            sampler=EvaluationSampler(dataset),
            pin_memory=self.device.type == "cuda",
            collate_fn=as_is,
        )

    @override
    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        if "features" in batch:
            return batch
        if self.trainer and self.trainer.training:
            key = ("augment", self.trainer.global_rank, self.trainer.global_step)
            draws = seeding.generator(batch["label"].device, seeding.run_seed(), *key)
            streams = self._training or self.streams()
            return streams.make_views(batch, draws, self.normalise)
        if "image" not in batch:  # a generator predicts on latents
            return batch
        return {**batch, "image": self.normalise(batch["image"])}

    @property
    def statistics(self) -> Statistics:
        """What images are normalised by: :attr:`normalisation`, or else the source's."""
        return self.normalisation or Statistics(self.source.mean, self.source.std)

    def normalise_for(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalise images as weights were trained, by a run before it begins.

        Args:
            mean: Per channel, of values scaled to [0, 1]; for images with other channels, the mean
                of these.
            std: Standard deviations, likewise.
        """
        own = Statistics(self.source.mean, self.source.std)
        channels = len(own.mean)
        wanted = Statistics(
            *(
                tuple(v) if len(v) == channels else (sum(v) / len(v),) * channels
                for v in (mean, std)
            )
        )
        self.normalisation = None if wanted == own else wanted

    def normalise(self, images: Tensor) -> Tensor:
        """Turn (B, C, H, W) uint8 images into standardised float32, channels last."""
        return standardised(images, *self.statistics)

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint keeps to know its own data again."""
        return {
            "class_names": self.source.class_names,
            "training_set": f"{self.source.listing}:{self.index_hash}",
            "fingerprint": self.source.fingerprint,  # not in checkpoints of earlier versions
            "mean": list(self.statistics.mean),
            "std": list(self.statistics.std),
            "image_size": self.image_size,
        }

    def describe(self) -> dict[str, Any]:
        """Return a description of the data for records; needs :meth:`setup`."""
        counts = self.class_counts
        return {
            "source": self.source.display_name,
            "fingerprint": self.source.fingerprint,
            "profile": str(self.partition),
            "imbalance_factor": profiles.imbalance_factor(counts),
            "class_names": self.source.class_names,
            "class_counts": counts.tolist(),
            "head_mid_tail": list(self.head_mid_tail),
            "images": {name: len(split.labels) for name, split in self.splits.items()},
            "index_hash": self.index_hash,
            **({"normalisation": self.normalisation._asdict()} if self.normalisation else {}),
        }


def standardised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (B, C, H, W) uint8 images as float32, channels last, with mean 0 and variance 1.

    Args:
        images: The images.
        mean: Mean of each channel, of values scaled to [0, 1].
        std: Standard deviation of each channel, same scale.
    """
    shift, scale = (constants(v, images.device).view(-1, 1, 1) for v in (mean, std))
    images = images.contiguous(memory_format=torch.channels_last)
    return images.to(torch.float32).sub_(shift * 255).div_(scale * 255)
