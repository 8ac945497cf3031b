"""A folder of images, one folder a class: the way to train on data of one's own."""

import hashlib
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from ltbench.data.sources.base import CIFAR_MEAN, CIFAR_STD, Labels, OnBadImage, Source, fit
from ltbench.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MEMORY_BUDGET = 2 * 1024**3  # bytes of decoded images, all splits together
LARGEST_DEFAULT_SIZE = 224  # pixels


class Folder(Source):
    """Images under ``root/train/<class>/``, with ``root/val/`` and ``root/test/`` optional.

    A root with none of the three is itself the training split. Classes are the folders of the
    training split, files are those with one of torchvision's image extensions, both in sorted order
    and without hidden ones. Grey, palette and transparent images are converted to RGB.

    `image_size` None stands for the shorter side of the first training image, at most 224.
    Normalisation uses CIFAR's constants up to 32 pixels and ImageNet's above. Images are held in
    memory if all splits together take at most 2 GiB.

    With `on_bad_image` ``skip``, construction decodes every image once to find those to leave out:
    labels, positions and so the subset's hash then count the readable ones only.

    Raises:
        UserError: If a folder is missing, a training class has no image, or another split has a
            class that the training split lacks.
    """

    name = "folder"

    def __init__(
        self, root: Path, image_size: int | None = None, on_bad_image: OnBadImage = "error"
    ) -> None:
        super().__init__(root, image_size, on_bad_image)
        self.display_name = root.resolve().name
        folders = {s: root / s for s in ("train", "val", "test") if (root / s).is_dir()}
        train = folders.get("train", root / "train") if folders else root
        self._class_names = _class_folders(train) if train.is_dir() else []
        if not self._class_names:
            raise UserError(
                f"there are no class folders in {train}.\nExpected {root}/train/<class>/<image>, "
                f"and optionally {root}/val and {root}/test with the same classes."
            )
        self.num_classes = len(self._class_names)
        self._paths = {s: self._list(folder) for s, folder in {**folders, "train": train}.items()}
        self.splits = frozenset(self._paths)
        for c, count in enumerate(np.bincount(self.labels("train"), minlength=self.num_classes)):
            if count == 0:
                raise UserError(
                    f"class folder {train / self._class_names[c]} has no image that can be used. "
                    f"Add images ({', '.join(IMG_EXTENSIONS)}) or remove the folder."
                )
        self._size = image_size or self._own_size()
        self.mean, self.std = (
            (CIFAR_MEAN, CIFAR_STD) if self._size <= 32 else (IMAGENET_MEAN, IMAGENET_STD)
        )
        pixels = sum(map(len, self._paths.values())) * self._size**2
        self.in_memory = self.channels * pixels <= MEMORY_BUDGET

    @property
    def class_names(self) -> list[str]:
        """Names of the class folders, sorted."""
        return self._class_names

    @property
    def fingerprint(self) -> str:
        """Hash of the names and sizes of all files below the root: another folder, another set."""
        names = sorted(
            f"{path.relative_to(self.root).as_posix()} {path.stat().st_size}"
            for paths in self._paths.values()
            for path in paths
        )
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def paths(self, split: str) -> list[Path]:
        """File of each image of a split, in the order of `labels`."""
        self._check(split)
        return self._paths[split]

    def labels(self, split: str) -> Labels:
        """See `Source.labels`."""
        label = {name: c for c, name in enumerate(self._class_names)}
        return np.array([label[path.parent.name] for path in self.paths(split)], dtype=np.int64)

    def images(self, split: str, indices: npt.ArrayLike) -> Tensor:
        """See `Source.images`; raises a UserError that names the file which cannot be decoded."""
        paths = self.paths(split)
        chosen = [paths[i] for i in np.asarray(indices, dtype=np.int64)]
        images = torch.empty(len(chosen), self.channels, self._size, self._size, dtype=torch.uint8)
        # Below some 64 pixels threads only wait for each other: 0.11 ms an image alone, 0.23 on
        # two cores. A loader's worker has one thread.
        threads = torch.get_num_threads() if self._size > 64 else 1
        with ThreadPoolExecutor(threads) as pool:
            decoded = (pool.map if threads > 1 else map)(self._decode, chosen)
            for row, image in enumerate(decoded):
                images[row] = image
        return images

    def _decode(self, path: Path) -> Tensor:
        return decode(path, self.channels, self._size)

    def _own_size(self) -> int:
        with _reading(self._paths["train"][0]) as image:
            return min(*image.size, LARGEST_DEFAULT_SIZE)

    def _list(self, folder: Path) -> list[Path]:
        """The images of a split in class and file order, less the unreadable ones if so asked."""
        unknown = set(_class_folders(folder)) - set(self._class_names)
        if unknown:
            raise UserError(
                f"{folder} has the class '{min(unknown)}', which the training split lacks. Add it "
                f"there or remove {folder / min(unknown)}."
            )
        paths = [
            path
            for name in self._class_names
            if (folder / name).is_dir()  # a split other than train may lack classes
            for path in _visible(folder / name)
            if path.suffix.lower() in IMG_EXTENSIONS
        ]
        return _readable(folder, paths) if self.on_bad_image == "skip" else paths


def decode(path: Path, channels: int, size: int) -> Tensor:
    """Read one image as (channels, size, size) uint8; 1 channel is grey, 3 are RGB.

    Raises:
        UserError: If the file cannot be decoded, naming it.
    """
    with _reading(path) as image:
        pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    return fit(torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1), size)


def image_files(folder: Path) -> list[Path]:
    """All images anywhere below a folder, hidden ones left out, in path order.

    Raises:
        UserError: If there is no such folder or no image in it.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".")
    )
    if not found:
        raise UserError(f"there are no images below {folder} ({', '.join(IMG_EXTENSIONS)}).")
    return found


def _visible(folder: Path) -> list[Path]:
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(visible, key=attrgetter("name"))


def _class_folders(folder: Path) -> list[str]:
    return [path.name for path in _visible(folder) if path.is_dir()]


@contextmanager
def _reading(path: Path) -> Iterator[Image.Image]:
    """Open an image with 8-bit channels; whatever goes wrong inside names the file."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # convert("RGB") would cut these off at 255
                raise ValueError(f"its pixels are of type {image.mode}, not 8 bits a channel")
            yield image
    except Exception as error:  # Pillow's readers raise errors of many types on damaged files
        raise UserError(
            f"cannot read the image {path} ({error}).\nReplace or remove it, or leave such images "
            "out with on_bad_image: skip."
        ) from error


def _is_readable(path: Path) -> bool:
    try:
        with _reading(path) as image:
            image.convert("RGB")
    except UserError:
        return False
    return True


def _readable(folder: Path, paths: list[Path]) -> list[Path]:
    """The images that can be decoded, with a warning that counts and names the others."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        good = list(pool.map(_is_readable, paths))
    bad = [str(path) for path, fine in zip(paths, good, strict=True) if not fine]
    if bad:
        first = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        warnings.warn(
            f"left out {len(bad)} of {len(paths)} images in {folder} that cannot be read: {first}",
            stacklevel=2,
        )
    return [path for path, fine in zip(paths, good, strict=True) if fine]
