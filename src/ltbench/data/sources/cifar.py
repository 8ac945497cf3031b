"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in their own archives, read by torchvision."""

import numpy as np
from torchvision import datasets
from typing_extensions import override

from ltbench.data.sources.base import CIFAR_MEAN, CIFAR_STD, DownloadedSource, Images, Labels


class Cifar10(DownloadedSource):
    """50,000 training and 10,000 test images of 32 x 32 pixels, balanced over 10 classes."""

    name = "cifar10"
    display_name = "CIFAR-10"
    num_classes = 10
    head_mid_tail = (3, 4, 3)
    mean, std = CIFAR_MEAN, CIFAR_STD
    splits = frozenset({"train", "test"})
    dataset = datasets.CIFAR10

    @override
    def _load(self, split: str) -> tuple[Images, Labels]:
        opened = self._open(train=split == "train")
        return opened.data.transpose(0, 3, 1, 2), np.array(opened.targets, dtype=np.int64)


class Cifar100(Cifar10):
    """50,000 training and 10,000 test images of 32 x 32 pixels, balanced over 100 classes."""

    name = "cifar100"
    display_name = "CIFAR-100"
    num_classes = 100
    head_mid_tail = (36, 35, 29)
    dataset = datasets.CIFAR100
