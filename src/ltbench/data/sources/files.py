"""Shared by the sources whose images are files of any size: folder, lists, iNaturalist."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from ltbench.data.sources.base import Labels, OnBadImage, Source
from ltbench.data.sources.contents import digests
from ltbench.data.sources.decoding import decode, decode_crops, is_readable
from ltbench.errors import UserError
from ltbench.untrusted import open_file

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MEMORY_BUDGET = 2 * 1024**3  # bytes of decoded images, all splits together
_Job = TypeVar("_Job")
_CHECKERS = 16  # threads that check files: they mostly wait for the disk

# First bytes of a kind of image, and its last.
_WHOLE = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND\xaeB`\x82"))


class Files(NamedTuple):
    """The images of a split.

    Attributes:
        names: (n,) paths below the root as bytes: an array is shared by the workers of a loader,
            where every string in a list would be copied into each.
        labels: (n,) labels.
    """

    names: npt.NDArray[np.bytes_]
    labels: Labels


class FileSource(Source):
    """Images in files, decoded on demand and resized to squares of one size.

    A subclass lists its files in :meth:`_prepare` and passes them to :meth:`_take`. Grey, palette
    and transparent images are converted to RGB. Images are held in memory if all splits together
    take at most 2 GiB.
    """

    def _take(self, size: int, files: Mapping[str, Files]) -> None:
        """Store the files of each split, and the size of their images."""
        if self.decoding.resize is not None and self.decoding.resize < size:
            raise UserError(
                f"data.decoding: resize {self.decoding.resize} is smaller than the image size "
                f"{size}; set it to at least that."
            )
        self._size = size
        self._files = files
        self.splits = frozenset(files)
        images = sum(len(split.labels) for split in files.values())
        self.in_memory = self.channels * images * size**2 <= MEMORY_BUDGET

    @cached_property
    @override
    def listing(self) -> str:
        digest = hashlib.sha256()
        for split in sorted(self._files):
            names, labels = self._files[split]
            digest.update(b"\n".join([split.encode(), *names.tolist()]))
            digest.update(labels.astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    @override
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.listing.encode())
        names = sorted({name for files in self._files.values() for name in files.names.tolist()})
        digest.update(b"".join(digests(self.root, names)))
        return digest.hexdigest()

    def paths(self, split: str) -> list[Path]:
        """File of each image of a split, in the order of `labels`."""
        self._check(split)
        return [self._path(name) for name in self._files[split].names]

    @override
    def labels(self, split: str) -> Labels:
        self._check(split)
        return self._files[split].labels

    @override
    def images(self, split: str, indices: npt.ArrayLike) -> Tensor:
        self._check(split)
        names = self._files[split].names[np.asarray(indices, dtype=np.int64)]
        images = torch.empty(len(names), self.channels, self._size, self._size, dtype=torch.uint8)
        for row, image in enumerate(_decoded(self._decode, names, self._size)):
            images[row] = image
        return images

    def crops(
        self, split: str, indices: npt.ArrayLike, draws: Sequence[torch.Generator], views: int = 1
    ) -> Tensor:
        """Crop random boxes from images (see `Decoding.random_crop`).

        Args:
            split: Name of a split.
            indices: Which images.
            draws: Generators, one per image, from which its boxes are drawn.
            views: Boxes per image.

        Returns:
            (views, len(indices), channels, size, size) uint8.
        """
        self._check(split)
        names = self._files[split].names[np.asarray(indices, dtype=np.int64)]
        size = (views, len(names), self.channels, self._size, self._size)
        images = torch.empty(size, dtype=torch.uint8)

        def cut(job: tuple[bytes, torch.Generator]) -> Tensor:
            name, draw = job
            where = self._path(name)
            return decode_crops(where, self.channels, self._size, self.decoding, draw, views)

        jobs = zip(names, draws, strict=True)
        for row, cropped in enumerate(_decoded(cut, jobs, self._size)):
            images[:, row] = cropped
        return images

    def _decode(self, name: bytes) -> Tensor:
        return decode(self._path(name), self.channels, self._size, self.decoding)

    def _path(self, name: bytes) -> Path:
        return self.root / os.fsdecode(name)


def _decoded(
    function: Callable[[_Job], Tensor], jobs: Iterable[_Job], size: int
) -> Iterable[Tensor]:
    # Below some 64 pixels threads only wait for each other: 0.11 ms per image with one, 0.23 with
    # two. A worker of a loader has one thread.
    threads = torch.get_num_threads() if size > 64 else 1
    if threads == 1:
        yield from map(function, jobs)
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(function, jobs)


def usable(root: Path, files: Files, on_bad_image: OnBadImage, listed_in: Path) -> Files:
    """Check every file of a list once: is it there, and does it end as an image should?

    A file that does not end like a complete JPEG or PNG file is decoded to be sure.

    Args:
        root: Folder that the names are relative to.
        files: The listed images.
        on_bad_image: Whether a bad file is an error, or left out with a warning.
        listed_in: The list, for messages.

    Returns:
        The images to use.

    Raises:
        UserError: Images are missing or damaged and `on_bad_image` is ``error``, or all are.
    """
    for problem, find in (("missing", _missing), ("damaged", _damaged)):
        bad = find(root, files.names)
        if not bad.any():
            continue
        first = ", ".join(os.fsdecode(name) for name in files.names[bad][:5])
        summary = f"{bad.sum()} of {len(bad)} images in {listed_in} are {problem} below {root}: "
        summary += f"{first}{', ...' if bad.sum() > 5 else ''}"
        if on_bad_image == "error":
            raise UserError(
                f"{summary}.\nAdd them, or leave them out with --data.on_bad_image skip."
            )
        warnings.warn(f"left out: {summary}", stacklevel=2)
        files = Files(files.names[~bad], files.labels[~bad])
        if bad.all():
            raise UserError(f"{summary}.\nNone are left: is {root} the right folder?")
    return files


def _missing(root: Path, names: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
    """Return which files are missing; each folder is listed once, which is faster than a stat."""
    missing = np.zeros(len(names), dtype=bool)
    present: dict[bytes, set[bytes]] = {}
    for row, name in enumerate(names.tolist()):
        folder, _, file = name.rpartition(b"/")
        if folder not in present:
            present[folder] = _listing(os.fsencode(root) + b"/" + folder)
        missing[row] = file not in present[folder]
    return missing


def _listing(folder: bytes) -> set[bytes]:
    try:
        return {entry.name for entry in os.scandir(folder)}
    except OSError:
        return set()


def _damaged(root: Path, names: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
    # By the hundred: one job per file would cost more than the check.
    parts = np.array_split(names, -(-len(names) // 256))
    with ThreadPoolExecutor(_CHECKERS) as pool:
        bad = pool.map(lambda part: [_is_damaged(root / os.fsdecode(name)) for name in part], parts)
        return np.concatenate([np.array(part, dtype=bool) for part in bad])


def _is_damaged(path: Path) -> bool:
    try:
        with open_file(path) as file:
            start = file.read(4)
            file.seek(-8, os.SEEK_END)
            end = file.read()
    except OSError:
        return True
    whole = any(start.startswith(first) and end.endswith(last) for first, last in _WHOLE)
    return not whole and not is_readable(path)
