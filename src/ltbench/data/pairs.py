"""Pairs of images: the first drawn by its label, the second by a label or a pseudo-label."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltbench.data.datasets import Batch, Images
from ltbench.data.samplers import TrainingSampler
from ltbench.errors import UserError


class Pairs(Images):
    """Batches of pairs: all first images, then all second ones, in one tensor.

    ``image`` (2B, C, H, W) and ``index`` (2B,) hold both; ``label`` (B,) is that of the first.

    Args:
        first: First images.
        second: Second images.
        numbered: Whether a pair of rows comes with a number, from which both images' random crops
            are drawn as they are decoded.
    """

    def __init__(self, first: Images, second: Images, numbered: bool = False) -> None:
        """Take first and second images from these."""
        self.first, self.second, self.numbered = first, second, numbered

    def __len__(self) -> int:
        """Return the number of pairs that there are."""
        return len(self.first) * len(self.second)

    def __getitems__(self, rows: list[Any]) -> Batch:
        """Return the batch of these pairs of rows."""
        if self.numbered:
            rows = [((one, 2 * n), (other, 2 * n + 1)) for (one, other), n in rows]
        first = self.first.__getitems__([one for one, _ in rows])
        second = self.second.__getitems__([other for _, other in rows])
        both = {key: torch.cat([first[key], second[key]]) for key in ("image", "index")}
        return {**both, "label": first["label"]}


class ImagesByClass:
    """The rows of a set of images, sorted by class, to draw from one class after another."""

    def __init__(self, labels: Tensor, classes: int) -> None:
        """Sort ``labels`` (n,), int64 in [0, classes)."""
        self.rows = labels.argsort(stable=True)
        self.counts = torch.bincount(labels, minlength=classes)
        self.starts = self.counts.cumsum(0) - self.counts

    def draw(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Return a row (n,) of each of these ``classes`` (n,), uniformly, with replacement."""
        position = torch.rand(len(classes), generator=generator, dtype=torch.float64)
        return self.rows[self.starts[classes] + (position * self.counts[classes]).long()]


class PairSampler(TrainingSampler):
    """Pairs of rows (first, second), drawn by class pair, with replacement.

    The shares of the class pairs and the classes of the second images may change between epochs
    (:meth:`draw_from`). An epoch's pairs are a function of both, the seed and the epoch, the same
    on any number of ranks.

    Args:
        labels: (n,) labels of the first images.
        classes: K.
        length: Pairs of an epoch, all ranks together.
        seed: Seed of the run.
        numbered: See :class:`~ltbench.data.samplers.TrainingSampler`.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        classes: int,
        length: int,
        seed: int,
        numbered: bool = False,
    ) -> None:
        """Sort the first images by class; :meth:`draw_from` gives the rest."""
        self.length = length
        super().__init__(labels, seed, numbered)
        self.classes = classes
        self.first = ImagesByClass(torch.from_numpy(labels), classes)
        self.second: ImagesByClass | None = None

    def _length(self, images: int) -> int:
        return self.length

    def draw_from(self, shares: Tensor, labels: Tensor) -> None:
        """Set what the next epochs are drawn from.

        Args:
            shares: (K, K) of the pairs (class of the first, class of the second), sum 1; 0 for
                classes without an image.
            labels: (m,) int64 labels or pseudo-labels of the second images.
        """
        self.second = ImagesByClass(labels.cpu(), self.classes)
        self.bounds = shares.cpu().flatten().cumsum(0)

    def _order(self, generator: torch.Generator) -> Tensor:
        if self.second is None:
            raise UserError("pairs cannot be drawn before their shares are known.")
        point = torch.rand(self.length, generator=generator, dtype=torch.float64)
        # Right of equal bounds, so that a pair with share 0 is never drawn.
        pair = torch.searchsorted(self.bounds, point * self.bounds[-1], right=True)
        pair = pair.clamp_max(int(self.bounds.argmax()))  # a product may round up to the end
        first = self.first.draw(pair // self.classes, generator)
        return torch.stack([first, self.second.draw(pair % self.classes, generator)], 1)
