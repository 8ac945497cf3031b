"""Tables computed from records: estimates with intervals, ranks, differences, cost.

Rows measured on the same images make a table. ``show`` prints them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltbench.bench.score import comparable, posthoc, stats
from ltbench.bench.score.comparable import Facts
from ltbench.bench.score.posthoc import Corrected
from ltbench.bench.score.results import Results, Row, Run
from ltbench.bench.score.stats import Estimate, Resampler
from ltbench.errors import UserError, unknown_name
from ltbench.metrics.catalogue import in_order, metric, resampled
from ltbench.metrics.counts import Classes
from ltbench.records import Predictions


@dataclass
class Line:
    """A row of a table."""

    row: Row
    estimates: dict[str, Estimate]
    facts: Facts
    differs: list[str] = field(default_factory=list)
    rank: int = 0
    cost: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    posthoc: Corrected = field(default_factory=dict)
    priors: dict[str, float] = field(default_factory=dict)
    # metric -> its mean over seeds in each draw of test images, (B,)
    draws: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The row's name."""
        return self.row.name


@dataclass
class Table:
    """Rows that were measured on the same images."""

    title: str  # what they were measured on
    by: str  # the metric that ranks them
    metrics: list[str]  # names of all metrics that some row has, in order
    lines: list[Line]  # best first, but heads below the row of their start
    shared: Facts  # what most rows were trained with
    notes: list[str]  # remarks on all rows
    p: NDArray[np.float64]  # (rows, rows) after Holm's correction; NaN if unknown


@dataclass
class Leaderboard:
    """All tables of a suite or folder, and the runs that could not be used."""

    title: str
    tables: list[Table]
    problems: list[str]


def build(results: Results, by: str | None = None) -> Leaderboard:
    """Compute the tables, ranked by a metric; default: accuracy, or FID for generated images.

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
    """List the metrics that some run has, in the order in which they are shown."""
    return in_order(
        {
            name
            for run in (run for row in rows for run in row.runs)
            for name, value in run.metrics.items()
            if value is not None
        }
    )


def _measured_on(run: Run) -> str:
    data = run.record["data"]
    names = hashlib.sha256("\n".join(map(str, data["class_names"])).encode()).hexdigest()
    images = f"{run.split} {data['images'].get(run.split)}"
    return f"{data['source']} {images} {names} {_is_classified(run)}"


def _is_classified(run: Run) -> bool:
    return not any(metric(name).group == "generation" for name in in_order(run.metrics))


def _table(rows: Sequence[Row], by: str | None, problems: list[str]) -> Table:
    first = rows[0].runs[0]
    data = first.record["data"]
    names = _metrics(rows)
    chosen = by if by in names else names[0]
    correct, resampler = _paired(rows, problems)
    lines = []
    for row in rows:
        draws = {}
        if resampler and row.name in correct:
            draws = _draws(resampler, correct[row.name], row.runs[0].classes)
        lines.append(_line(row, names, draws, problems))
    replicates = [line.draws.get(chosen) for line in lines]
    own = [line.facts for line in lines if not line.row.start]  # heads have few epochs of few
    usual = comparable.shared(own or [line.facts for line in lines])
    values = [
        line.estimates[chosen].values if chosen in line.estimates else [np.nan] for line in lines
    ]
    compared = stats.compare(values, replicates, metric(chosen).higher_is_better)
    for line, rank in zip(lines, compared.ranks, strict=True):
        line.rank = int(rank)
        line.differs = comparable.differences(line.facts, usual)
    order = _below_starts(lines, compared.order)
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
        notes=_notes(lines, resampler, chosen, replicates),
        p=compared.p[np.ix_(order, order)],
    )


def _below_starts(lines: Sequence[Line], order: NDArray[np.intp]) -> list[int]:
    """Return an order in which the heads of a row stand below it, best first."""
    present = {line.name for line in lines}
    below: dict[str, list[int]] = {}
    for i in order:
        start = lines[i].row.start
        below.setdefault(start if start in present else "", []).append(int(i))

    def from_here(name: str) -> list[int]:
        return [each for i in below.get(name, ()) for each in (i, *from_here(lines[i].name))]

    return from_here("")


def _paired(
    rows: Sequence[Row], problems: list[str]
) -> tuple[dict[str, NDArray[np.bool_]], Resampler | None]:
    """Return whether the runs of each row are right about each image, (S, N), and the draws.

    Rows without predictions are left out, and those that were measured on other images than the
    first one, such as another part of the training images if there is no test set.
    """
    correct: dict[str, NDArray[np.bool_]] = {}
    images: Predictions | None = None
    for row in rows:
        predictions = _predictions(row, problems)
        if not predictions:
            continue
        if not _same_images([images or predictions[0], *predictions]):
            other = next(iter(correct), "each other")
            problems.append(
                f"{row.name}: its runs were not measured on the images of {other}, so they are not "
                "compared image by image."
            )
            continue
        images = images or predictions[0]
        correct[row.name] = np.array([each.correct for each in predictions])
    if images is None:
        return correct, None
    return correct, Resampler(images.label, len(rows[0].runs[0].classes.counts))


def _predictions(row: Row, problems: list[str]) -> list[Predictions]:
    """Return the stored predictions of the runs of a row; nothing if one run has none."""
    stored: list[Predictions] = []
    for run in row.runs:
        try:
            predictions = run.predictions()
        except UserError as error:
            problems.append(str(error))
            continue
        if predictions is not None:
            stored.append(predictions)
    return stored if len(stored) == len(row.runs) else []


def _same_images(predictions: Sequence[Predictions]) -> bool:
    first = predictions[0]
    return all(
        np.array_equal(first.index, other.index) and np.array_equal(first.label, other.label)
        for other in predictions
    )


def _draws(
    resampler: Resampler, correct: NDArray[np.bool_], classes: Classes
) -> dict[str, NDArray[np.floating]]:
    """Return each metric's mean over seeds in each draw of images, (B,)."""
    metrics = resampled(resampler.recalls(correct), resampler.support, classes.groups)
    return {name: values.mean(0) for name, values in metrics.items()}


def _line(
    row: Row,
    names: Sequence[str],
    draws: Mapping[str, NDArray[np.floating]],
    problems: list[str],
) -> Line:
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
        comparable.facts(row),
        cost=_cost(row),
        notes=notes,
        posthoc=posthoc.baselines(row.runs, problems),
        priors=posthoc.under_priors(row.runs),
        draws=draws,
    )


def _cost(row: Row) -> dict[str, Any]:
    """Return what one seed of a row costs: its own training, and with the earlier stages."""
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


def _notes(
    lines: Sequence[Line],
    resampler: Resampler | None,
    by: str,
    replicates: Sequence[NDArray[np.floating] | None],
) -> list[str]:
    notes = []
    if len(lines) > 1 and all(draws is None for draws in replicates):
        notes.append(
            f"How {metric(by).title} varies over test images is unknown: rows share a rank unless "
            "several seeds tell them apart."
        )
    if resampler is not None:
        seen = resampler.support[resampler.support > 0]
        small = int((seen < stats.SMALL_CLASS).sum())
        if small:
            notes.append(
                f"{small} of {len(seen)} classes have fewer than {stats.SMALL_CLASS} test images, "
                f"the smallest {seen.min()}: one image shifts its recall by {100 / seen.min():.0f} "
                "points, so min recall and H-mean say little."
            )
    alone = [each.images for line in lines for each in line.estimates.values() if not each.seeds]
    if any(images and images[0] == images[1] for images in alone):
        notes.append(
            "An interval of ±0.0 over test images is too narrow: in each class that counts, all "
            "images are right or all wrong, so draws of them do not vary."
        )
    if any(line.differs for line in lines):
        notes.append("Rows that differ in more than the method say so; compare them with care.")
    return notes
