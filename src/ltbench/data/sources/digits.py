"""Scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels that need no download."""

from functools import cache

import numpy as np
from sklearn.datasets import load_digits
from typing_extensions import override

from ltbench.data.sources.base import ArraySource, Images, Labels

TEST_PER_CLASS = 40  # 400 of 1,797 images, balanced; the classes hold 174 to 183


class Digits(ArraySource):
    """The digits 0 to 9, with a fixed balanced test split; `root` is not used."""

    name = "digits"
    display_name = "Digits"
    num_classes = 10
    channels = 1
    mean = (0.305,)
    std = (0.376,)
    splits = frozenset({"train", "test"})

    @property
    @override
    def class_names(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    @override
    def _load(self, split: str) -> tuple[Images, Labels]:
        images, labels, in_test = _digits()
        rows = in_test if split == "test" else ~in_test
        return images[rows], labels[rows]


@cache
def _digits() -> tuple[Images, Labels, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Images, labels, and which of them are test images."""
    bundle = load_digits()
    images = np.rint(bundle.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bundle.target.astype(np.int64)
    generator = np.random.default_rng(0)
    in_test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        in_test[generator.choice(np.flatnonzero(labels == digit), TEST_PER_CLASS, False)] = True
    return images, labels, in_test
