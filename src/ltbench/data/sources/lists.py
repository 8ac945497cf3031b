"""Images named in list files, one ``path label`` per line: ImageNet-LT, Places-LT, your own."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from typing_extensions import override

from ltbench.data.sources.files import IMAGENET_MEAN, IMAGENET_STD, Files, FileSource, usable
from ltbench.errors import UserError
from ltbench.untrusted import open_file

DEFAULT_SIZE = 224  # pixels


class Lists(FileSource):
    """Images named by ``root/train.txt``, and optionally by ``root/val.txt`` and ``root/test.txt``.

    Each line holds a path below `root` and a label, counted from 0. Every file is checked once, at
    construction. `image_size` None means 224 pixels.

    Attributes:
        lists: Split -> name of its list file.
        num_classes: Set by a published list; otherwise one more than the largest training label.

    Raises:
        UserError: A list is missing or malformed, a label is out of range, or a file is missing or
            damaged.
    """

    name = "lists"
    lists: ClassVar[Mapping[str, str]] = {s: f"{s}.txt" for s in ("train", "val", "test")}
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    num_classes = 0
    display_name = ""

    @override
    def _prepare(self) -> None:
        self.display_name = self.display_name or self.root.resolve().name
        files: dict[str, Files] = {}
        seen: dict[str, set[bytes]] = {}
        for split, path in self._annotations().items():
            listed = self._read(path)
            if split == "train" and not self.num_classes:
                self.num_classes = int(listed.labels.max()) + 1
                check_classes(listed, self.num_classes, path)
            check_labels(listed, self.num_classes, path)
            seen[split] = check_once(listed, path)
            if both := seen[split] & seen["train"] if split != "train" else None:
                first = os.fsdecode(min(both))
                warnings.warn(
                    f"{len(both)} images of {path}, such as {first}, are also training images: "
                    "results on them mean little.",
                    stacklevel=2,
                )
            files[split] = usable(self.root, listed, self.on_bad_image, path)
        self._take(self.image_size or DEFAULT_SIZE, files)

    def _annotations(self) -> dict[str, Path]:
        """Split -> the file that names its images, the training split first."""
        paths = {split: self.root / name for split, name in self.lists.items()}
        if not paths["train"].is_file():
            others = ", ".join(name for split, name in self.lists.items() if split != "train")
            raise UserError(
                f"{paths['train']} is missing.\nPut it there, with {others} and the images beside "
                f"it: each line is `path label`, the path relative to {self.root}."
            )
        return {split: path for split, path in paths.items() if path.is_file()}

    def _read(self, path: Path) -> Files:
        return read_list(path)

    @property
    @override
    def class_names(self) -> list[str]:
        # The folder of the first training image of each class.
        names = [str(c) for c in range(self.num_classes)]
        train = self._files["train"]
        for c, row in zip(*np.unique(train.labels, return_index=True), strict=True):
            names[c] = os.fsdecode(train.names[row].rpartition(b"/")[0]) or names[c]
        return distinct(names)


class ImageNetLT(Lists):
    """ImageNet-LT (Liu et al., arXiv 1904.05160): `root` holds ImageNet and the three lists.

    115,846 training images, 1,280 to 5 per class; 20 validation images per class, cut from
    ImageNet's training set; the test set is ImageNet's validation set, 50 per class.
    """

    name = "imagenet_lt"
    display_name = "ImageNet-LT"
    num_classes = 1000
    head_mid_tail = (390, 445, 165)
    lists: ClassVar[Mapping[str, str]] = {
        s: f"ImageNet_LT_{s}.txt" for s in ("train", "val", "test")
    }


class PlacesLT(Lists):
    """Places-LT (Liu et al., arXiv 1904.05160): `root` holds Places 365 and the three lists.

    62,500 training images, 4,980 to 5 per class; 20 validation and 100 test images per class.
    """

    name = "places_lt"
    display_name = "Places-LT"
    num_classes = 365
    lists: ClassVar[Mapping[str, str]] = {s: f"Places_LT_{s}.txt" for s in ("train", "val", "test")}


def read_list(path: Path) -> Files:
    """Read lines ``path label``; a path may contain spaces, and empty lines are skipped.

    Raises:
        UserError: A line does not end with a whole number, or the list is empty.
    """
    names, labels = [], []
    with open_file(path) as file:
        lines = file.read().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            name, label = line.rsplit(maxsplit=1)
            labels.append(int(label))
        except ValueError:
            if not line.strip():
                continue
            raise UserError(
                f"{path}, line {number}: {os.fsdecode(line)!a:.80} is not `path label`, such as "
                "`train/n01440764/n01440764_190.JPEG 0`."
            ) from None
        names.append(name)
    return listed(names, labels, path)


def listed(names: Iterable[bytes], labels: Iterable[int], path: Path) -> Files:
    """Make the arrays of a split that was listed in ``path``.

    Raises:
        UserError: The list is empty, or has a label beyond int64.
    """
    try:
        numbers = np.array(list(labels), dtype=np.int64)
    except OverflowError as error:
        raise UserError(f"{path}: a label is too large. Labels count from 0.") from error
    files = Files(np.array(list(names), dtype=np.bytes_), numbers)
    if not len(files.labels):
        raise UserError(f"{path} lists no images.")
    return files


def check_labels(files: Files, num_classes: int, path: Path) -> None:
    """Refuse labels outside 0 to ``num_classes`` - 1.

    Raises:
        UserError: There are such labels: their number, and the first.
    """
    bad = np.flatnonzero((files.labels < 0) | (files.labels >= num_classes))
    if len(bad):
        first = f"{os.fsdecode(files.names[bad[0]])} has label {files.labels[bad[0]]}"
        raise UserError(
            f"{path}: {len(bad)} of {len(files.labels)} labels are outside 0 to {num_classes - 1}: "
            f"{first}.\nLabels count from 0, and every class needs a training image."
        )


def distinct(names: list[str]) -> list[str]:
    """Append the class number to each name that several classes share."""
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} {c}" if name in shared else name for c, name in enumerate(names)]


def check_once(files: Files, path: Path) -> set[bytes]:
    """Return the images of a list, and refuse one that is listed with two labels.

    Raises:
        UserError: An image has two labels.
    """
    label_of: dict[bytes, int] = {}
    for name, label in zip(files.names.tolist(), files.labels.tolist(), strict=True):
        if label_of.setdefault(name, label) != label:
            raise UserError(
                f"{path}: {os.fsdecode(name)} is listed with two labels, {label_of[name]} and "
                f"{label}; keep one."
            )
    return set(label_of)


def check_classes(files: Files, num_classes: int, path: Path) -> None:
    """Refuse a training list that has no images of some class.

    Raises:
        UserError: There are such classes: their number, and the first.
    """
    present = np.unique(files.labels)
    if len(present) < num_classes:
        first = np.flatnonzero(np.append(present, -1) != np.arange(len(present) + 1))[0]
        raise UserError(
            f"{path}: {num_classes - len(present)} of {num_classes} classes have no images, "
            f"starting with {first}.\nLabels count from 0, and every class needs a training image."
        )
