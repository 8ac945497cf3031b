"""Jobs on Slurm, through submitit: each is one Slurm job, requeued when it is preempted."""

import importlib
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from ltbench.bench.run import jobs
from ltbench.bench.run.launchers import Handle, Launcher
from ltbench.errors import UserError

GRACE = 60.0  # seconds that a process has to end; Slurm gives 90 before it takes the node
TIMEOUTS = 1000  # that a job may run into its time limit; each time it goes on


class Work:
    """What runs on the node: a job's process, which ends when Slurm wants the node back."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.folder, self.words = folder, words
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the process and return its exit code."""
        self.process = jobs.start(self.folder, self.words, {})
        if self.process is None:  # another one is running it, or has run it
            return 0
        code = self.process.wait()
        if code == 128 + signal.SIGTERM:  # Slurm takes the node and has told all processes:
            time.sleep(GRACE)  # it will end this one too, or call its checkpoint
        jobs.ended(self.folder, code)
        return code

    def checkpoint(self) -> Any:  # noqa: ANN401 - submitit has no types
        """End the process and hand the same work to submitit: it goes on from its checkpoint.

        This signal handler interrupts :meth:`__call__`, which waits and holds a lock of
        ``subprocess``: waiting here in the same way would never end.
        """
        if self.process is not None:
            self.process.terminate()
            end = time.monotonic() + GRACE
            while jobs.is_locked(self.folder) and time.monotonic() < end:
                time.sleep(0.1)
            jobs.ended(self.folder, None)
        return _submitit().helpers.DelayedSubmission(Work(self.folder, self.words))


class Slurm(Launcher):
    """A cluster.

    Args:
        folder: Where submitit keeps its own files; all nodes must see it.
        jobs: Jobs that are queued or running at a time.
        parameters: Of submitit's executor, for example ``timeout_min``, ``gpus_per_node`` or
            ``slurm_partition``; ``cluster`` is ``slurm``, or ``local`` to try it without one.

    Raises:
        UserError: Slurm or submitit is missing, or a parameter is unknown.
    """

    threads = 1

    def __init__(self, folder: Path, jobs: int | None, parameters: Mapping[str, Any]) -> None:
        self.slots = jobs or 1000
        settings = {"timeout_min": 24 * 60, "cluster": "slurm", **parameters}
        try:
            self._executor = _submitit().AutoExecutor(
                folder / "submitit",
                cluster=settings.pop("cluster"),
                slurm_max_num_timeout=TIMEOUTS,
                local_max_num_timeout=TIMEOUTS,
            )
            self._executor.update_parameters(**settings)
        except (RuntimeError, NameError, ValueError, TypeError) as error:
            raise UserError(f"--launcher slurm: {str(error).splitlines()[0]}") from error
        self._handles: list[SlurmHandle] = []

    @override
    def has_room(self) -> bool:
        self._handles = [handle for handle in self._handles if handle.poll() is None]
        return len(self._handles) < self.slots

    @override
    def start(self, folder: Path, words: list[str]) -> "SlurmHandle | None":
        if jobs.is_locked(folder):
            return None
        submitted = self._executor.submit(Work(folder, words))
        jobs.note(folder, queued=submitted.job_id, returncode=None)
        self._handles.append(SlurmHandle(folder, submitted))
        return self._handles[-1]


class SlurmHandle(Handle):
    """A job that was queued."""

    def __init__(self, folder: Path, submitted: Any) -> None:  # noqa: ANN401
        self._folder, self._submitted = folder, submitted
        self._code: int | None = None

    @override
    def poll(self) -> int | None:
        if self._code is None and self._submitted.done():
            error = self._submitted.exception()
            self._code = 1 if error else int(self._submitted.result())
            if error:  # the node died, or the job was cancelled, so nothing was noted
                reason = str(error).strip().splitlines()[-1]
                jobs.note(self._folder, returncode=1, queued=None, cause=f"Slurm: {reason}")
        return self._code

    @override
    def stop(self) -> None:
        self._submitted.cancel()


def _submitit() -> Any:  # noqa: ANN401 - submitit has no types
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise UserError("--launcher slurm needs submitit: pip install 'ltbench[slurm]'.") from error
