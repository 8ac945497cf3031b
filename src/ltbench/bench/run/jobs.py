"""A job's folder: its log, its lock, its run; what state it is in; and the process that runs it.

``<store>/<name>-seed<n>-<key>/`` holds ``job.json``, ``log.txt``, ``lock`` and the run folder. The
lock is held by the training process itself and ends with it, however it ends.
"""

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ltbench import records, untrusted
from ltbench.bench.run.suite import Job, Plan, substitute
from ltbench.errors import UserError
from ltbench.records import schema
from ltbench.records.files import read_json
from ltbench.records.folder import RECORD

ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a job to end; it is not a failure if it does."""

STATES = ("done", "running", "queued", "waiting", "stopped", "failed", "blocked")
"""``stopped``: interrupted, and can go on; ``blocked``: a stage that it needs has failed."""


@dataclass(frozen=True)
class State:
    """The state of a job."""

    status: str  # one of STATES
    run: Path | None = None  # the run folder, once there is one
    record: Mapping[str, Any] | None = None  # as it stands
    cause: str | None = None  # why it failed, or what is wrong with its record
    notes: Mapping[str, Any] | None = None  # of the runner: start, exit code, seconds so far


class Store:
    """The folder in which suites keep their jobs and plans; a job belongs to all suites."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._folders: dict[str, Path] = {}

    def job_folder(self, job: Job) -> Path:
        """Return the folder of a job, which may have been made under another name."""
        if job.key not in self._folders:
            self._folders |= {
                path.name.rpartition("-")[2]: path for path in self.folder.glob("*-seed*-*")
            }
        named = f"{job.name}-seed{job.seed}-{job.key}"
        return self._folders.setdefault(job.key, self.folder / named)

    def save(self, plan: Plan) -> None:
        """Save what a suite was last asked to run."""
        records.write_json(self.folder / f"{plan.suite}.json", asdict(plan))

    def load(self, suite: str) -> Plan:
        """Read what a suite was last asked to run.

        Raises:
            UserError: It was never run here, or the file is damaged.
        """
        path = self.folder / f"{suite}.json"
        if not path.exists():
            raise UserError(
                f"suite {suite} was never run in {self.folder}: try ltbench bench run {suite}."
            )
        try:
            content = untrusted.read_json(path)
            jobs = {key: Job(**job) for key, job in content["jobs"].items()}
            for name in (
                content["suite"],
                *(part for j in jobs.values() for part in (j.name, j.key)),
            ):
                records.plain_name(name, f"a name in {path}")
            rows = {
                name: {int(seed): keys for seed, keys in seeds.items()}
                for name, seeds in content["rows"].items()
            }
            baselines, starts = content.get("baselines", {}), content.get("starts", {})
            plan = Plan(suite, jobs, rows, content["families"], baselines, starts)
            _check(plan)
            return plan
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged: ltbench bench run {suite} rewrites it and keeps finished jobs."
            ) from error

    def states(self, plan: Plan) -> dict[str, State]:
        """Read the state of every job of a plan."""
        states: dict[str, State] = {}
        for key, job in plan.jobs.items():
            state = read_state(self.job_folder(job))
            upstream = [states[need].status for need in job.needs]
            if state.status in ("waiting", "stopped") and {"failed", "blocked"} & set(upstream):
                state = State("blocked", state.run, state.record, notes=state.notes)
            states[key] = state
        return states


def _check(plan: Plan) -> None:
    """Refuse a plan whose jobs lead out of its folder, or are not there.

    Raises:
        ValueError: It was not written by :meth:`Store.save`.
        KeyError: A job is missing.
    """
    known: set[str] = set()
    for key, job in plan.jobs.items():
        named = f"{job.name}-seed{job.seed}-{job.key}"
        if key != job.key or Path(named).name != named or not known.issuperset(job.needs):
            raise ValueError(named)
        known.add(key)
    for keys in (keys for seeds in plan.rows.values() for keys in seeds.values()):
        if not keys or not known.issuperset(keys):
            raise KeyError(*keys)


def read_notes(folder: Path) -> dict[str, Any]:
    """Return the notes of a job, but for those that are not what :func:`note` writes."""
    notes = read_json(folder / "job.json")
    fits = {"seconds": schema.seconds, "began": schema.seconds, "returncode": schema.number}
    return {name: value for name, value in notes.items() if fits.get(name, bool)(value)}


def read_state(folder: Path) -> State:
    """Return the state of the job in a folder; nothing is written."""
    notes = read_notes(folder)
    run, record, damage = _run_of(folder)
    if record and record["status"] == "done":
        return State("done", run, record, notes=notes)
    if is_locked(folder):
        return State("running", run, record, damage, notes)
    if damage and not record:
        return State("failed", run, record, damage, notes)
    if notes.get("returncode"):
        return State("failed", run, record, _cause(folder, record, notes), notes)
    if notes.get("queued"):
        return State("queued", run, record, damage, notes)
    return State("stopped" if notes else "waiting", run, record, damage, notes)


def _run_of(folder: Path) -> tuple[Path | None, dict[str, Any] | None, str | None]:
    """Return the run in a job's folder (a finished one, else the latest), and any damage."""
    runs, damage = [], None
    for path in folder.glob(f"*/{RECORD}"):
        try:
            record = records.read_record(path)
            runs.append((record["status"] == "done", path.stat().st_mtime, path.parent, record))
        except UserError as error:
            problem = str(error).removesuffix(".")
            damage = f"{problem}. Repair or remove that file; until then the job cannot go on."
        except OSError:  # removed in the meantime
            continue
    if not runs:
        return None, None, damage
    _, _, run, record = max(runs, key=lambda item: item[:2])
    return run, record, damage


def _cause(folder: Path, record: dict[str, Any] | None, notes: Mapping[str, Any]) -> str:
    if record and record.get("cause"):
        return str(record["cause"])
    if notes.get("cause"):
        return str(notes["cause"])
    code = int(notes["returncode"])
    if code < 0:
        names = {number.value: f" ({number.name})" for number in signal.Signals}
        return f"killed by signal {-code}{names.get(-code, '')}"
    output = _tail(folder / "log.txt").rpartition("\n$ ")[2].partition("\n")[2]
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    error = next((line for line in reversed(lines) if line.startswith("error: ")), None)
    return (error or (lines or [f"exit code {code}"])[-1]).removeprefix("error: ")


def _tail(path: Path, size: int = 4000) -> str:
    try:
        with untrusted.open_file(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def note(folder: Path, **notes: Any) -> None:  # noqa: ANN401 - what JSON can hold
    """Add to the notes of a job."""
    records.write_json(folder / "job.json", {**read_json(folder / "job.json"), **notes})


# A stranger's folder may hold a link or a pipe in a file's place: not followed, nor waited for.
_OURS_ALONE = os.O_NOFOLLOW | os.O_NONBLOCK


def is_locked(folder: Path) -> bool:
    """Say whether a process holds the lock of a job."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | _OURS_ALONE)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def command(job: Job, folder: Path, runs: Mapping[str, Path]) -> list[str]:
    """Return the command line of a job; ``runs`` are the run folders of the jobs that it needs."""
    overrides = substitute(job.overrides, {key: str(run) for key, run in runs.items()})
    return [
        *(sys.executable, "-m", "ltbench", "fit", "--config", job.config),
        *(f"--{name}={_argument(value)}" for name, value in overrides.items()),
        *(f"--seed_everything={job.seed}", f"--name={job.name}"),
        *(f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"),
    ]


def _argument(value: Any) -> str:  # noqa: ANN401 - what YAML can hold
    return value if isinstance(value, str) else json.dumps(value)


def start(
    folder: Path, words: list[str], environment: Mapping[str, str]
) -> "subprocess.Popen[bytes] | None":
    """Start a job's process, which holds the lock of its folder until it ends.

    Returns:
        The process; None if another one is running the job, or has run it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | _OURS_ALONE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (record := _run_of(folder)[1]) and record["status"] == "done":
            return None
        seconds = read_notes(folder).get("seconds", 0.0)
        appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _OURS_ALONE
        with os.fdopen(os.open(folder / "log.txt", appending, 0o666), "ab") as log:
            log.write(f"\n$ {' '.join(words)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                pass_fds=[lock],
                preexec_fn=_end_with_parent,
            )
        note(
            folder,
            command=words,
            host=os.uname().nodename,
            pid=process.pid,
            began=time.time(),
            seconds=seconds,
            **dict.fromkeys(("returncode", "queued", "cause")),
        )
        return process
    except BlockingIOError:
        return None
    finally:
        os.close(lock)


def _end_with_parent() -> None:
    """Ask Linux to end this process with its parent: a killed runner leaves none behind."""
    if sys.platform == "linux":
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


_LIBC = ctypes.CDLL(None)  # opened before the fork: nothing may wait for a lock after it


def ended(folder: Path, returncode: int | None) -> None:
    """Note the exit code of a job's process (None: it was asked to end) and its seconds."""
    notes = read_notes(folder)
    if returncode in {code for number in ASKED for code in (128 + number, -number)}:
        returncode = None
    began = float(notes.get("began") or 0)
    seconds = float(notes.get("seconds") or 0) + max(0, time.time() - began)  # clocks are set back
    note(folder, returncode=returncode, seconds=round(seconds, 2))


def epochs(state: State) -> tuple[int, int] | None:
    """Return the number of epochs done and of all epochs, if the record has them."""
    try:
        record = state.record or {}
        done, total = int(record["epochs"]), int(record["config"]["trainer"]["max_epochs"])
    except (KeyError, TypeError, ValueError):  # not begun, counted in steps, or a foreign record
        return None
    return (done, total) if total > 0 else None
