"""What a leaderboard is computed from: finished runs, read from disk and checked one by one.

A record that is damaged, foreign or from a newer ltbench, and predictions that do not fit their
record, are reported as problems; the rest is read all the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ltbench.bench.run.jobs import Store
from ltbench.bench.run.suite import Plan
from ltbench.errors import UserError
from ltbench.metrics.catalogue import is_shown
from ltbench.metrics.counts import Classes
from ltbench.records import Predictions, Record, RunFolder, recipe
from ltbench.records.folder import RECORD
from ltbench.records.schema import number


@dataclass(frozen=True)
class Run:
    """A finished run."""

    record: Record
    folder: Path
    selection: str  # which weights are evaluated: last or best

    @property
    def split(self) -> str:
        """The images that it was measured on: ``test``, or ``val`` where there is no test set."""
        return "test" if "test" in self.record["metrics"][self.selection] else "val"

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Metric -> value, on :attr:`split`."""
        return self.record["metrics"][self.selection].get(self.split, {})  # type: ignore[no-any-return]

    @cached_property
    def classes(self) -> Classes:
        """The classes, with their training images."""
        return Classes.of(self.record["data"])

    def predictions(self, split: str | None = None, logits: bool = False) -> Predictions | None:
        """Read the stored predictions, by default for :attr:`split`; None where there are none.

        Raises:
            UserError: They are damaged, or do not fit the record.
        """
        return RunFolder(self.folder).read_predictions(
            self.record, self.selection, split or self.split, logits
        )


@dataclass
class Row:
    """A row of a leaderboard: runs that differ only in their seeds."""

    name: str
    family: str
    runs: list[Run] = field(default_factory=list)
    # the runs that those started from, directly or not, as far as they are available
    earlier: list[Run] = field(default_factory=list)
    baseline: str = ""  # the row that shows what the method adds, if a suite names one
    start: str = ""  # of a head on another row's runs: that row, below which it is shown


@dataclass
class Results:
    """Everything that a leaderboard is computed from."""

    title: str  # name of the suite or folder
    rows: list[Row]
    problems: list[str]  # what could not be used, and why


def of_plan(plan: Plan, store: Store, selection: str = "last") -> Results:
    """Collect the finished runs of a suite; unfinished ones are reported as problems."""
    states = store.states(plan)
    results = Results(plan.suite, [], [])
    runs = {
        key: run
        for key, state in states.items()
        if state.status == "done"
        and state.run
        and (run := _read(state.run, selection, results.problems))
    }
    for name, of_row in plan.rows.items():
        row = Row(
            name,
            plan.families.get(name, ""),
            baseline=plan.baselines.get(name, ""),
            start=plan.starts.get(name, ""),
        )
        for seed, keys in of_row.items():
            last = states[keys[-1]]
            if keys[-1] in runs:
                row.runs.append(runs[keys[-1]])
            elif last.status != "done":
                why = f": {last.cause}" if last.cause else ""
                results.problems.append(f"{name}, seed {seed} is {last.status}{why}")
        if row.runs:
            results.rows.append(row)
    _find_starts(results.rows, runs.values())
    return results


def of_folder(folder: Path, selection: str = "last") -> Results:
    """Collect the finished runs below a folder; those that differ only in their seeds are one row.

    Raises:
        UserError: There is no record below it, or none that can be used.
    """
    paths = sorted(folder.glob(f"**/{RECORD}"))
    if not paths:
        raise UserError(f"no {RECORD} below {folder}: name a folder of runs.")
    problems: list[str] = []
    runs = [run for path in paths if (run := _read(path.parent, selection, problems))]
    if not runs:
        raise UserError(f"none of {len(paths)} records below {folder} can be used: {problems[0]}")
    rows: dict[tuple[str, str], Row] = {}
    for run in sorted(runs, key=lambda run: (run.record["name"], run.record["seed"])):
        key = (run.record["name"], recipe(run.record))
        row = rows.setdefault(key, Row(key[0], str(run.record.get("method", ""))))
        if run.record["seed"] in [other.record["seed"] for other in row.runs]:
            problems.append(f"{run.folder}: seed {run.record['seed']} of {row.name} appears twice")
            continue
        row.runs.append(run)
    names = [name for name, _ in rows]
    for (name, which), row in rows.items():
        if names.count(name) > 1:
            row.name = f"{name} #{which[:4]}"
    _find_starts(rows.values(), runs)
    return Results(folder.name or str(folder), list(rows.values()), problems)


def _read(folder: Path, selection: str, problems: list[str]) -> Run | None:
    try:
        return read(folder, selection)
    except UserError as error:
        problems.append(str(error))
        return None


def _find_starts(rows: Iterable[Row], runs: Iterable[Run]) -> None:
    """Give each row the runs that its own go back to, as far as they are available."""
    by_id = {run.record.get("job_id"): run for run in runs}
    for row in rows:
        earlier: dict[str, Run] = {}
        pending = list(row.runs)
        while pending:
            for start in pending.pop().record.get("lineage") or ():
                name = start.get("job_id")
                if name and name in by_id and name not in earlier:
                    earlier[name] = by_id[name]
                    pending.append(by_id[name])
        row.earlier = list(earlier.values())


def read(folder: Path, selection: str = "last") -> Run:
    """Read a finished run; ``best`` falls back to ``last`` if it has no validation.

    Raises:
        UserError: It is not finished, or its record is damaged or foreign.
    """
    path, record = RunFolder(folder).record, RunFolder(folder).read()
    if record["status"] != "done":
        raise UserError(f"{path}: the run is {record['status']}, not done.")
    weights = selection if selection in record["metrics"] else "last"
    if weights not in record["metrics"]:
        raise UserError(f"{path} has no metrics of the {selection} weights.")
    run = Run(record, folder, weights)
    if not run.metrics:
        raise UserError(f"{path} has no metrics on a test or validation set.")
    if wrong := [name for name, value in run.metrics.items() if not _is_usable(name, value)]:
        raise UserError(f"{path} is not a readable run record: it has no valid '{wrong[0]}'.")
    classes = len(run.classes)
    if not classes or len(run.metrics.get("per_class_recall", run.classes)) != classes:
        raise UserError(f"{path} contradicts itself about the number of classes.")
    return run


def _is_usable(name: str, value: Any) -> bool:  # noqa: ANN401 - whatever a record holds
    """Say whether a metric is a number or null, and recalls are fractions."""
    if name == "per_class_recall":
        return isinstance(value, list) and all(
            each is None or (number(each) and 0 <= each <= 1) for each in value
        )
    return not is_shown(name) or value is None or number(value)
