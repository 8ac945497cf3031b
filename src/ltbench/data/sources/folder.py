"""A folder of images, with one subfolder per class: the way to train on your own data."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import compress
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS
from typing_extensions import override

from ltbench.data.sources.base import CIFAR_MEAN, CIFAR_STD, OnBadImage
from ltbench.data.sources.decoding import is_readable, reading
from ltbench.data.sources.files import IMAGENET_MEAN, IMAGENET_STD, Files, FileSource
from ltbench.errors import UserError

LARGEST_DEFAULT_SIZE = 224  # pixels
UNREAD = frozenset((".avif", ".gif", ".heic", ".heif", ".jfif"))  # image files that are skipped


class Folder(FileSource):
    """Images under ``root/train/<class>/``, with ``root/val/`` and ``root/test/`` optional.

    A root without any of the three is itself the training split. If there is a folder
    ``root/unlabelled/`` beside them, all images below it are the unlabelled split. Classes are the
    subfolders of the training split; images are the files with one of torchvision's image
    extensions. Both are sorted, and hidden ones are ignored. Other image formats, such as .heic,
    are skipped with a warning.

    `image_size` None means the shorter side of the first training image, at most 224. Images are
    normalised with CIFAR's constants up to 32 pixels and with ImageNet's above.

    With `on_bad_image` ``skip``, every image is decoded once to find those to leave out: labels,
    positions, and therefore the hash of the subset, count only the readable ones.

    Raises:
        UserError: If a folder is missing, a training class has no image, or another split has a
            class that the training split lacks.
    """

    name = "folder"

    @override
    def _prepare(self) -> None:
        root = self.root
        self.display_name = root.resolve().name
        folders = {s: root / s for s in ("train", "val", "test") if (root / s).is_dir()}
        train = folders.get("train", root / "train") if folders else root
        self._class_names = class_folders(train) if train.is_dir() else []
        if not self._class_names:
            raise UserError(
                f"no class folders found in {train}. Is --data.root right?\n"
                f"Expected {root}/train/<class>/<image>, and optionally {root}/val and {root}/test "
                "with the same classes."
            )
        for name in self._class_names:
            if name != os.fsencode(name).decode(errors="replace"):
                raise UserError(
                    f"class folder {str(train / name)!a}: its name is not UTF-8; rename it."
                )
        self.num_classes = len(self._class_names)
        files = {s: self._list(folder) for s, folder in {**folders, "train": train}.items()}
        if folders and (root / "unlabelled").is_dir():
            files["unlabelled"] = self._unlabelled(root / "unlabelled")
        counts = np.bincount(files["train"].labels, minlength=self.num_classes)
        for c in np.flatnonzero(counts == 0)[:1]:
            raise UserError(
                f"no usable images found in the class folder {train / self._class_names[c]}. Add "
                f"images ({', '.join(IMG_EXTENSIONS)}), or remove the folder if it is not a class."
                f"\nIs --data.root {root} right?"
            )
        size = self.image_size or self._own_size(self._path(files["train"].names[0]))
        self.mean, self.std = (
            (CIFAR_MEAN, CIFAR_STD) if size <= 32 else (IMAGENET_MEAN, IMAGENET_STD)
        )
        self._take(size, files)

    @property
    @override
    def class_names(self) -> list[str]:
        return self._class_names

    @cached_property
    @override
    def listing(self) -> str:
        names = (name for files in self._files.values() for name in files.names.tolist())
        lines = sorted(b"%s %d" % (name, self._path(name).stat().st_size) for name in names)
        return hashlib.sha256(b"\n".join(lines)).hexdigest()

    @staticmethod
    def _own_size(first: Path) -> int:
        with reading(first) as image:
            return min(*image.size, LARGEST_DEFAULT_SIZE)

    def _list(self, folder: Path) -> Files:
        """Return the images of a split by class and file name."""
        unknown = set(class_folders(folder)) - set(self._class_names)
        if unknown:
            raise UserError(
                f"{folder} has a class '{min(unknown)}' that the training split does not have. Add "
                f"training images of it, or remove {folder / min(unknown)}."
            )
        files = [
            (path, c)
            for c, name in enumerate(self._class_names)
            if (folder / name).is_dir()  # a split other than train may lack classes
            for path in _visible(folder / name)
        ]
        _warn_of_unread(folder, (path for path, _ in files))
        images = [(path, c) for path, c in files if path.suffix.lower() in IMG_EXTENSIONS]
        return self._files_of(folder, [path for path, _ in images], [c for _, c in images])

    def _unlabelled(self, folder: Path) -> Files:
        paths = image_files(folder)
        return self._files_of(folder, paths, [-1] * len(paths))

    def _files_of(self, folder: Path, paths: list[Path], labels: list[int]) -> Files:
        names = [os.fsencode(path.relative_to(self.root)) for path in paths]
        files = Files(np.array(names, dtype=np.bytes_), np.array(labels, dtype=np.int64))
        if self.on_bad_image == "error":
            return files
        good = _readable(folder, paths)
        return Files(files.names[good], files.labels[good])


def image_files(folder: Path, on_bad_image: OnBadImage = "error") -> list[Path]:
    """Return all images anywhere below a folder, except hidden ones, in path order.

    Args:
        folder: The folder.
        on_bad_image: With ``skip``, every image is decoded once to find those to leave out.

    Raises:
        UserError: There is no such folder, or it has no images.
    """
    files = [path for path in folder.rglob("*") if not path.name.startswith(".")]
    _warn_of_unread(folder, files)
    images = sorted(path for path in files if path.suffix.lower() in IMG_EXTENSIONS)
    if on_bad_image == "skip":
        images = list(compress(images, _readable(folder, images)))
    if not images:
        raise UserError(f"no images found in {folder} ({', '.join(IMG_EXTENSIONS)}).")
    return images


def _warn_of_unread(folder: Path, files: Iterable[Path]) -> None:
    kinds = Counter(path.suffix.lower() for path in files)
    if unread := ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(UNREAD & kinds.keys())):
        warnings.warn(
            f"left out images in {folder} whose format is not supported: {unread}. Convert them "
            "to JPEG or PNG.",
            stacklevel=2,
        )


def _visible(folder: Path) -> list[Path]:
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(visible, key=attrgetter("name"))


def class_folders(folder: Path) -> list[str]:
    """Return the names of the visible subfolders of a folder, sorted."""
    return [path.name for path in _visible(folder) if path.is_dir()]


def _readable(folder: Path, paths: list[Path]) -> list[bool]:
    """Return which images can be decoded; warn of the others, with their number and names."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        good = list(pool.map(is_readable, paths))
    bad = [str(path) for path, fine in zip(paths, good, strict=True) if not fine]
    if bad:
        first = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        warnings.warn(
            f"left out {len(bad)} of {len(paths)} images in {folder} that cannot be read: {first}",
            stacklevel=2,
        )
    return good
