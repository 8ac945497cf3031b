"""A folder of images, one folder a class: the way to train on data of one's own."""

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
from ltbench.data.sources.decoding import Decoding, is_readable, reading
from ltbench.data.sources.files import IMAGENET_MEAN, IMAGENET_STD, Files, FileSource
from ltbench.errors import UserError

LARGEST_DEFAULT_SIZE = 224  # pixels
UNREAD = frozenset((".avif", ".gif", ".heic", ".heif", ".jfif"))  # image files that are passed over


class Folder(FileSource):
    """Images under ``root/train/<class>/``, with ``root/val/`` and ``root/test/`` optional.

    A root with none of the three is itself the training split; beside them, images anywhere below
    ``root/unlabelled/`` are the split of that name. Classes are the folders of the training split,
    files are those with one of torchvision's image extensions, both in sorted order and without
    hidden ones. Images of other kinds, such as .heic, are passed over with a warning.

    `image_size` None stands for the shorter side of the first training image, at most 224.
    Normalisation uses CIFAR's constants up to 32 pixels and ImageNet's above.

    With `on_bad_image` ``skip``, construction decodes every image once to find those to leave out:
    labels, positions and so the subset's hash then count the readable ones only.

    Raises:
        UserError: If a folder is missing, a training class has no image, or another split has a
            class that the training split lacks.
    """

    name = "folder"

    def __init__(
        self,
        root: Path,
        image_size: int | None = None,
        on_bad_image: OnBadImage = "error",
        decoding: Decoding | None = None,
    ) -> None:
        super().__init__(root, image_size, on_bad_image, decoding)
        self.display_name = root.resolve().name
        folders = {s: root / s for s in ("train", "val", "test") if (root / s).is_dir()}
        train = folders.get("train", root / "train") if folders else root
        self._class_names = _class_folders(train) if train.is_dir() else []
        if not self._class_names:
            raise UserError(
                f"there are no class folders in {train}. Is --data.root right?\n"
                f"Expected {root}/train/<class>/<image>, and optionally {root}/val and {root}/test "
                "with the same classes."
            )
        for name in self._class_names:
            if name != os.fsencode(name).decode(errors="replace"):
                raise UserError(f"class folder {str(train / name)!a}: rename it, in UTF-8.")
        self.num_classes = len(self._class_names)
        files = {s: self._list(folder) for s, folder in {**folders, "train": train}.items()}
        if folders and (root / "unlabelled").is_dir():
            files["unlabelled"] = self._unlabelled(root / "unlabelled")
        counts = np.bincount(files["train"].labels, minlength=self.num_classes)
        for c in np.flatnonzero(counts == 0)[:1]:
            raise UserError(
                f"class folder {train / self._class_names[c]} has no image that can be used. "
                f"Add images ({', '.join(IMG_EXTENSIONS)}), or take a folder that is no class "
                f"away.\nIs --data.root {root} right?"
            )
        size = image_size or self._own_size(self._path(files["train"].names[0]))
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
    def fingerprint(self) -> str:
        names = (name for files in self._files.values() for name in files.names.tolist())
        lines = sorted(b"%s %d" % (name, self._path(name).stat().st_size) for name in names)
        return hashlib.sha256(b"\n".join(lines)).hexdigest()

    @staticmethod
    def _own_size(first: Path) -> int:
        with reading(first) as image:
            return min(*image.size, LARGEST_DEFAULT_SIZE)

    def _list(self, folder: Path) -> Files:
        """The images of a split in class and file order, less the unreadable ones if so asked."""
        unknown = set(_class_folders(folder)) - set(self._class_names)
        if unknown:
            raise UserError(
                f"{folder} has the class '{min(unknown)}', which the training split lacks. Add it "
                f"there or remove {folder / min(unknown)}."
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
    """All images anywhere below a folder, hidden ones left out, in path order.

    Args:
        folder: The folder.
        on_bad_image: With ``skip``, every image is decoded once to find those to leave out.

    Raises:
        UserError: If there is no such folder or no image in it.
    """
    files = [path for path in folder.rglob("*") if not path.name.startswith(".")]
    _warn_of_unread(folder, files)
    found = sorted(path for path in files if path.suffix.lower() in IMG_EXTENSIONS)
    if on_bad_image == "skip":
        found = list(compress(found, _readable(folder, found)))
    if not found:
        raise UserError(f"there are no images below {folder} ({', '.join(IMG_EXTENSIONS)}).")
    return found


def _warn_of_unread(folder: Path, files: Iterable[Path]) -> None:
    kinds = Counter(path.suffix.lower() for path in files)
    if unread := ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(UNREAD & kinds.keys())):
        warnings.warn(
            f"left out images in {folder} of a kind that is not read: {unread}. Convert them to "
            "JPEG or PNG.",
            stacklevel=2,
        )


def _visible(folder: Path) -> list[Path]:
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(visible, key=attrgetter("name"))


def _class_folders(folder: Path) -> list[str]:
    return [path.name for path in _visible(folder) if path.is_dir()]


def _readable(folder: Path, paths: list[Path]) -> list[bool]:
    """Which images can be decoded, with a warning that counts and names the others."""
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
