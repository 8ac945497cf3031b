"""Pairs of images: the first drawn by its label, the second by a label or a pseudo-label."""

import torch
from torch import Tensor
from typing_extensions import override

from ltbench.data.samplers import ImagesByClass, Labels, TrainingSampler
from ltbench.errors import UserError


class PairSampler(TrainingSampler):
    """Pairs of rows (first, second), drawn by class pair, with replacement.

    Rows of the second images follow those of the first. The shares of the class pairs and the
    classes of the second images may change between epochs (:meth:`draw_from`). An epoch's pairs are
    a function of both, the seed and the epoch, the same on any number of ranks.

    Args:
        labels: (n,) labels of the first images.
        classes: K.
        length: Pairs per epoch, over all ranks.
        seed: Seed of the run.
    """

    together = 2

    def __init__(self, labels: Labels, classes: int, length: int, seed: int) -> None:
        super().__init__(labels, seed, length)
        self.classes = classes
        self.first = ImagesByClass(torch.from_numpy(labels), classes)
        self.second: ImagesByClass | None = None

    def draw_from(self, shares: Tensor, labels: Tensor) -> None:
        """Set what the next epochs are drawn from.

        Args:
            shares: (K, K) of the pairs (class of the first, class of the second), sum 1; 0 for
                classes without an image.
            labels: (m,) int64 labels or pseudo-labels of the second images.
        """
        self.second = ImagesByClass(labels.cpu(), self.classes)
        self.bounds = shares.cpu().flatten().cumsum(0)

    @override
    def order(self, generator: torch.Generator) -> Tensor:
        if self.second is None:
            raise UserError("PairSampler: call draw_from before drawing.")
        point = torch.rand(self.length, generator=generator, dtype=torch.float64)
        # Right of equal bounds, so that a pair with share 0 is never drawn.
        pair = torch.searchsorted(self.bounds, point * self.bounds[-1], right=True)
        pair = pair.clamp_max(int(self.bounds.argmax()))  # a product may round up to the end
        first = self.first.draw(pair // self.classes, generator)
        second = self.second.draw(pair % self.classes, generator)
        return torch.stack([first, second + len(self.labels)], 1)
