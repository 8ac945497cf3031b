"""What each worker of a loader reads, in shared memory: one that dies is told by its image."""

import os
import re
from typing import ClassVar
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray

LONGEST = 1024  # bytes of a path that are kept: its end
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
        """Make room: a process id and a path for each worker."""
        self.rows = torch.zeros(workers, 8 + LONGEST, dtype=torch.uint8)
        self.rows.share_memory_()  # type: ignore[no-untyped-call]
        self._loaders.add(self)

    def __call__(self, worker: int) -> None:
        """Be this worker."""
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
