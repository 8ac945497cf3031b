"""Copy what a leaderboard needs of a suite's finished jobs, to publish it, without weights."""

import errno
import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ltbench import untrusted
from ltbench.bench.run.jobs import Store
from ltbench.bench.run.suite import Plan
from ltbench.records import RunFolder, clear_parts, write_text, write_whole
from ltbench.records.folder import RECORD

FILES = (  # of a run folder beside its record; not checkpoints, nor TensorBoard's files
    *("config.yaml", "metrics.csv", "corrected_*.json", "*.npz", "*.png"),
    *("samples/last.png", "analysis/*"),
)
TEXT = (".json", ".yaml", ".csv")


def export(plan: Plan, store: Store, folder: Path) -> int:
    """Copy records, configs, curves, predictions and figures of finished jobs.

    The copy is a folder of jobs as ``ltbench bench run`` keeps them, so that ``ltbench leaderboard
    SUITE --folder FOLDER`` reads it anywhere. Its paths reveal nothing of this machine: those under
    the working folder become relative, and of others the last part is kept. What was exported there
    before stays, except rows and seeds of this plan.

    Returns:
        The number of jobs that were copied.

    Raises:
        UserError: The plan of an earlier export is damaged.
    """
    states, copies, private = store.states(plan), Store(folder), _private(plan, store)
    done = {key: state for key, state in states.items() if state.status == "done" and state.run}
    for key, state in done.items():
        run = state.run or Path()
        target = copies.job_folder(plan.jobs[key]) / run.name
        clear_parts(target.parent)
        # The record comes last: until then, what a killed export leaves is no run.
        (target / RECORD).unlink(missing_ok=True)
        for path in (
            *(p for pattern in FILES for p in sorted(run.glob(pattern))),
            RunFolder(run).record,
        ):
            try:
                _copy(path, target / path.relative_to(run), run, private)
            except (OSError, UnicodeDecodeError) as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                reason = error.strerror if isinstance(error, OSError) else error
                warnings.warn(f"left out {path}: {reason}", stacklevel=2)
        _write(target.parent / "job.json", {"seconds": (state.notes or {}).get("seconds")}, ())
    if (folder / f"{plan.suite}.json").is_file():
        plan = plan.after(copies.load(plan.suite))
    _write(folder / f"{plan.suite}.json", asdict(plan), private)
    return len(done)


def _private(plan: Plan, store: Store) -> list[str]:
    """Return the beginnings of paths that belong to this machine, longest first."""
    roots = {
        Path(job.overrides["data.root"])
        for job in plan.jobs.values()
        if "data.root" in job.overrides
    }
    folders = {
        Path.cwd(),
        store.folder.absolute().parent,
        *(p.parent for p in roots if p.is_absolute()),
    }
    return sorted((f"{folder}/" for folder in folders), key=len, reverse=True)


def _copy(source: Path, target: Path, run: Path, private: Sequence[str]) -> None:
    """Copy a file of a run, never one that a link in its folder leads to."""
    if source.suffix in TEXT:
        write_text(target, _without(untrusted.read_text(source, below=run), private))
    else:
        with untrusted.open_file(source, below=run) as file:
            write_whole(target, partial(shutil.copyfileobj, file))


def _write(path: Path, content: object, private: Sequence[str]) -> None:
    write_text(path, _without(json.dumps(content, indent=1), private))


def _without(text: str, private: Sequence[str]) -> str:
    for prefix in private:
        text = text.replace(prefix, "")
    return text
