"""The file that each worker of a loader reads, in shared memory: if one dies, we can name it."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

MAX_PATH = 1024  # bytes; of a longer path the end is stored
DYING = 5.0  # seconds, at most, until torch hears of the death of a worker
_DEATH = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is )?"
    r"(killed by signal: [^.]+|exited unexpectedly(?: with exit code -?\d+)?)"
)

ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a process to end. A scheduler sends them to a process with all its workers."""

_row: NDArray[np.uint8] | None = None  # of this process, where it is a worker


class Reading:
    """What each worker of a loader reads; its ``worker_init_fn``, which gives a worker its row.

    Args:
        workers: Number of workers.
    """

    _loaders: ClassVar[WeakSet["Reading"]] = WeakSet()

    def __init__(self, workers: int) -> None:
        self.rows = torch.zeros(workers, 8 + MAX_PATH, dtype=torch.uint8)  # process id, path
        self.rows.share_memory_()  # type: ignore[no-untyped-call]
        self._loaders.add(self)

    def __call__(self, worker: int) -> None:
        """Give this process the row of a worker."""
        global _row
        _row = self.rows[worker].numpy()
        _row[:8] = np.array([os.getpid()]).view(np.uint8)
        if sys.platform == "linux":
            threading.Thread(target=_obey, args=[os.getppid()], daemon=True).start()

    @classmethod
    def of(cls, pid: int) -> str:
        """Return the file that a worker opened last, or an empty text."""
        for loader in cls._loaders:
            for row in loader.rows.numpy():
                if row[:8].view(np.int64)[0] == pid:
                    return os.fsdecode(row[8:].tobytes().partition(b"\0")[0])
        return ""


def note(path: os.PathLike[str]) -> None:
    """Note, in a worker, which file it reads now."""
    if _row is not None:
        name = os.fsencode(path)[1 - MAX_PATH :] + b"\0"
        _row[8 : 8 + len(name)] = np.frombuffer(name, np.uint8)


def _obey(parent: int) -> None:
    """End this worker, in which these signals are blocked, once its parent sends one of them."""
    while sys.platform == "linux":
        asked = signal.sigwaitinfo(ASKED)
        if asked.si_pid == parent:
            os._exit(0)


class Loader(DataLoader[Any]):
    """A loader that reports the death of a worker rather than the broken connection.

    Its workers end with their parent, or when it says so; a signal that asks all of them to end is
    the parent's to obey, which would otherwise take them for crashed.

    A process that dies closes its sockets before its parent hears of it. If torch fetches a tensor
    just then, the first error is about the connection.

    Args:
        dataset: What to load.
        num_workers: Number of processes that load; 0: this one.
        options: Other arguments of :class:`torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Dataset[Any], num_workers: int, **options: Any) -> None:  # noqa: ANN401
        reading = Reading(num_workers) if num_workers else None
        super().__init__(dataset, num_workers=num_workers, worker_init_fn=reading, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Not a generator itself: workers start now, not at the first batch.
        if not self.num_workers:
            return super().__iter__()
        blocked = ASKED if sys.platform == "linux" else ()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # which workers inherit
        try:
            batches = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._watched(batches)

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (ConnectionError, EOFError):
                time.sleep(DYING)  # torch raises its own error here, once it hears of a death
                raise
            yield batch


def death(error: BaseException) -> str | None:
    """Say which images workers were reading when they died, if the error is about that."""
    match = _DEATH.search(str(error))
    if match is None:
        return None
    files = [file for pid in match[1].split(",") if (file := Reading.of(int(pid)))]
    where = f"while reading {', '.join(files)}, or just after" if files else "before reading any"
    return (
        f"a worker that loads images died ({match[2]}) {where}. Replace or remove that image; if "
        "memory ran out, lower --data.num_workers."
    )
