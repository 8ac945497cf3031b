"""What each worker of a loader reads, in shared memory: one that dies is told by its image."""

import os
import re
import time
from collections.abc import Iterator
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

LONGEST = 1024  # bytes of a path that are kept: its end
DYING = 5.0  # seconds, at the most, from a worker's last open file to its death
_DEATH = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is )?"
    r"(killed by signal: [^.]+|exited unexpectedly(?: with exit code -?\d+)?)"
)

_row: NDArray[np.uint8] | None = None  # of this process, where it is a worker


class Reading:
    """What each worker of a loader reads; as its ``worker_init_fn`` it gives a worker its row.

    Args:
        workers: Number of workers.
    """

    _loaders: ClassVar[WeakSet["Reading"]] = WeakSet()

    def __init__(self, workers: int) -> None:
        self.rows = torch.zeros(workers, 8 + LONGEST, dtype=torch.uint8)
        self.rows.share_memory_()  # type: ignore[no-untyped-call]
        self._loaders.add(self)

    def __call__(self, worker: int) -> None:
        global _row
        _row = self.rows[worker].numpy()
        _row[:8] = np.array([os.getpid()]).view(np.uint8)

    @classmethod
    def of(cls, pid: int) -> str:
        """Return the file that a worker opened last; empty where it has opened none."""
        for loader in cls._loaders:
            for row in loader.rows.numpy():
                if row[:8].view(np.int64)[0] == pid:
                    return os.fsdecode(row[8:].tobytes().partition(b"\0")[0])
        return ""


def note(path: os.PathLike[str]) -> None:
    """Say, in a worker, which file is read from now on."""
    if _row is not None:
        name = os.fsencode(path)[1 - LONGEST :] + b"\0"
        _row[8 : 8 + len(name)] = np.frombuffer(name, np.uint8)


class Loader(DataLoader[Any]):
    """A loader that tells the death of a worker, and not what the death breaks first.

    A process that dies closes its sockets before its parent hears of it. Where torch fetches a
    tensor just then, the error is that of a connection, and torch's own may cut off whoever handles
    the first one.

    Args:
        dataset: What to load.
        num_workers: Number of processes that load; 0: this one.
        options: Any other argument of :class:`torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Dataset[Any], num_workers: int, **options: Any) -> None:  # noqa: ANN401
        reading = Reading(num_workers) if num_workers else None
        super().__init__(dataset, num_workers=num_workers, worker_init_fn=reading, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._told(super().__iter__()) if self.num_workers else super().__iter__()

    def _told(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (ConnectionError, EOFError):
                time.sleep(DYING)  # torch raises its own error in here, once it hears of a death
                raise
            yield batch


def death(error: BaseException) -> str | None:
    """Say which images workers died at, if that is what an error of torch is about."""
    found = _DEATH.search(str(error))
    if found is None:
        return None
    files = [file for pid in found[1].split(",") if (file := Reading.of(int(pid)))]
    where = f"while it read {', '.join(files)}, or just after" if files else "before it read any"
    return (
        f"a worker that loads images died ({found[2]}) {where}. Replace or remove such an image; "
        "where memory ran out, set fewer --data.num_workers."
    )
