"""Where jobs run: on this machine, whose cores and GPUs they share, or on Slurm."""

import os
import subprocess
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from ltbench.bench.run import jobs
from ltbench.errors import UserError
from ltbench.runs import gpus


class Handle(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """Return the exit code, which is then also in the job's notes; None while it runs."""

    def stop(self) -> None:
        """Ask it to end; it will go on from its last checkpoint when it is started again."""


class Launcher(Protocol):
    """What starts jobs: at most ``slots`` at a time, with ``threads`` threads each."""

    slots: int
    threads: int

    def start(self, folder: Path, words: list[str]) -> Handle | None:
        """Start the job of a folder; None if another process is running it, or has run it."""

    def has_room(self) -> bool:
        """Say whether another job can start now."""


# Makes glibc ask for large memory pages: training on CPUs is some percent faster with them.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Local(Launcher):
    """This machine: one job per GPU, or slice of one, or one per core if there are no GPUs.

    Args:
        jobs: Jobs at a time; default: ``pack`` per GPU, else one per core.
        pack: Jobs that share a GPU; each is a process of its own and computes what it would alone.

    Raises:
        UserError: There is no GPU to share, nobody knows whether there is one, or
            ``OMP_NUM_THREADS``, the limit of the threads of a job, is not a number.
    """

    def __init__(self, jobs: int | None = None, pack: int | None = None) -> None:
        ids, cores = gpus.visible(), len(os.sched_getaffinity(0))
        if pack and not ids:
            raise UserError("--pack lets jobs share a GPU, but there is none: use --jobs.")
        self.slots = jobs or len(ids) * (pack or 1) or cores
        self.threads = max(1, cores // self.slots)
        if limit := os.environ.get("OMP_NUM_THREADS", ""):
            if not limit.isdecimal() or not int(limit):
                raise UserError(f"OMP_NUM_THREADS is '{limit}'; it must be a number above 0.")
            self.threads = min(self.threads, int(limit))
        self._free = [ids[slot % len(ids)] if ids else "" for slot in range(self.slots)]

    @override
    def has_room(self) -> bool:
        return bool(self._free)

    @override
    def start(self, folder: Path, words: list[str]) -> "LocalHandle | None":
        gpu = self._free[0]
        environment = {"OMP_NUM_THREADS": str(self.threads)}
        if gpu:
            environment[gpus.VISIBLE] = gpu
        elif "GLIBC_TUNABLES" not in os.environ:
            environment |= LARGE_PAGES
        process = jobs.start(folder, words, environment)
        return LocalHandle(folder, process, self._free, self._free.pop(0)) if process else None


class LocalHandle(Handle):
    """A process of this machine, which gives its slot back when it ends."""

    def __init__(
        self, folder: Path, process: "subprocess.Popen[bytes]", free: list[str], slot: str
    ) -> None:
        self._folder, self._process, self._free = folder, process, free
        self._slot: str | None = slot

    @override
    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None and self._slot is not None:
            self._free.append(self._slot)
            self._slot = None
            jobs.ended(self._folder, code)
        return code

    @override
    def stop(self) -> None:
        self._process.terminate()
