"""How long jobs take, measured by other seeds, by their own epochs, or by a few timed steps."""

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
from ltbench.bench.run.suite import Job, Plan, Row, Suite, with_needs
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
    """Return the seconds of whole jobs, where something is known; ``probed`` is by recipe."""
    measured: dict[str, list[float]] = {}
    for key, state in states.items():
        if state.status == "done" and state.notes and state.notes.get("seconds"):
            measured.setdefault(plan.jobs[key].recipe, []).append(float(state.notes["seconds"]))
    by_recipe = (probed or {}) | {recipe: sum(s) / len(s) for recipe, s in measured.items()}
    seconds = {}
    for key, job in plan.jobs.items():
        epochs, record = jobs.epochs(states[key]), states[key].record or {}
        if epochs and epochs[0] and record.get("wall_seconds"):
            seconds[key] = record["wall_seconds"] / epochs[0] * epochs[1]
        elif job.recipe in by_recipe:
            seconds[key] = by_recipe[job.recipe]
    return seconds


def left(plan: Plan, states: Mapping[str, State], whole: Seconds) -> Seconds:
    """Return the seconds that unfinished jobs still need, from those of whole jobs or the mean."""
    mean = sum(whole.values()) / len(whole) if whole else 0.0
    seconds = {}
    for key, state in states.items():
        if state.status in ("done", "failed", "blocked"):
            continue
        epochs = jobs.epochs(state)
        share = 1 - epochs[0] / epochs[1] if epochs else 1.0
        seconds[key] = whole.get(key, mean) * share
    return seconds


def makespan(plan: Plan, remaining: Seconds, slots: int) -> float:
    """Return the seconds until all jobs are done, ``slots`` at a time, stages in order."""
    ended: Seconds = {}
    free = [0.0] * max(1, min(slots, len(remaining)))
    for key, seconds in remaining.items():
        ready = max((ended.get(need, 0.0) for need in plan.jobs[key].needs), default=0.0)
        ended[key] = max(heapq.heappop(free), ready) + seconds
        heapq.heappush(free, ended[key])
    return max(ended.values(), default=0.0)


def probe(
    suite: Suite, plan: Plan, keys: set[str], store: Store, launcher: Launcher
) -> tuple[Seconds, dict[str, str]]:
    """Time a few steps of the recipes of some jobs, stages in order; the store keeps the timings.

    Returns:
        Recipe -> estimated seconds of the whole job; and name of a job that failed -> why.
    """
    path = store.folder / ".timings.json"
    timings = {k: v for k, v in read_json(path).items() if isinstance(v, int | float)}
    keys = {key for key in keys if plan.jobs[key].recipe not in timings}
    if not keys:
        return timings, {}
    store.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="timing-", dir=store.folder) as folder:  # on the jobs' own disk
        measured, failed = _probe(suite, plan, keys, Store(Path(folder)), launcher)
    timings |= measured
    write_json(path, timings)
    return timings, failed


def _probe(
    suite: Suite, plan: Plan, keys: set[str], store: Store, launcher: Launcher
) -> tuple[Seconds, dict[str, str]]:
    seed = next(iter(next(iter(plan.rows.values()))))
    short = suites.plan(_shortened(suite), [seed])
    short_keys = {
        key: short_key
        for row, stages in plan.rows.items()
        for key, short_key in zip(stages[seed], short.rows[row][seed], strict=True)
    }
    recipes = {plan.jobs[key].recipe for key in keys}
    used = {short_keys[key] for key in short_keys if plan.jobs[key].recipe in recipes}
    short = replace(short, jobs=with_needs(used, short.jobs))
    states = Runner(short, store, launcher).run()
    seconds, failed = {}, {}
    for key, short_key in short_keys.items():
        state, job = states.get(short_key), plan.jobs[key]
        if state and state.status == "failed":
            failed[short.jobs[short_key].name] = state.cause or "unknown cause"
        if state and state.status == "done" and state.record:
            training = _extrapolated(job, state.record)
            if training is not None:
                around = float((state.notes or {})["seconds"]) - state.record["wall_seconds"]
                seconds[job.recipe] = around + training
    return seconds, failed


def _shortened(suite: Suite) -> Suite:
    def short(row: Row) -> Row:
        stages = {
            name: replace(stage, overrides={**stage.overrides, **_SHORT})
            for name, stage in row.stages.items()
        }
        return replace(row, stages=stages)

    return replace(suite, rows={name: short(row) for name, row in suite.rows.items()})


def _extrapolated(job: Job, record: Mapping[str, Any]) -> float | None:
    """Return the seconds of a whole training, from the record of a short one."""
    settings = suites.settings(Path(job.config), job.overrides)
    batches = math.ceil(record["data"]["images"]["train"] / record["batch_size"])
    batches = settings.get("data.steps_per_epoch") or record.get("batches_per_epoch") or batches
    limit = settings.get("trainer.limit_train_batches")
    if isinstance(limit, int):
        batches = min(batches, limit)
    total = settings.get("trainer.max_epochs", -1) * batches
    done = min(BATCHES, batches)
    return record["wall_seconds"] / done * total if total > 0 else None
