"""Where jobs run: processes of this machine, with its cores and GPUs divided, or Slurm."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ltbench.bench.run import jobs
from ltbench.errors import UserError


class Handle(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """Return the exit code, which is in the job's notes then; None while it runs."""

    def stop(self) -> None:
        """Ask it to end; its next start goes on from its last checkpoint."""


class Launcher(Protocol):
    """What starts jobs: at most ``slots`` at a time, with ``threads`` threads each."""

    slots: int
    threads: int

    def start(self, folder: Path, words: list[str]) -> Handle | None:
        """Start the job of a folder; None where another process runs it, or has run it."""

    def has_room(self) -> bool:
        """Say whether one more job can start now."""


LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Makes glibc ask for large memory pages: training on CPUs is some percent faster with them."""


class Local:
    """This machine: a job a GPU; without GPUs, a job a core.

    Args:
        jobs: Jobs at a time; default: ``pack`` a GPU, else one a core.
        pack: Jobs that share a GPU. Each is a process of its own and computes what it would alone.

    Raises:
        UserError: There is no GPU to share; ``OMP_NUM_THREADS``, which bounds the threads of a
            job, is no number.
    """

    def __init__(self, jobs: int | None = None, pack: int | None = None) -> None:
        gpus, cores = visible_gpus(), len(os.sched_getaffinity(0))
        if pack and not gpus:
            raise UserError("--pack is for jobs that share a GPU, and there is none: use --jobs.")
        self.slots = jobs or len(gpus) * (pack or 1) or cores
        self.threads = max(1, cores // self.slots)
        if given := os.environ.get("OMP_NUM_THREADS", ""):
            if not given.isdecimal() or not int(given):
                raise UserError(f"OMP_NUM_THREADS is '{given}'; it must be a number from 1 on.")
            self.threads = min(self.threads, int(given))
        self._free = [gpus[slot % len(gpus)] if gpus else "" for slot in range(self.slots)]

    def has_room(self) -> bool:
        """Say whether a slot is free."""
        return bool(self._free)

    def start(self, folder: Path, words: list[str]) -> "LocalHandle | None":
        """Start a process on the next free slot."""
        gpu = self._free[0]
        environment = {"OMP_NUM_THREADS": str(self.threads)}
        if gpu:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        elif "GLIBC_TUNABLES" not in os.environ:
            environment |= LARGE_PAGES
        process = jobs.start(folder, words, environment)
        return LocalHandle(folder, process, self._free, self._free.pop(0)) if process else None


class LocalHandle:
    """A process of this machine, which gives its slot back when it ends."""

    def __init__(
        self, folder: Path, process: "subprocess.Popen[bytes]", free: list[str], slot: str
    ) -> None:
        self._folder, self._process, self._free = folder, process, free
        self._slot: str | None = slot

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        code = self._process.poll()
        if code is not None and self._slot is not None:
            self._free.append(self._slot)
            self._slot = None
            jobs.ended(self._folder, code)
        return code

    def stop(self) -> None:
        """Ask the process to end."""
        self._process.terminate()


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the ids of the GPUs that this process may use, without importing torch."""
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.split(",") if gpu.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(n) for n, line in enumerate(filter(None, listed.stdout.splitlines()))]
