"""Run the jobs of a plan in the order of their stages, and survive anything.

The runner has no state of its own: records say what is done, and locks what is running. So it can
be killed and started again, and two of them can share a folder.
"""

import time
from collections.abc import Callable, Mapping

from ltbench.bench.run import jobs
from ltbench.bench.run.jobs import State, Store
from ltbench.bench.run.launchers import Handle, Launcher
from ltbench.bench.run.suite import Job, Plan

POLL = 0.2  # seconds between two looks at the processes
LOOK = 2.0  # seconds between two looks at the folders of jobs that run
GRACE = 120.0  # seconds that a process has to end after it was asked to


class Runner:
    """Run what is not done, or only what has failed and what needs it.

    ``watch`` is called with all states whenever something may have changed.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        launcher: Launcher,
        only_failed: bool = False,
        watch: Callable[[dict[str, State]], None] = lambda states: None,
    ) -> None:
        self.plan, self.store, self.launcher, self.watch = plan, store, launcher, watch
        self.states = store.states(plan)
        self.pending = unfinished(self.states, only_failed)
        self.running: dict[str, Handle] = {}
        self._looked = 0.0

    def run(self) -> dict[str, State]:
        """Run until nothing is left that can run; return the state of every job.

        Raises:
            KeyboardInterrupt: After the running processes were asked to end, and did.
        """
        try:
            for key in self.pending:  # each gets another chance, so none is blocked yet
                if self.states[key].status in ("failed", "blocked"):
                    self.states[key] = State("waiting")
            while self.pending or self.running:
                self._start_what_can()
                self._collect_what_ended()
                if time.monotonic() - self._looked > LOOK:
                    self._look()
                self.watch(self.states)
                time.sleep(POLL)
        finally:
            self._stop()
            self.watch(self.states)
        return self.states

    def _start_what_can(self) -> None:
        for key in list(self.pending):
            job = self.plan.jobs[key]
            upstream = {self.states[need].status for need in job.needs}
            if upstream & {"failed", "blocked"}:
                self.pending.remove(key)
                self.states[key] = State("blocked")
            elif upstream <= {"done"} and self.launcher.has_room():
                self._start(key, job)

    def _start(self, key: str, job: Job) -> None:
        state = self.states[key]
        if state.status == "running" and time.monotonic() - self._looked < LOOK:
            return  # in another runner; the next look shows whether it still is
        folder = self.store.job_folder(job)
        runs = {need: run for need in job.needs if (run := self.states[need].run)}
        handle = self.launcher.start(folder, jobs.command(job, folder, runs))
        state = jobs.read_state(folder)
        self.states[key] = state
        if handle:
            self.running[key] = handle
        if handle or state.status == "done":
            self.pending.remove(key)

    def _collect_what_ended(self) -> None:
        for key, handle in list(self.running.items()):
            code = handle.poll()
            if code is not None:
                del self.running[key]
                folder = self.store.job_folder(self.plan.jobs[key])
                state = jobs.read_state(folder)
                if state.status == "running" or (state.status == "stopped" and code):
                    self.pending.append(key)  # another runner was faster, or it was asked to end
                elif state.status != "done" and code == 0:
                    state = State("failed", state.run, state.record, "it left no finished record")
                self.states[key] = state

    def _look(self) -> None:
        for key in [*self.running, *self.pending]:
            folder = self.store.job_folder(self.plan.jobs[key])
            state = jobs.read_state(folder)
            if state.status == "running" or (state.status == "done" and key in self.pending):
                self.states[key] = state
            if key in self.pending and state.status == "done":
                self.pending.remove(key)
        self._looked = time.monotonic()

    def _stop(self) -> None:
        """Ask what runs to end, and wait; that does not make it a failure."""
        for handle in self.running.values():
            handle.stop()
        end = time.monotonic() + GRACE
        while any(handle.poll() is None for handle in self.running.values()):
            if time.monotonic() > end:
                break
            time.sleep(POLL)
        for key in list(self.running):
            del self.running[key]
            folder = self.store.job_folder(self.plan.jobs[key])
            jobs.note(folder, returncode=None)
            self.states[key] = jobs.read_state(folder)


def unfinished(states: Mapping[str, State], only_failed: bool) -> list[str]:
    """Return the jobs that a runner has to run: all that are not done, or those that failed."""
    statuses = {"failed", "blocked"} if only_failed else set(jobs.STATES) - {"done"}
    return [key for key, state in states.items() if state.status in statuses]
