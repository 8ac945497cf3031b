"""STL-10 (Coates et al., AISTATS 2011) in its own archive, read by torchvision."""

import numpy as np
from torchvision import datasets
from typing_extensions import override

from ltbench.data.sources.base import DownloadedSource, Images, Labels


class Stl10(DownloadedSource):
    """5,000 training, 8,000 test and 100,000 unlabelled images of 96 x 96 pixels, 10 classes.

    The unlabelled images come from more classes than the ten, in unknown shares.
    """

    name = "stl10"
    display_name = "STL-10"
    num_classes = 10
    mean, std = (0.4404, 0.4271, 0.3855), (0.2686, 0.2612, 0.2682)
    splits = frozenset({"train", "test", "unlabelled"})
    dataset = datasets.STL10

    @override
    def _load(self, split: str) -> tuple[Images, Labels]:
        opened = self._open(split="unlabeled" if split == "unlabelled" else split)
        return opened.data, opened.labels.astype(np.int64)
