"""What every source of images offers: uint8 images and integer labels, by split."""

import unicodedata
from abc import ABC, abstractmethod
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor
from typing_extensions import override

from ltbench.data.sources.decoding import Decoding, fit
from ltbench.errors import UserError

Labels = npt.NDArray[np.int64]
Images = npt.NDArray[np.uint8]
OnBadImage = Literal["error", "skip"]

# The constants of the CIFAR-LT literature. The true CIFAR-10 std is (0.247, 0.243, 0.262); these
# are kept, for both CIFARs, because the published numbers were made with them.
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

_CHUNK = 4096  # images resized at a time, so that the full-size copies stay small


class Source(ABC):
    """A set of images as it lies on disk: no profile, no augmentation, no random choice.

    Args:
        root: Folder of the data.
        image_size: Side in pixels that images are resized to; None: the source's own.
        on_bad_image: Whether a file that cannot be decoded is an error or is left out of its split.
        decoding: How files of any shape become squares; only for sources of files.

    Attributes:
        name: Key in `ltbench.data.sources.DESCRIPTIONS`.
        display_name: Name for tables, such as ``CIFAR-10``.
        num_classes: Number of classes.
        class_names: Name of each class, in label order.
        channels: Channels of every image, 1 or 3.
        mean: Per-channel mean to normalise with, of values scaled to [0, 1].
        std: Per-channel standard deviation, same scale.
        splits: Its splits, among train, val, test and unlabelled.
        in_memory: Whether a split is meant to be held as one tensor; if not, `images` is to be
            called on a few indices at a time, in workers.
        texts: Whether it has texts instead of images.
        head_mid_tail: Numbers of head, mid and tail classes in the set's papers; None: 30/40/30 %.
    """

    name: ClassVar[str]
    display_name: str
    num_classes: int
    channels: int = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: frozenset[str]
    in_memory: bool = True
    texts: ClassVar[bool] = False
    head_mid_tail: ClassVar[tuple[int, int, int] | None] = None

    def __init__(
        self,
        root: Path,
        image_size: int | None = None,
        on_bad_image: OnBadImage = "error",
        decoding: Decoding | None = None,
    ) -> None:
        if image_size is not None and image_size < 1:
            raise UserError(f"image size {image_size} must be at least 1 pixel.")
        self.root = root
        self.image_size = image_size
        self.on_bad_image = on_bad_image
        self.decoding = decoding or Decoding()
        self._prepare()

    def _prepare(self) -> None:  # noqa: B027 - not every source has files
        """Find the files; called once, when the arguments are attributes."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Name of each class, in label order."""

    @abstractmethod
    def labels(self, split: str) -> Labels:
        """(n,) labels of a split, 0 to num_classes - 1; all -1 for ``unlabelled``."""

    @abstractmethod
    def images(self, split: str, indices: npt.ArrayLike) -> Tensor:
        """(len(indices), channels, H, W) uint8 images, in the order of `indices`."""

    def check_names(self) -> None:
        """Refuse a class whose name a terminal would obey instead of showing it.

        Raises:
            UserError: A class name has a control character.
        """
        for name in self.class_names:
            if any(unicodedata.category(letter) == "Cc" for letter in name):
                raise UserError(f"class {name!a} has a control character in its name: rename it.")

    def has(self, split: str) -> bool:
        """Whether the source comes with `split`."""
        return split in self.splits

    @cached_property
    def listing(self) -> str:
        """What tells this data from other data that the same name could mean, at a glance."""
        return self.name

    @cached_property
    def fingerprint(self) -> str:
        """The same, with the content of every file.

        Computed once: the checkpoint and the record of every epoch hold it.
        """
        return self.listing

    def _check(self, split: str) -> None:
        if not self.has(split):
            available = ", ".join(sorted(self.splits))
            raise UserError(f"{self.display_name} has no split '{split}'; it has {available}.")


class ArraySource(Source):
    """A source that reads each split whole, as one array of images and one of labels."""

    @override
    def _prepare(self) -> None:
        if self.decoding != Decoding():
            raise UserError(
                f"data.decoding is for image files, but {self.display_name} has arrays: remove it, "
                "and use RandomResizedCrop in data.augment for random crops."
            )
        self._loaded: dict[str, tuple[Images, Labels]] = {}

    @abstractmethod
    def _load(self, split: str) -> tuple[Images, Labels]:
        """Read (n, channels, H, W) images and (n,) labels of a split that the source has."""

    def _arrays(self, split: str) -> tuple[Images, Labels]:
        self._check(split)
        if split not in self._loaded:
            self._loaded[split] = self._load(split)
        return self._loaded[split]

    @override
    def labels(self, split: str) -> Labels:
        return self._arrays(split)[1]

    @override
    def images(self, split: str, indices: npt.ArrayLike) -> Tensor:
        images, indices = self._arrays(split)[0], np.asarray(indices, dtype=np.int64)
        chunks = np.split(indices, range(_CHUNK, len(indices), _CHUNK))
        return torch.cat([fit(torch.from_numpy(images[rows]), self.image_size) for rows in chunks])


class DownloadedSource(ArraySource):
    """A source that is one of torchvision's data sets, in its files, downloaded when missing."""

    dataset: ClassVar[Any]  # the class in torchvision.datasets, which carries no types

    @property
    @override
    def class_names(self) -> list[str]:
        self._arrays("train")
        return self._class_names

    def _open(self, **split: object) -> Any:  # noqa: ANN401 - an instance of `dataset`
        """Open one split with torchvision, which checks the md5 of every file."""
        try:
            opened = self.dataset(self.root, **split)
        except RuntimeError:  # how torchvision says that a file is missing or damaged
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                # One of several processes downloads; the others then find the files whole.
                with FileLock(self.root / ".download.lock"):
                    opened = self.dataset(self.root, **split, download=True)
            except (OSError, RuntimeError, HTTPException) as error:
                raise UserError(
                    f"{self.display_name} is not in {self.root} and could not be downloaded "
                    f"({error}).\nPut {self.dataset.filename} (md5 {self.dataset.tgz_md5}, from "
                    f"{self.dataset.url}) into {self.root} and run again."
                ) from error
        self._class_names = list(opened.classes)
        return opened
