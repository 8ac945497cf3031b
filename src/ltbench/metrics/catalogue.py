"""Every metric: what it is called, its unit, which way is better, where it is shown, its equation.

Records, tables, figures and reports all read :data:`METRICS`: a new metric is one entry here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ltbench.errors import UserError, unknown_name
from ltbench.metrics.counts import (
    Counts,
    Floats,
    Indices,
    as_array,
    by_frequency,
    calibration_error,
    geometric_mean,
    harmonic_mean,
    index_groups,
    recalls,
    shot_groups,
)

TABLES = ("run", "board", "effects", "tiles")
"""Where a metric can be shown: at the end of a run, as a column of a leaderboard for reading, among
what a row adds to its baseline, among the best of a report. CSV and JSON have them all."""

GROUPS = "overall", "shots", "ranks", "means", "worst", "coverage", "calibration", "generation"
"""What belongs together, in the order in which a reader wants it."""


@dataclass(frozen=True)
class Tally:
    """What a test set came to, or many draws of one: everything that metrics follow from.

    Attributes:
        recall: Of each class, (..., C); NaN without test images.
        support: Test images of each class, (C,).
        groups: Labels of the classes of each group.
        hits: Test images of each class that were predicted right, (C,); unknown in draws.
        predicted: Predictions of each class, (C,); unknown in draws.
        order: The labels by decreasing training images, (C,); unknown in draws.
        bins: What :func:`~ltbench.metrics.counts.calibration_error` takes, where it is known.
    """

    recall: Floats
    support: npt.NDArray[Any]
    groups: Mapping[str, Indices]
    hits: npt.NDArray[Any] | None = None
    predicted: npt.NDArray[Any] | None = None
    order: Indices | None = None
    bins: Sequence[npt.NDArray[Any]] | None = None

    @cached_property
    def seen(self) -> Floats:
        """Recalls of the classes that have test images, (..., S)."""
        return self.recall[..., np.flatnonzero(self.support)]

    def mean_of(self, classes: Indices) -> Any:  # noqa: ANN401 - an array or a number
        """Return the mean recall of some classes, NaN where none of them has test images."""
        members = classes[self.support[classes] > 0]
        if not len(members):
            return np.full(self.recall.shape[:-1], np.nan)[()]
        return self.recall[..., members].mean(-1)


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        title: Heading of its column.
        group: One of :data:`GROUPS`.
        tables: Which of :data:`TABLES` show it.
        compute: Its value, for all draws of a tally at once; None where it cannot be known from
            the tally, and for a metric that does not follow from counts.
        resampled: Whether it follows from the recalls alone, so that draws of test images give it.
        long: What it is called where there is room; default: the title.
        unit: ``%`` for a fraction, which is shown in percent.
        higher_is_better: Which way is up.
    """

    title: str
    group: str
    tables: str = ""
    compute: Callable[[Tally], Any] | None = None
    resampled: bool = False
    long: str = ""
    unit: Literal["%", "nats", "classes", ""] = "%"
    higher_is_better: bool = True

    @property
    def percent(self) -> bool:
        """Whether it is a fraction, shown in percent."""
        return self.unit == "%"

    def text(self, value: float) -> str:
        """Write a value in the unit of the column."""
        if np.isnan(value):
            return "-"
        return f"{100 * value:.1f}" if self.percent else f"{value:.3g}"

    def signed(self, change: float) -> str:
        """Write a difference of two values, with its sign."""
        return f"{100 * change:+.1f}" if self.percent else f"{change:+.3g}"


def _accuracy(tally: Tally) -> Any:  # noqa: ANN401 - an array or a number
    if tally.hits is not None:
        return tally.hits.sum() / tally.support.sum()
    share = tally.support / tally.support.sum()
    return (tally.seen * share[np.flatnonzero(tally.support)]).sum(-1)


def _min_ht_recall(tally: Tally) -> float:
    """Return the smaller mean recall of the first floor(0.9 C) classes and of the rest.

    In the order of decreasing training images; NaN below 10 classes. Rangwani et al. 2022, arXiv
    2304.14738.
    """
    assert tally.order is not None
    if len(tally.order) < 10:
        return float("nan")
    parts = np.split(tally.order, [9 * len(tally.order) // 10])
    return float(np.min([tally.mean_of(part) for part in parts]))


def _min_coverage(tally: Tally) -> float:
    """Return the least share of predictions that a class gets, over all classes."""
    assert tally.predicted is not None
    return float(tally.predicted.min() / tally.support.sum())


def _ece(tally: Tally) -> float | None:
    return None if tally.bins is None else calibration_error(*tally.bins)


def _of_seen(mean: Callable[[Floats], Any]) -> Callable[[Tally], Any]:
    return lambda tally: mean(tally.seen)


def _of_group(name: str) -> Callable[[Tally], Any]:
    """Return the mean recall of a group; NaN without the counts that make the group."""
    return lambda tally: tally.mean_of(tally.groups.get(name, np.array([], dtype=np.intp)))


_ALL = " ".join(TABLES)
METRICS = {
    "accuracy": Metric("accuracy", "overall", _ALL, _accuracy, True),
    "mean_recall": Metric("mean recall", "overall", "", _of_seen(lambda r: r.mean(-1)), True),
    "hmean_recall": Metric("H-mean", "means", _ALL, _of_seen(harmonic_mean), True, "H-mean recall"),
    "gmean_recall": Metric(
        "G-mean", "means", "run", _of_seen(geometric_mean), True, "G-mean recall"
    ),
    "min_recall": Metric("min recall", "worst", _ALL, _of_seen(lambda r: r.min(-1)), True),
    "min_coverage": Metric(
        *("min coverage", "coverage", "run effects", _min_coverage),
        long="min coverage (share of predictions)",
    ),
    "min_ht_recall": Metric(
        *("min head/tail", "worst", "run", _min_ht_recall),
        long="min head/tail recall (90 / 10 % of classes)",
    ),
    "many_recall": Metric(
        *("many", "shots", "run board", _of_group("many"), True),
        "many-shot recall (> 100 training images)",
    ),
    "medium_recall": Metric(
        *("medium", "shots", "run board", _of_group("medium"), True),
        "medium-shot recall (20 to 100)",
    ),
    "few_recall": Metric(
        "few", "shots", "run board", _of_group("few"), True, "few-shot recall (< 20)"
    ),
    "head_recall": Metric(
        "head", "ranks", "run board effects", _of_group("head"), True, "head recall (by index)"
    ),
    "mid_recall": Metric("mid", "ranks", "run", _of_group("mid"), True, "mid recall"),
    "tail_recall": Metric(
        "tail", "ranks", "run board effects", _of_group("tail"), True, "tail recall"
    ),
    "ece": Metric("ECE", "calibration", "", _ece, higher_is_better=False),
    "dead_classes": Metric(  # with test images, and recall 0
        *("dead classes", "worst", "board", _of_seen(lambda r: (r == 0).sum(-1))),
        unit="classes",
        higher_is_better=False,
    ),
    "fid": Metric("FID", "generation", _ALL, unit="", higher_is_better=False),
    "kl_to_uniform": Metric(
        "KL to uniform", "generation", _ALL, unit="nats", higher_is_better=False
    ),
    "min_class_share": Metric(
        *("min class share", "generation", "run board effects"),
        long="share of the rarest generated class",
    ),
}
"""Name in records -> metric, in the order of a leaderboard's columns."""


def is_shown(name: str) -> bool:
    """Say whether a metric of a record is one of these, of whichever features."""
    return name.partition("[")[0] in METRICS


def metric(name: str) -> Metric:
    """Return a metric by its name; FIDs on several features are told apart by their names.

    Raises:
        UserError: There is no such metric.
    """
    base, _, features = name.partition("[")
    if base not in METRICS:
        raise unknown_name("metric", name, METRICS)
    found = METRICS[base]
    return replace(found, title=f"{found.title} [{features}") if features else found


def in_order(names: Iterable[str]) -> list[str]:
    """Return those of some names that are metrics, in the order of :data:`METRICS`."""
    order = list(METRICS)
    shown = [name for name in names if is_shown(name)]
    return sorted(shown, key=lambda name: (order.index(name.partition("[")[0]), name))


def shown_in(table: str, names: Iterable[str]) -> list[str]:
    """Return those of some names that a table shows, by their groups."""
    shown = [name for name in in_order(names) if table in metric(name).tables.split()]
    return sorted(shown, key=lambda name: GROUPS.index(metric(name).group))


def metrics_from_counts(
    true_positives: Counts,
    support: Counts,
    predicted: Counts,
    train_counts: Counts | None = None,
    head_mid_tail: Sequence[int] | None = None,
    bins: Sequence[npt.NDArray[Any]] | None = None,
) -> dict[str, float]:
    """Derive every classification metric, in float64.

    Args:
        true_positives: Test images of each class that were predicted right, shape (C,).
        support: Test images of each class, shape (C,).
        predicted: Predictions of each class, shape (C,).
        train_counts: Training images of each class, shape (C,). Without them there are no groups
            by images, and the labels are taken to be in the order of decreasing training images.
        head_mid_tail: Numbers of head, mid and tail classes; default: 30/40/30 %.
        bins: What :func:`~ltbench.metrics.counts.reliability` counts; without it there is no
            calibration error.

    Returns:
        Fractions in [0, 1] by name; ``dead_classes`` is a number of classes. What is undefined,
        such as the recall of a group without test images, is NaN.

    Raises:
        UserError: If there is no test image.
    """
    hits, images, claims = as_array(true_positives), as_array(support), as_array(predicted)
    if not images.sum():
        raise UserError("metrics: no test images were seen. Check that the split is not empty.")
    shots = {} if train_counts is None else shot_groups(train_counts)
    ranks = index_groups(len(images) if train_counts is None else train_counts, head_mid_tail)
    order = np.arange(len(images)) if train_counts is None else by_frequency(train_counts)
    groups = {**shots, **ranks}
    tally = Tally(recalls(hits, images), images, groups, hits, claims, order, bins)
    values = {name: each.compute(tally) for name, each in METRICS.items() if each.compute}
    return {name: float(value) for name, value in values.items() if value is not None}


def resampled(
    recall: Floats, support: npt.NDArray[np.int64], groups: Mapping[str, Indices]
) -> dict[str, Floats]:
    """Derive the metrics that follow from recalls alone, of many draws of a test set at once.

    Args:
        recall: Of each class, (..., C).
        support: Test images of each class, (C,).
        groups: Labels of the classes of each group.

    Returns:
        The defined ones, (...) each.
    """
    tally = Tally(recall, support, groups)
    values = {
        name: each.compute(tally)
        for name, each in METRICS.items()
        if each.compute and each.resampled
    }
    return {name: value for name, value in values.items() if not np.isnan(value).any()}
