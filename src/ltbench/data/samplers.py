"""Which images a rank sees, as a function of (seed, epoch, rank): nothing else is remembered.

Both samplers subclass torch's ``DistributedSampler`` so that Lightning leaves them alone and tells
them the epoch.
"""

from collections.abc import Iterator, Sized

import torch
import torch.distributed as dist
from torch.utils.data import Dataset, DistributedSampler

from ltbench import seeding


def _world() -> tuple[int, int]:
    """Return (number of ranks, this rank)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


class ShuffledSampler(DistributedSampler[int]):
    """A fresh permutation each epoch, cut into equal shards, one a rank.

    When the ranks do not divide the images, the permutation's start is repeated so that all ranks
    take the same number of steps (as torch does); a single rank sees every image exactly once.
    """

    def __init__(self, dataset: Sized, seed: int) -> None:
        """Shard ``dataset`` over the ranks of the default process group, if there is one."""
        replicas, rank = _world()
        super().__init__(dataset, replicas, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's indices for the current epoch."""
        order = torch.randperm(
            len(self.dataset),  # type: ignore[arg-type]
            generator=seeding.generator("cpu", self.seed, "shuffle", self.epoch),
        )
        repeated = order.repeat(-(-self.total_size // len(order)))[: self.total_size]
        yield from repeated[self.rank :: self.num_replicas].tolist()


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
