"""How long jobs take, as measured: by other seeds, by their own epochs, or by a few timed steps."""

import heapq
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ltbench.bench.run import jobs
from ltbench.bench.run import suite as suites
from ltbench.bench.run.jobs import State, Store
from ltbench.bench.run.launchers import Launcher
from ltbench.bench.run.runner import Runner
from ltbench.bench.run.suite import Job, Plan, Suite
from ltbench.records.files import read_json, write_json

BATCHES = 16  # of a timed run
_SHORT = {
    "trainer.max_epochs": 1,
    "trainer.limit_train_batches": BATCHES,
    "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 1,
}

Seconds = dict[str, float]
"""Key of a job -> seconds."""


def totals(plan: Plan, states: Mapping[str, State], probed: Seconds | None = None) -> Seconds:
    """Return how long whole jobs take, of those about which something is known.

    Args:
        plan: The jobs.
        states: Where they stand.
        probed: Recipe -> seconds, from :func:`probe`.
    """
    measured: dict[str, list[float]] = {}
    for key, state in states.items():
        if state.status == "done" and state.notes and state.notes.get("seconds"):
            measured.setdefault(plan.jobs[key].recipe, []).append(float(state.notes["seconds"]))
    known = (probed or {}) | {recipe: sum(s) / len(s) for recipe, s in measured.items()}
    found = {}
    for key, job in plan.jobs.items():
        epochs, record = jobs.epochs(states[key]), states[key].record or {}
        if epochs and epochs[0] and record.get("wall_seconds"):
            found[key] = record["wall_seconds"] / epochs[0] * epochs[1]
        elif job.recipe in known:
            found[key] = known[job.recipe]
    return found


def left(plan: Plan, states: Mapping[str, State], whole: Seconds) -> Seconds:
    """Return the seconds that each unfinished job still needs; unknown ones get the mean.

    Args:
        plan: The jobs.
        states: Where they stand.
        whole: What :func:`totals` returned.
    """
    mean = sum(whole.values()) / len(whole) if whole else 0.0
    found = {}
    for key, state in states.items():
        if state.status in ("done", "failed", "blocked"):
            continue
        epochs = jobs.epochs(state)
        share = 1 - epochs[0] / epochs[1] if epochs else 1.0
        found[key] = whole.get(key, mean) * share
    return found


def makespan(plan: Plan, remaining: Seconds, slots: int) -> float:
    """Return the seconds until all is done, with ``slots`` jobs at a time, stages in order."""
    ended: Seconds = {}
    free = [0.0] * max(1, min(slots, len(remaining)))
    for key, seconds in remaining.items():
        ready = max((ended.get(need, 0.0) for need in plan.jobs[key].needs), default=0.0)
        ended[key] = max(heapq.heappop(free), ready) + seconds
        heapq.heappush(free, ended[key])
    return max(ended.values(), default=0.0)


def probe(
    suite: Suite, plan: Plan, wanted: set[str], store: Store, launcher: Launcher
) -> tuple[Seconds, dict[str, str]]:
    """Time a few steps of each recipe, in the order of their stages; each is timed once.

    Args:
        suite: The suite of ``plan``.
        plan: Its jobs.
        wanted: Keys of the jobs to time.
        store: The suite's; what was found is kept there, in ``.timings.json``.
        launcher: What runs them.

    Returns:
        Recipe -> estimated seconds of the whole job; and name of a job that failed -> why.
    """
    path = store.folder / ".timings.json"
    known = {k: v for k, v in read_json(path).items() if isinstance(v, int | float)}
    wanted = {key for key in wanted if plan.jobs[key].recipe not in known}
    if not wanted:
        return known, {}
    store.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="timing-", dir=store.folder) as folder:  # on the jobs' own disk
        found, failed = _probe(suite, plan, wanted, Store(Path(folder)), launcher)
    known |= found
    write_json(path, known)
    return known, failed


def _probe(
    suite: Suite, plan: Plan, wanted: set[str], store: Store, launcher: Launcher
) -> tuple[Seconds, dict[str, str]]:
    seed = next(iter(next(iter(plan.rows.values()))))
    short = suites.plan(_shortened(suite), [seed])
    pairs = {
        ours: theirs
        for row, of_row in plan.rows.items()
        for ours, theirs in zip(of_row[seed], short.rows[row][seed], strict=True)
    }
    recipes = {plan.jobs[key].recipe for key in wanted}
    needed = _with_needs({pairs[k] for k in pairs if plan.jobs[k].recipe in recipes}, short)
    short = replace(short, jobs={key: job for key, job in short.jobs.items() if key in needed})
    states = Runner(short, store, launcher).run()
    found, failed = {}, {}
    for ours, theirs in pairs.items():
        state = states.get(theirs)
        if state and state.status == "failed":
            failed[short.jobs[theirs].name] = state.cause or "its cause is unknown"
        if state and state.status == "done" and state.record:
            seconds = _extrapolated(plan.jobs[ours], state.record)
            if seconds is not None:
                around = float((state.notes or {})["seconds"]) - state.record["wall_seconds"]
                found[plan.jobs[ours].recipe] = around + seconds
    return found, failed


def _shortened(suite: Suite) -> Suite:
    rows = {
        name: replace(
            row,
            stages={
                key: replace(stage, overrides={**stage.overrides, **_SHORT})
                for key, stage in row.stages.items()
            },
        )
        for name, row in suite.rows.items()
    }
    return replace(suite, rows=rows)


def _with_needs(keys: set[str], plan: Plan) -> set[str]:
    found: set[str] = set()
    pending = list(keys)
    while pending:
        key = pending.pop()
        if key not in found:
            found.add(key)
            pending.extend(plan.jobs[key].needs)
    return found


def _extrapolated(job: Job, record: Mapping[str, Any]) -> float | None:
    """Return the seconds of training that follow from a short run's record."""
    settings = suites.settings(Path(job.config), job.overrides)
    batches = math.ceil(record["data"]["images"]["train"] / record["batch_size"])
    batches = settings.get("data.steps_per_epoch") or record.get("batches_per_epoch") or batches
    limit = settings.get("trainer.limit_train_batches")
    if isinstance(limit, int):
        batches = min(batches, limit)
    total = settings.get("trainer.max_epochs", -1) * batches
    if settings.get("trainer.max_steps", -1) > 0:
        total = settings["trainer.max_steps"]
    done = min(BATCHES, batches)
    return record["wall_seconds"] / done * total if total > 0 else None
