"""Which images a rank sees, as a function of (seed, epoch, rank): nothing else is remembered.

All samplers subclass torch's ``DistributedSampler`` so that Lightning leaves them alone and tells
them the epoch.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sized
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from ltbench import seeding


def _world() -> tuple[int, int]:
    """Return (number of ranks, this rank)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


class TrainingSampler(DistributedSampler[int]):
    """An order of images for each epoch, the same for any number of ranks, dealt out in turn.

    When the ranks do not divide it, its start is repeated so that all ranks take the same number
    of steps (as torch does).

    Args:
        images: What is sampled from; only its length counts, unless a sampler says otherwise.
        seed: Seed of the run.
        numbered: Yield pairs (row, number) instead of rows, where no number comes twice in a
            training on any rank: a key for what is drawn for an image while it is decoded.
    """

    def __init__(self, images: Sized, seed: int, numbered: bool = False) -> None:
        """Shard the images over the ranks of the default process group, if there is one."""
        replicas, rank = _world()
        super().__init__(images, replicas, rank, seed=seed)  # type: ignore[arg-type]
        self.numbered = numbered
        self.num_samples = -(-self._length(len(images)) // replicas)
        self.total_size = self.num_samples * replicas

    def _length(self, images: int) -> int:
        """Return the length of an order."""
        return images

    @abstractmethod
    def _order(self, generator: torch.Generator) -> Tensor:
        """Draw the rows of one epoch, (length,) int64, all ranks together."""

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's rows for the current epoch."""
        order = self._order(seeding.generator("cpu", self.seed, "shuffle", self.epoch))
        places = range(self.rank, self.total_size, self.num_replicas)
        rows = order[torch.tensor(places) % len(order)].tolist()
        if not self.numbered:
            return iter(rows)
        first = self.epoch * self.total_size
        return zip(rows, (first + place for place in places), strict=True)  # type: ignore[return-value]


class ShuffledSampler(TrainingSampler):
    """A fresh permutation each epoch; a single rank sees every image exactly once."""

    def _order(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]


class RepeatedSampler(ShuffledSampler):
    """Repeated augmentation: three copies of each image in a row, for as long as an epoch is.

    With its images rounded down to a multiple of 256, if there are as many, an epoch visits a third
    of them. Ranks see different copies of an image.

    Source: Hoffer et al., arXiv 1901.09335, in the form of DeiT, arXiv 2012.12877.
    """

    repeats: ClassVar[int] = 3
    multiple: ClassVar[int] = 256

    def _length(self, images: int) -> int:
        return images - images % self.multiple if images >= self.multiple else images

    def _order(self, generator: torch.Generator) -> Tensor:
        length = self._length(len(self.dataset))  # type: ignore[arg-type]
        return super()._order(generator).repeat_interleave(self.repeats)[:length]


class ClassSampler(TrainingSampler):
    """As many draws an epoch as there are images: first a class, then one of its images.

    A class of n images is drawn with a probability in proportion to n^power, its images with equal
    ones, all with replacement; classes without images are never drawn.

    Args:
        images: (n,) integer labels of the images.
        seed: See :class:`TrainingSampler`.
        numbered: See :class:`TrainingSampler`.
    """

    power: ClassVar[float]

    def __init__(self, images: npt.NDArray[np.int64], seed: int, numbered: bool = False) -> None:
        """Sort the images by class once."""
        super().__init__(images, seed, numbered)
        self._members = torch.from_numpy(np.argsort(images, kind="stable"))
        _, counts = np.unique(images, return_counts=True)
        self._counts = torch.from_numpy(counts)

    def _order(self, generator: torch.Generator) -> Tensor:
        counts, length = self._counts, len(self._members)
        drawn = torch.multinomial(
            counts.double() ** self.power, length, replacement=True, generator=generator
        )
        within = torch.rand(length, generator=generator, dtype=torch.float64) * counts[drawn]
        return self._members[(counts.cumsum(0) - counts)[drawn] + within.long()]


class ClassBalancedSampler(ClassSampler):
    """Every class equally often (class-balanced sampling of arXiv 1910.09217)."""

    power = 0.0


class SquareRootSampler(ClassSampler):
    """A class as often as the square root of its images (arXiv 1910.09217)."""

    power = 0.5


class EvaluationSampler(DistributedSampler[int]):
    """Each image on exactly one rank, in order, without the padding that counts images twice."""

    def __init__(self, dataset: Dataset[object]) -> None:
        """Shard ``dataset`` over the ranks of the default process group, if there is one."""
        replicas, rank = _world()
        super().__init__(dataset, replicas, rank, shuffle=False)
        self.num_samples = len(range(rank, len(dataset), replicas))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's indices."""
        yield from range(self.rank, len(self.dataset), self.num_replicas)  # type: ignore[arg-type]


class EvaluationBatches(EvaluationSampler):
    """The same in batches, as many of them on each rank: the last may be empty on some.

    A network under DDP talks to the other ranks whenever it is called, so all have to call it
    equally often, also one that has no image at all.
    """

    def __init__(self, dataset: Dataset[object], batch_size: int) -> None:
        """Shard ``dataset`` over the ranks of the default process group, if there is one."""
        super().__init__(dataset)
        self.batch_size = batch_size
        most = -(-len(dataset) // self.num_replicas)  # type: ignore[arg-type]
        self.num_samples = -(-most // batch_size)

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        """Yield the rows of each of this rank's batches."""
        rows = list(super().__iter__())
        for batch in range(self.num_samples):
            yield rows[batch * self.batch_size : (batch + 1) * self.batch_size]


SAMPLERS: dict[str, type[TrainingSampler]] = {
    "shuffled": ShuffledSampler,
    "class_balanced": ClassBalancedSampler,
    "square_root": SquareRootSampler,
    "repeated": RepeatedSampler,
}
"""The samplers of training images by the name that a config gives them."""
