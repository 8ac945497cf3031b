"""Which images a rank sees, as a function of (seed, epoch, rank) alone.

All samplers subclass torch's ``DistributedSampler``, so that Lightning does not wrap them and sets
their epoch. If a batch has several streams, rows count through the images of all of them, one
stream after the other.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler
from typing_extensions import override

from ltbench import seeding
from ltbench.errors import UserError

Labels = npt.NDArray[np.int64]


def _world() -> tuple[int, int]:
    """Return (number of ranks, this rank)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


class TrainingSampler(DistributedSampler[int]):
    """An order of images for each epoch, the same for any number of ranks, dealt out in turn.

    If its length is not a multiple of the number of ranks, its start is repeated, as torch does, so
    that all ranks take the same number of steps. A subclass defines :meth:`order`; a config names
    it by its import path.

    Args:
        labels: (n,) label of each image, -1 if it is hidden.
        seed: Seed of the run.
        length: Draws per epoch, all ranks together; default: one per image.

    Attributes:
        numbered: Whether to yield pairs (row, number) instead of rows; each number is unique in a
            training, over all ranks: the key of what is drawn while an image is decoded. The data
            module sets it.
    """

    numbered = False
    together: ClassVar[int] = 1  # rows drawn together, which stay on one rank

    def __init__(self, labels: Labels, seed: int, length: int | None = None) -> None:
        replicas, rank = _world()
        super().__init__(labels, replicas, rank, seed=seed)  # type: ignore[arg-type]
        self.labels = labels
        self.length = len(labels) if length is None else length
        self.num_samples = -(-self.length // replicas) * self.together
        self.total_size = self.num_samples * replicas

    @abstractmethod
    def order(self, generator: torch.Generator) -> Tensor:
        """Draw the rows of one epoch, all ranks together.

        Returns:
            (length,) int64 rows, or (length, :attr:`together`).
        """

    def __iter__(self) -> Iterator[int]:
        order = self.order(seeding.generator("cpu", self.seed, "shuffle", self.epoch))
        places = torch.arange(self.rank, self.total_size // self.together, self.num_replicas)
        rows = order[places % len(order)].flatten().tolist()
        if not self.numbered:
            return iter(rows)
        numbers = places[:, None] * self.together + torch.arange(self.together)
        numbers += self.epoch * self.total_size
        return zip(rows, numbers.flatten().tolist(), strict=True)  # type: ignore[return-value]


class ShuffledSampler(TrainingSampler):
    """A fresh permutation each epoch; a single rank sees every image exactly once."""

    @override
    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self.labels), generator=generator)


class RepeatedSampler(ShuffledSampler):
    """Repeated augmentation: three copies of each image in a row, until the epoch is full.

    An epoch has as many draws as there are images, rounded down to a multiple of 256, so it visits
    a third of them. Ranks see different copies of an image.

    Source: Hoffer et al., arXiv 1901.09335, in the form of DeiT, arXiv 2012.12877.
    """

    repeats: ClassVar[int] = 3
    multiple: ClassVar[int] = 256

    def __init__(self, labels: Labels, seed: int, length: int | None = None) -> None:
        images = len(labels)
        rounded = images - images % self.multiple if images >= self.multiple else images
        super().__init__(labels, seed, rounded if length is None else length)

    @override
    def order(self, generator: torch.Generator) -> Tensor:
        return super().order(generator).repeat_interleave(self.repeats)[: self.length]


class UniformSampler(TrainingSampler):
    """Images drawn uniformly and independently, with replacement."""

    @override
    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.labels), (self.length,), generator=generator)


class ImagesByClass:
    """The rows of some images by class, to draw images of given classes.

    Args:
        labels: (n,) int64 labels in [0, classes).
        classes: Number of classes.
    """

    def __init__(self, labels: Tensor, classes: int) -> None:
        self.rows = labels.argsort(stable=True)
        self.counts = torch.bincount(labels, minlength=classes)
        self.starts = self.counts.cumsum(0) - self.counts

    def draw(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Return a row (n,) of each of these ``classes`` (n,), uniformly, with replacement."""
        position = torch.rand(len(classes), generator=generator, dtype=torch.float64)
        return self.rows[self.starts[classes] + (position * self.counts[classes]).long()]


class BySharesSampler(TrainingSampler):
    """A class drawn by its share, then one of its images, with replacement.

    Classes without images are never drawn. A subclass defines :meth:`shares`.
    """

    def __init__(self, labels: Labels, seed: int, length: int | None = None) -> None:
        super().__init__(labels, seed, length)
        classes, ranks = np.unique(labels, return_inverse=True)
        self.by_class = ImagesByClass(torch.from_numpy(ranks), len(classes))

    @abstractmethod
    def shares(self, counts: Tensor) -> Tensor:
        """Return what the chances of classes are proportional to in this epoch, (C,).

        Args:
            counts: Images of each class that has any, (C,) float64.
        """

    @override
    def order(self, generator: torch.Generator) -> Tensor:
        shares = self.shares(self.by_class.counts.double())
        drawn = torch.multinomial(shares, self.length, replacement=True, generator=generator)
        return self.by_class.draw(drawn, generator)


class ClassBalancedSampler(BySharesSampler):
    """All classes alike (arXiv 1910.09217)."""

    @override
    def shares(self, counts: Tensor) -> Tensor:
        return torch.ones_like(counts)


class SquareRootSampler(BySharesSampler):
    """Classes by the square root of their images (arXiv 1910.09217)."""

    @override
    def shares(self, counts: Tensor) -> Tensor:
        return counts.sqrt()


class ReversedSampler(BySharesSampler):
    """Classes by the inverse of their images, the rarest most often (BBN, arXiv 1912.02413)."""

    @override
    def shares(self, counts: Tensor) -> Tensor:
        return 1 / counts


class ProgressiveSampler(BySharesSampler):
    """From classes by their images, in the first epoch, to all alike, in the last.

    Source: Kang et al., arXiv 1910.09217, section 3 (progressively balanced).

    Args:
        labels: See :class:`TrainingSampler`.
        seed: See there.
        length: See there.
        epochs: Length of the training; a config has to give it.

    Raises:
        UserError: ``epochs`` is left out, or not a whole number above 0.
    """

    def __init__(
        self, labels: Labels, seed: int, length: int | None = None, epochs: int = 0
    ) -> None:
        super().__init__(labels, seed, length)
        if not isinstance(epochs, int) or epochs < 1:
            raise UserError(
                f"sampler 'progressive' has epochs: {epochs}; give it the length of the training: "
                "{class_path: progressive, init_args: {epochs: 90}}."
            )
        self.epochs = epochs

    @override
    def shares(self, counts: Tensor) -> Tensor:
        done = min(self.epoch / max(self.epochs - 1, 1), 1.0)
        return (1 - done) * counts / counts.sum() + done / len(counts)


class ClassAwareSampler(TrainingSampler):
    """All classes in turn, some images of each in a row, each image once before any comes again.

    Classes come in a fresh order in every round over all of them, and the images of a class in a
    fresh order whenever all of them have come. An epoch may end within a round.

    Source: the released code of Kang et al., arXiv 1910.09217.

    Args:
        labels: See :class:`TrainingSampler`.
        seed: See there.
        length: See there; default: the images of the largest class, for each class.
        in_a_row: Images of a class in a row.

    Raises:
        UserError: ``in_a_row`` is not a whole number above 0.
    """

    def __init__(
        self, labels: Labels, seed: int, length: int | None = None, in_a_row: int = 4
    ) -> None:
        classes, ranks, counts = np.unique(labels, return_inverse=True, return_counts=True)
        super().__init__(labels, seed, length or len(classes) * int(counts.max()))
        if not isinstance(in_a_row, int) or in_a_row < 1:
            raise UserError(f"in_a_row is {in_a_row}; it must be a whole number above 0.")
        self.in_a_row = in_a_row
        self.by_class = ImagesByClass(torch.from_numpy(ranks), len(classes))

    @override
    def order(self, generator: torch.Generator) -> Tensor:
        counts, starts = self.by_class.counts, self.by_class.starts
        classes = len(counts)
        rounds = -(-self.length // (self.in_a_row * classes))
        turns = [torch.randperm(classes, generator=generator) for _ in range(rounds)]
        each = rounds * self.in_a_row  # images that a class gives
        rows = torch.empty(classes, each, dtype=torch.long)
        for c, (count, start) in enumerate(zip(counts.tolist(), starts.tolist(), strict=True)):
            cycles = [torch.randperm(count, generator=generator) for _ in range(-(-each // count))]
            rows[c] = self.by_class.rows[start + torch.cat(cycles)[:each]]
        rows = rows.view(classes, rounds, self.in_a_row)
        order = torch.cat([rows[turn, k] for k, turn in enumerate(turns)])
        return order.flatten()[: self.length]


class SideBySide(TrainingSampler):
    """Several streams, each with a sampler of its own; a step takes some rows of each.

    Args:
        samplers: One for each stream; their orders are drawn one after another.
        sizes: Rows of each stream in a step, all ranks together.
        seed: Seed of the run.
    """

    def __init__(
        self, samplers: Sequence[TrainingSampler], sizes: Sequence[int], seed: int
    ) -> None:
        labels = np.concatenate([sampler.labels for sampler in samplers])
        super().__init__(labels, seed, sum(sampler.total_size for sampler in samplers))
        self.samplers, self.sizes = samplers, sizes

    @override
    def order(self, generator: torch.Generator) -> Tensor:
        streams, start = [], 0
        for sampler, size in zip(self.samplers, self.sizes, strict=True):
            order = sampler.order(generator) + start
            whole = torch.arange(sampler.total_size) % len(order)  # so that ranks share each step
            streams.append(torch.split(order[whole], size))
            start += len(sampler.labels)
        return torch.cat([rows for step in zip(*streams, strict=True) for rows in step])


class EvaluationSampler(DistributedSampler[int]):
    """Each image on exactly one rank, in order, without the padding that counts images twice."""

    def __init__(self, dataset: Dataset[object]) -> None:
        replicas, rank = _world()
        super().__init__(dataset, replicas, rank, shuffle=False)
        self.num_samples = len(range(rank, len(dataset), replicas))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        yield from range(self.rank, len(self.dataset), self.num_replicas)  # type: ignore[arg-type]


class EvaluationBatches(EvaluationSampler):
    """The same in batches, equally many on each rank: the last one may be empty on some.

    A network under DDP communicates with the other ranks whenever it is called, so all ranks must
    call it equally often, even one without images.
    """

    def __init__(self, dataset: Dataset[object], batch_size: int) -> None:
        super().__init__(dataset)
        self.batch_size = batch_size
        most = -(-len(dataset) // self.num_replicas)  # type: ignore[arg-type]
        self.num_samples = -(-most // batch_size)

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        rows = list(super().__iter__())
        for batch in range(self.num_samples):
            yield rows[batch * self.batch_size : (batch + 1) * self.batch_size]


SAMPLERS: dict[str, type[TrainingSampler] | str] = {
    "shuffled": ShuffledSampler,
    "class_aware": ClassAwareSampler,
    "class_balanced": ClassBalancedSampler,
    "progressive": ProgressiveSampler,
    "repeated": RepeatedSampler,
    "reversed": ReversedSampler,
    "square_root": SquareRootSampler,
    "uniform": UniformSampler,
}
"""Samplers of training images, by their names in a config."""
