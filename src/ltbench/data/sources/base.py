"""What every source of images offers: uint8 images and integer labels, split by split."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Labels = npt.NDArray[np.int64]

# The constants of the CIFAR-LT literature. The true CIFAR-10 std is (0.247, 0.243, 0.262); these
# are kept, for both CIFARs, because the published numbers were made with them.
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Source(ABC):
    """A set of images as it lies on disk: no profile, no augmentation, no random choice.

    Attributes:
        name: Key in `SOURCES`.
        display_name: Name for tables, such as ``CIFAR-10``.
        class_names: Name of each class, in label order.
        channels: Channels of every image, 1 or 3.
        mean: Per-channel mean to normalise with, of values scaled to [0, 1].
        std: Per-channel standard deviation, same scale.
        splits: The splits there are, among train, val, test and unlabelled.
        uniform: Whether all images of a split fit in memory as one tensor; if not, `images` is
            meant to be called on a few indices at a time, in workers.
    """

    name: str
    display_name: str
    class_names: list[str]
    channels: int = 3
    mean: tuple[float, ...] = CIFAR_MEAN
    std: tuple[float, ...] = CIFAR_STD
    splits: frozenset[str]
    uniform: bool = True

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def has(self, split: str) -> bool:
        """Whether the source comes with `split`."""
        return split in self.splits

    @abstractmethod
    def labels(self, split: str) -> Labels:
        """(n,) labels of a split, 0 to num_classes - 1; all -1 for ``unlabelled``."""

    @abstractmethod
    def images(self, split: str, indices: npt.ArrayLike) -> Tensor:
        """(len(indices), channels, H, W) uint8 images, in the order of `indices`."""


class MemorySource(Source):
    """A source whose splits are whole arrays: images (n, channels, H, W) uint8 with labels (n,)."""

    def __init__(self, image_size: int | None = None) -> None:
        self.image_size = image_size

    @abstractmethod
    def _arrays(self, split: str) -> tuple[npt.NDArray[np.uint8], Labels]:
        """Images and labels of one split, kept by the subclass between calls."""

    def labels(self, split: str) -> Labels:
        """See `Source.labels`."""
        return self._arrays(split)[1]

    def images(self, split: str, indices: npt.ArrayLike) -> Tensor:
        """See `Source.images`; resized where `image_size` differs from the stored size."""
        images = self._arrays(split)[0][np.asarray(indices, dtype=np.int64)]
        return resize(torch.from_numpy(np.ascontiguousarray(images)), self.image_size)


def resize(images: Tensor, size: int | None) -> Tensor:
    """Scale the shorter side of (..., H, W) uint8 images to `size`, then crop the centre square.

    Bilinear with antialiasing. `size` None, or the size the images have, leaves them as they are.
    """
    if size is None or tuple(images.shape[-2:]) == (size, size):
        return images
    return F.center_crop(F.resize(images, [size], antialias=True), [size, size])


def no_split(source: Source, split: str, available: Mapping[str, object]) -> KeyError:
    """Placeholder."""
    return KeyError(split)
