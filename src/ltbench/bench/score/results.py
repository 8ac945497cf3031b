"""What a leaderboard is computed from: finished runs, read from disk and checked one by one.

A record that is damaged, from a newer ltbench or somebody else's, and predictions that do not fit
their record, are named as problems; the rest is read all the same.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltbench import records
from ltbench.bench.run.jobs import Store
from ltbench.bench.run.suite import Plan
from ltbench.bench.score import schema
from ltbench.errors import UserError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Predictions:
    """What a run says of each image of a set, in the order of the source.

    Attributes:
        index: (N,) positions in the source.
        label: (N,) classes.
        prediction: (N,) classes.
        logits: (N, C), where they are stored.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    logits: NDArray[np.float32] | None = None

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the prediction is the label."""
        return np.equal(self.prediction, self.label)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        record: Its record.
        folder: Where it lies.
        selection: Which weights are looked at: ``last`` or ``best``.
    """

    record: Record
    folder: Path
    selection: str

    @property
    def split(self) -> str:
        """The images that it was measured on: ``test``, or ``val`` where there is no test set."""
        return "test" if "test" in self.record["metrics"][self.selection] else "val"

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Metric -> value, on :attr:`split`."""
        return self.record["metrics"][self.selection].get(self.split, {})  # type: ignore[no-any-return]

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """(C,) training images of each class."""
        return np.array(self.record["data"]["class_counts"])

    def predictions(self, split: str | None = None, logits: bool = False) -> Predictions | None:
        """Read the stored predictions; None where there are none.

        Args:
            split: Which images; default: :attr:`split`.
            logits: Whether to read the logits too, which takes ten times as long.

        Raises:
            UserError: They are damaged, or do not fit the record.
        """
        split = split or self.split
        stem = "predictions" if split == "test" else f"{split}_predictions"
        path = self.folder / f"{stem}_{self.selection}.npz"
        if not path.is_file():
            return None
        names = ["index", "label", "prediction", *(["logits"] if logits else [])]
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                found = Predictions(**{name: stored[name] for name in names if name in stored})
        except records.NPZ_DAMAGE as error:
            raise UserError(f"{path} is damaged: {error}") from error
        self._check(found, split, path)
        return found

    def _check(self, found: Predictions, split: str, path: Path) -> None:
        images, classes = self.record["data"]["images"].get(split), len(self.class_counts)
        columns = (found.index, found.label, found.prediction)
        if any(column.ndim != 1 or column.dtype.kind not in "iu" for column in columns):
            raise UserError(f"{path} is damaged: its columns are no lists of whole numbers.")
        if found.logits is not None and found.logits.shape != (images, classes):
            raise UserError(f"{path} is damaged: its logits are not {images} times {classes}.")
        if not len(found.index) == len(found.label) == len(found.prediction) == images:
            raise UserError(
                f"{path} has {len(found.label)} predictions; its record counts {images} images."
            )
        if images and not (found.label.min() >= 0 and found.label.max() < classes):
            raise UserError(f"{path} has labels beyond the {classes} classes of its record.")
        told = (self.record["metrics"][self.selection].get(split) or {}).get("accuracy")
        if told is not None and abs(found.correct.mean() - told) > 1e-6:
            raise UserError(
                f"{path} has accuracy {found.correct.mean():.4f}; its record says {told:.4f}: "
                "they are of different runs."
            )


@dataclass
class Row:
    """A line of a leaderboard: the runs that differ in nothing but the seed."""

    name: str
    family: str
    runs: list[Run] = field(default_factory=list)
    earlier: list[Run] = field(default_factory=list)
    """Runs that those started from, and what these started from, as far as they are here."""
    baseline: str = ""
    """The row that shows what the method adds; empty where a suite names none."""


@dataclass
class Results:
    """Everything that a leaderboard shows, before any statistics.

    Args:
        title: Name of the suite or folder.
        rows: The lines.
        problems: What could not be used, and why.
    """

    title: str
    rows: list[Row]
    problems: list[str]


def of_plan(plan: Plan, store: Store, selection: str = "last") -> Results:
    """Collect the finished runs of a suite; the unfinished ones are named.

    Args:
        plan: Its jobs.
        store: Where they are kept.
        selection: Which weights are looked at: ``last`` or ``best``.
    """
    states = store.states(plan)
    found = Results(plan.suite, [], [])
    runs = {
        key: run
        for key, state in states.items()
        if state.status == "done"
        and state.run
        and (run := _read(state.run, selection, found.problems))
    }
    for name, of_row in plan.rows.items():
        row = Row(name, plan.families.get(name, ""), baseline=plan.baselines.get(name, ""))
        for seed, keys in of_row.items():
            last = states[keys[-1]]
            if keys[-1] in runs:
                row.runs.append(runs[keys[-1]])
            elif last.status != "done":
                why = f": {last.cause}" if last.cause else ""
                found.problems.append(f"{name}, seed {seed} is {last.status}{why}")
        if row.runs:
            found.rows.append(row)
    _find_starts(found.rows, runs.values())
    return found


def of_folder(folder: Path, selection: str = "last") -> Results:
    """Collect the finished runs below a folder; those that differ in the seed alone are one row.

    Args:
        folder: The folder.
        selection: Which weights are looked at: ``last`` or ``best``.

    Raises:
        UserError: There is no record below it, or none that can be used.
    """
    paths = sorted(folder.glob("**/record.json"))
    if not paths:
        raise UserError(f"there is no record.json below {folder}.")
    problems: list[str] = []
    runs = [run for path in paths if (run := _read(path.parent, selection, problems))]
    if not runs:
        raise UserError(f"none of {len(paths)} records below {folder} can be used: {problems[0]}")
    rows: dict[tuple[str, str], Row] = {}
    for run in sorted(runs, key=lambda run: (run.record["name"], run.record["seed"])):
        key = (run.record["name"], recipe(run.record))
        row = rows.setdefault(key, Row(key[0], str(run.record.get("method", ""))))
        if run.record["seed"] in [other.record["seed"] for other in row.runs]:
            problems.append(f"{run.folder}: seed {run.record['seed']} of {row.name} is there twice")
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
    """Give each row, of the runs that are here, those that its own go back to."""
    by_id = {run.record.get("job_id"): run for run in runs}
    for row in rows:
        found: dict[str, Run] = {}
        pending = list(row.runs)
        while pending:
            for start in pending.pop().record.get("lineage") or ():
                name = start.get("job_id")
                if name and name in by_id and name not in found:
                    found[name] = by_id[name]
                    pending.append(by_id[name])
        row.earlier = list(found.values())


def read(folder: Path, selection: str = "last") -> Run:
    """Read a finished run.

    Args:
        folder: Its folder.
        selection: Which weights are looked at; ``best`` falls back to ``last`` where a run has no
            validation.

    Raises:
        UserError: It is not finished, or its record is damaged or not of this ltbench.
    """
    path = folder / "record.json"
    record = records.read_record(path)
    if wrong := schema.misfit(record, schema.RECORD):
        raise UserError(f"{path} is no record of a run of ltbench: it has no usable '{wrong}'.")
    if record["status"] != "done":
        raise UserError(f"{path}: the run is {record['status']}, not done.")
    chosen = selection if selection in record["metrics"] else "last"
    if chosen not in record["metrics"]:
        raise UserError(f"{path} has no metrics of the {selection} weights.")
    run = Run(record, folder, chosen)
    if not run.metrics:
        raise UserError(f"{path} was measured on nothing.")
    classes = len(record["data"]["class_counts"])
    recalls = run.metrics.get("per_class_recall", [None] * classes)
    if wrong := schema.misfit(recalls, [schema.recall], "per_class_recall"):
        raise UserError(f"{path} is no record of a run of ltbench: it has no usable '{wrong}'.")
    if not classes or {len(record["data"]["class_names"]), len(recalls)} != {classes}:
        raise UserError(f"{path} contradicts itself about the number of its classes.")
    return run


def recipe(record: Record) -> str:
    """Return a hash of what a run's config says apart from seed, places and names."""
    kept = {name: record["config"].get(name, {}) for name in ("model", "data", "trainer")}
    text = json.dumps(_without(kept, _INCIDENTAL), sort_keys=True)
    for start in record.get("lineage") or ():
        file = Path(start.get("path") or "")
        for place in (file, file.parent.parent):
            text = text.replace(json.dumps(str(place)), '"an earlier stage"')
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without(value: Any, names: set[str]) -> Any:  # noqa: ANN401 - a config is recursive
    if not isinstance(value, dict):
        return value
    return {key: _without(item, names) for key, item in value.items() if key not in names}


_INCIDENTAL = {"root", "num_workers", "default_root_dir", "enable_progress_bar", "logger"}
