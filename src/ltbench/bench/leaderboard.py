"""Tables computed from records: estimates with intervals, ranks, differences, cost.

Rows measured on the same images make a table. Nothing here prints; see ``tables`` and ``report``.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltbench.bench import comparable, posthoc, stats
from ltbench.bench.comparable import Facts
from ltbench.bench.posthoc import Found
from ltbench.bench.results import Predictions, Results, Row, Run
from ltbench.bench.stats import Estimate, Resampler
from ltbench.counts import index_groups, shot_groups
from ltbench.errors import UserError, unknown_name


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Args:
        title: Heading of its column.
        percent: Whether it is a fraction, shown in percent.
        higher_is_better: Which way is up.
    """

    title: str
    percent: bool = True
    higher_is_better: bool = True

    def text(self, value: float) -> str:
        """Write a value in the unit of the column."""
        if np.isnan(value):
            return "-"
        return f"{100 * value:.1f}" if self.percent else f"{value:.3g}"


METRICS = {
    "accuracy": Metric("accuracy"),
    "mean_recall": Metric("mean recall"),
    "hmean_recall": Metric("H-mean"),
    "gmean_recall": Metric("G-mean"),
    "min_recall": Metric("min recall"),
    "min_coverage": Metric("min coverage"),
    "min_ht_recall": Metric("min head/tail"),
    "many_recall": Metric("many"),
    "medium_recall": Metric("medium"),
    "few_recall": Metric("few"),
    "head_recall": Metric("head"),
    "mid_recall": Metric("mid"),
    "tail_recall": Metric("tail"),
    "ece": Metric("ECE", higher_is_better=False),
    "dead_classes": Metric("dead classes", percent=False, higher_is_better=False),
    "fid": Metric("FID", percent=False, higher_is_better=False),
    "kl_to_uniform": Metric("KL to uniform", percent=False, higher_is_better=False),
    "min_class_share": Metric("min class share"),
}


@dataclass
class Line:
    """What a table says of a row."""

    row: Row
    estimates: dict[str, Estimate]
    facts: Facts
    differs: list[str] = field(default_factory=list)
    rank: int = 0
    cost: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    posthoc: Found = field(default_factory=dict)
    priors: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the row."""
        return self.row.name


@dataclass
class Table:
    """Rows that were measured on the same images.

    Args:
        title: What they were measured on.
        by: The metric of the ranks.
        metrics: Names of all metrics that some row has, in the order of the columns.
        lines: The rows, best first.
        shared: What most rows were trained with.
        notes: What a reader has to know of all rows.
        groups: Group of classes -> its classes.
        support: (C,) test images of each class; None without predictions.
        p: (rows, rows) p-values between the lines after Holm's correction; NaN if unknown.
    """

    title: str
    by: str
    metrics: list[str]
    lines: list[Line]
    shared: Facts
    notes: list[str]
    groups: Mapping[str, NDArray[np.intp]]
    support: NDArray[np.int64] | None
    p: NDArray[np.float64]


@dataclass
class Leaderboard:
    """All tables of a suite or folder, and what could not be used."""

    title: str
    tables: list[Table]
    problems: list[str]


def metric(name: str) -> Metric:
    """Return how a metric is shown; FIDs on several features are told apart by their names."""
    base, _, features = name.partition("[")
    found = METRICS[base]
    return Metric(f"{found.title} [{features}", found.percent, False) if features else found


def build(results: Results, by: str | None = None) -> Leaderboard:
    """Compute the tables.

    Args:
        results: The runs.
        by: The metric to rank by; default: accuracy, or FID for generated images.

    Raises:
        UserError: No row has that metric.
    """
    together: dict[str, list[Row]] = {}
    for row in results.rows:
        together.setdefault(_measured_on(row.runs[0]), []).append(row)
    known = {name for rows in together.values() for name in _metrics(rows)}
    if by and known and by not in known:
        raise unknown_name("metric", by, known)
    board = Leaderboard(results.title, [], list(results.problems))
    for rows in together.values():
        board.tables.append(_table(rows, by, board.problems))
    return board


def _metrics(rows: Sequence[Row]) -> list[str]:
    """Name the metrics that some run has, in the order in which they are shown."""
    measured = {
        name
        for row in rows
        for run in row.runs
        for name, value in run.metrics.items()
        if value is not None
    }
    names = [name for name in measured if name.partition("[")[0] in METRICS]
    return sorted(names, key=lambda name: (list(METRICS).index(name.partition("[")[0]), name))


def _measured_on(run: Run) -> str:
    data = run.record["data"]
    names = hashlib.sha256("\n".join(map(str, data["class_names"])).encode()).hexdigest()
    images = f"{run.split} {data['images'].get(run.split)}"
    return f"{data['source']} {images} {names} {_is_classified(run)}"


def _is_classified(run: Run) -> bool:
    return not any(name.startswith("fid") for name in run.metrics)


def _table(rows: Sequence[Row], by: str | None, problems: list[str]) -> Table:
    first = rows[0].runs[0]
    data = first.record["data"]
    names = _metrics(rows)
    chosen = by if by in names else names[0]
    groups = {**shot_groups(first.class_counts), **index_groups(first.class_counts)}
    groups = {name: classes for name, classes in groups.items() if len(classes)}

    correct = {row.name: found for row in rows if (found := _correct(row, problems)) is not None}
    resampler = None
    if correct:
        labels = next(iter(correct.values()))[0].label
        resampler = Resampler(labels, len(first.class_counts))
    lines, replicates = [], []
    for row in rows:
        draws = {}
        if resampler and row.name in correct:
            draws = _draws(resampler, correct[row.name], groups)
        lines.append(_line(row, names, draws))
        replicates.append(draws.get(chosen))
    usual = comparable.shared([line.facts for line in lines])
    values = [
        line.estimates[chosen].values if chosen in line.estimates else [np.nan] for line in lines
    ]
    compared = stats.compare(values, replicates, metric(chosen).higher_is_better)
    for line, rank in zip(lines, compared.ranks, strict=True):
        line.rank = int(rank)
        line.differs = comparable.differences(line.facts, usual)
    order = compared.order
    title = f"{data['source']}, generated images"
    if _is_classified(first):
        unit = {"test": "test images", "val": "validation images"}[first.split]
        title = f"{data['source']}, {data['images'].get(first.split, 0):,} {unit}"
    return Table(
        title=title,
        by=chosen,
        metrics=names,
        lines=[lines[i] for i in order],
        shared=usual,
        notes=_notes(lines, resampler),
        groups=groups,
        support=resampler.support if resampler else None,
        p=compared.p[np.ix_(order, order)],
    )


def _correct(row: Row, problems: list[str]) -> tuple[Predictions, NDArray[np.bool_]] | None:
    """Return the images, and whether each run of a row is right about each; None if unknown."""
    found: list[Predictions] = []
    for run in row.runs:
        try:
            predictions = run.predictions()
        except UserError as error:
            problems.append(str(error))
            continue
        if predictions is not None:
            found.append(predictions)
    if len(found) < len(row.runs):
        return None
    images = found[0]
    if any(not np.array_equal(images.index, other.index) for other in found):
        problems.append(f"{row.name}: its runs were measured on different images.")
        return None
    return images, np.array([each.correct for each in found])


def _draws(
    resampler: Resampler,
    found: tuple[Predictions, NDArray[np.bool_]],
    groups: Mapping[str, NDArray[np.intp]],
) -> dict[str, NDArray[np.floating]]:
    """Return, of each metric, its mean over seeds in each draw of images, (B,)."""
    recalls = resampler.recalls(found[1])
    metrics = stats.reductions(resampler.support, groups)
    return {name: reduce(recalls).mean(0) for name, reduce in metrics.items()}


def _line(row: Row, names: Sequence[str], draws: Mapping[str, NDArray[np.floating]]) -> Line:
    estimates = {}
    for name in names:
        values = [float(run.metrics[name]) for run in row.runs if run.metrics.get(name) is not None]
        if values:
            images = stats.percentiles(draws[name]) if name in draws else None
            mean = float(np.mean(values))
            estimates[name] = Estimate(mean, stats.t_interval(values), images, values)
    notes = []
    if len(row.runs) == 1:
        notes.append("One seed, so the spread between seeds is unknown")
    if not draws and "accuracy" in names:
        notes.append("No stored predictions, so not compared image by image")
    return Line(
        row,
        estimates,
        comparable.facts(row.runs[0]),
        cost=_cost(row),
        notes=notes,
        posthoc=posthoc.baselines(row.runs),
        priors=posthoc.under_priors(row.runs),
    )


def _cost(row: Row) -> dict[str, Any]:
    """Return what a seed of a row costs: its own training, and with the earlier stages."""
    records = [run.record for run in row.runs]
    earlier = sum(run.record["wall_seconds"] for run in row.earlier)
    own = float(np.mean([record["wall_seconds"] for record in records]))
    speeds = [r["images_per_second"] for r in records if r.get("images_per_second")]
    return {
        "wall_seconds": own,
        "wall_seconds_with_stages": own + earlier / len(records),
        "images_seen": float(np.mean([record["images_seen"] for record in records])),
        "images_per_second": float(np.mean(speeds)) if speeds else None,
        "peak_memory_bytes": max(record.get("peak_memory_bytes") or 0 for record in records)
        or None,
        "parameters": records[0].get("parameters"),
        "device": ", ".join(sorted({str(record.get("device", "?")) for record in records})),
    }


def _notes(lines: Sequence[Line], resampler: Resampler | None) -> list[str]:
    notes = []
    if resampler is not None:
        seen = resampler.support[resampler.support > 0]
        small = int((seen < stats.SMALL_CLASS).sum())
        if small:
            notes.append(
                f"{small} of {len(seen)} classes have fewer than {stats.SMALL_CLASS} test images, "
                f"the smallest {seen.min()}: one image moves its recall by {100 / seen.min():.0f} "
                "points, so min recall and H-mean say little."
            )
    if any(line.differs for line in lines):
        notes.append("Rows that differ in more than the method say so; compare them with care.")
    return notes
