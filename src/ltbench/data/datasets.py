"""Splits as torch data sets: held in memory, decoded, cropped while decoded, or a plain folder."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ltbench import seeding
from ltbench.data.sources.base import OnBadImage, Source
from ltbench.data.sources.decoding import Decoding, decode
from ltbench.data.sources.files import FileSource
from ltbench.data.sources.folder import image_files
from ltbench.data.splits import Split

Batch = dict[str, Tensor]


class Images(Dataset[Batch], ABC):
    """Images that come a batch at a time."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def __getitems__(self, rows: list[int]) -> Batch:
        """Return the batch of these rows."""

    def __getitem__(self, rows: int | list[int]) -> Batch:
        """Return the batch of one row or of several, perhaps none."""
        return self.__getitems__(rows if isinstance(rows, list) else [rows])


class MemoryImages(Images):
    """A split held on a device as one uint8 tensor; a batch is one indexing operation there."""

    def __init__(self, source: Source, split: Split) -> None:
        self.images = source.images(split.part, split.indices)
        rest = split.batch(list(range(len(split.labels))))
        self.labels, self.indices = rest["label"], rest["index"]

    def to(self, device: torch.device) -> Self:
        """Move everything to a device."""
        self.images = self.images.to(device)
        self.labels, self.indices = self.labels.to(device), self.indices.to(device)
        return self

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: list[int]) -> Batch:
        at = torch.as_tensor(rows, dtype=torch.long).to(self.images.device, non_blocking=True)
        return {"image": self.images[at], "label": self.labels[at], "index": self.indices[at]}


class FeatureRows(Images):
    """A split as the features of its images: what a frozen network made of them, computed once.

    A batch has ``features`` (B, d) in the place of ``image``.

    Args:
        features: (n, d), a row for each image of the split.
        split: Which images.
        device: Where batches are.
    """

    def __init__(self, features: Tensor, split: Split, device: torch.device) -> None:
        self.features = features.to(device)
        rest = split.batch(list(range(len(split.labels))))
        self.labels, self.indices = rest["label"].to(device), rest["index"].to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: list[int]) -> Batch:
        at = torch.as_tensor(rows, dtype=torch.long).to(self.labels.device, non_blocking=True)
        return {"features": self.features[at], "label": self.labels[at], "index": self.indices[at]}


class DecodedImages(Images):
    """A split whose images are decoded by the loader's workers, for sets too large for memory."""

    def __init__(self, source: Source, split: Split) -> None:
        self.source = source
        self.split = split

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitems__(self, rows: list[int]) -> Batch:
        images = self.source.images(self.split.part, self.split.indices[rows])
        return {"image": images, **self.split.batch(rows)}


class CroppedImages(DecodedImages):
    """Training images of which workers crop random boxes, one for each view.

    Args:
        source: Where the images are, and how boxes are drawn.
        split: Which images.
        seed: Seed of the run.
        views: Names of the views.
    """

    def __init__(
        self, source: FileSource, split: Split, seed: int, views: Collection[str] = ("image",)
    ) -> None:
        super().__init__(source, split)
        self.crops, self.seed, self.views = source.crops, seed, views

    # Boxes are drawn from the number of a (row, number), which no other draw of a training has.
    def __getitems__(self, rows: list[tuple[int, int]]) -> Batch:  # type: ignore[override]
        chosen = [row for row, _ in rows]
        indices = self.split.indices[chosen]
        draws = [seeding.generator("cpu", self.seed, "crop", number) for _, number in rows]
        views = self.crops(self.split.part, indices, draws, len(self.views))
        return {**dict(zip(self.views, views, strict=True)), **self.split.batch(chosen)}


class ImagesOfFolder(Images):
    """All images below a folder, in path order, without labels; decoded on demand."""

    def __init__(
        self,
        folder: Path,
        channels: int,
        size: int,
        decoding: Decoding,
        on_bad_image: OnBadImage = "error",
    ) -> None:
        self.paths = image_files(folder, on_bad_image)
        self.channels, self.size, self.decoding = channels, size, decoding

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, rows: list[int]) -> Batch:
        how = (self.channels, self.size, self.decoding)
        images = [decode(self.paths[row], *how) for row in rows]
        return {"image": torch.stack(images), "index": torch.as_tensor(rows)}


def as_is(batch: Any) -> Any:  # noqa: ANN401 - whatever a loader yields
    """Return ``batch`` unchanged: ``__getitems__`` has collated it."""
    return batch
