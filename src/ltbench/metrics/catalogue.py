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
"""Where a metric can be shown: at the end of a run, as a column of a leaderboard, in the table of
gains over a baseline, among the best results of a report. CSV and JSON have them all."""

GROUPS = "overall", "shots", "ranks", "means", "worst", "coverage", "calibration", "generation"
"""Metrics that belong together, in the order in which they are shown."""


@dataclass(frozen=True)
class Tally:
    """The counts of a test set, or the recalls of many draws from it; metrics follow from it."""

    recall: Floats  # (..., C) per class; NaN without test images
    support: npt.NDArray[Any]  # (C,) test images
    groups: Mapping[str, Indices]  # labels of each group
    hits: npt.NDArray[Any] | None = None  # (C,) correct predictions; unknown in draws, as all below
    predicted: npt.NDArray[Any] | None = None  # (C,) predictions of each class
    order: Indices | None = None  # (C,) labels by decreasing training images
    bins: Sequence[npt.NDArray[Any]] | None = None  # as counts.calibration_error takes them

    @cached_property
    def seen(self) -> Floats:
        """Recalls of the S classes that have test images, (..., S)."""
        return self.recall[..., np.flatnonzero(self.support)]

    def mean_of(self, classes: Indices) -> Any:  # noqa: ANN401 - an array or a number
        """Return the mean recall of some classes, NaN if none of them has test images."""
        members = classes[self.support[classes] > 0]
        if not len(members):
            return np.full(self.recall.shape[:-1], np.nan)[()]
        return self.recall[..., members].mean(-1)


@dataclass(frozen=True)
class Metric:
    """A metric; ``compute`` gives its value for all draws of a tally, or None if it is unknown."""

    title: str  # heading of its column
    group: str  # one of GROUPS
    tables: str = ""  # those of TABLES that show it
    compute: Callable[[Tally], Any] | None = None  # None: it does not follow from counts
    resampled: bool = False  # whether it follows from recalls alone, so draws of images give it
    long: str = ""  # its name where there is room; default: the title
    unit: Literal["%", "nats", "classes", ""] = "%"  # % for a fraction, shown in percent
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

    By decreasing training images; NaN below 10 classes. Rangwani et al. 2022, arXiv 2304.14738.
    """
    assert tally.order is not None
    if len(tally.order) < 10:
        return float("nan")
    parts = np.split(tally.order, [9 * len(tally.order) // 10])
    return float(np.min([tally.mean_of(part) for part in parts]))


def _min_coverage(tally: Tally) -> float:
    """Return the smallest share of all predictions that a class gets."""
    assert tally.predicted is not None
    return float(tally.predicted.min() / tally.support.sum())


def _ece(tally: Tally) -> float | None:
    return None if tally.bins is None else calibration_error(*tally.bins)


def _of_seen(
    title: str, group: str, tables: str, mean: Callable[[Floats], Any], long: str = ""
) -> Metric:
    """Describe a mean over the recalls of the classes that have test images."""
    return Metric(title, group, tables, lambda tally: mean(tally.seen), True, long)


def _of_group(name: str, group: str, tables: str, long: str) -> Metric:
    """Describe the mean recall of a group; NaN without the counts that make the group."""
    nobody = np.array([], dtype=np.intp)
    compute = lambda tally: tally.mean_of(tally.groups.get(name, nobody))  # noqa: E731
    return Metric(name, group, tables, compute, True, long)


_ALL = " ".join(TABLES)
METRICS = {
    "accuracy": Metric("accuracy", "overall", _ALL, _accuracy, True),
    "mean_recall": _of_seen("mean recall", "overall", "", lambda r: r.mean(-1)),
    "hmean_recall": _of_seen("H-mean", "means", _ALL, harmonic_mean, "H-mean recall"),
    "gmean_recall": _of_seen("G-mean", "means", "run", geometric_mean, "G-mean recall"),
    "min_recall": _of_seen("min recall", "worst", _ALL, lambda r: r.min(-1)),
    "min_coverage": Metric(
        *("min coverage", "coverage", "run effects", _min_coverage),
        long="min coverage (share of predictions)",
    ),
    "min_ht_recall": Metric(
        *("min head/tail", "worst", "run", _min_ht_recall),
        long="min head/tail recall (90 / 10 % of classes)",
    ),
    "many_recall": _of_group(
        "many", "shots", "run board", "many-shot recall (> 100 training images)"
    ),
    "medium_recall": _of_group("medium", "shots", "run board", "medium-shot recall (20 to 100)"),
    "few_recall": _of_group("few", "shots", "run board", "few-shot recall (< 20)"),
    "head_recall": _of_group("head", "ranks", "run board effects", "head recall (by index)"),
    "mid_recall": _of_group("mid", "ranks", "run", "mid recall"),
    "tail_recall": _of_group("tail", "ranks", "run board effects", "tail recall"),
    "ece": Metric("ECE", "calibration", "", _ece, higher_is_better=False),
    "dead_classes": Metric(  # with test images, and recall 0
        *("dead classes", "worst", "board", lambda tally: (tally.seen == 0).sum(-1)),
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
    """Say whether a metric of a record is one of these, whatever features it is based on."""
    return name.partition("[")[0] in METRICS


def metric(name: str) -> Metric:
    """Return a metric by its name; FIDs based on different features get different titles.

    Raises:
        UserError: There is no such metric.
    """
    base, _, features = name.partition("[")
    if base not in METRICS:
        raise unknown_name("metric", name, METRICS)
    entry = METRICS[base]
    return replace(entry, title=f"{entry.title} [{features}") if features else entry


def in_order(names: Iterable[str]) -> list[str]:
    """Return those names that are metrics, in the order of :data:`METRICS`."""
    order = list(METRICS)
    shown = [name for name in names if is_shown(name)]
    return sorted(shown, key=lambda name: (order.index(name.partition("[")[0]), name))


def shown_in(table: str, names: Iterable[str]) -> list[str]:
    """Return those names that a table shows, group by group."""
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
        true_positives: Test images of each class that were predicted correctly, shape (C,).
        support: Test images of each class, shape (C,).
        predicted: Predictions of each class, shape (C,).
        train_counts: Training images of each class, shape (C,). Without them there are no groups
            by images, and the labels are taken to be in the order of decreasing training images.
        head_mid_tail: Numbers of head, mid and tail classes; default: 30/40/30 %.
        bins: Result of :func:`~ltbench.metrics.counts.reliability`; without it there is no ECE.

    Returns:
        Fractions in [0, 1] by name; ``dead_classes`` is a number of classes. What is undefined,
        such as the recall of a group without test images, is NaN.

    Raises:
        UserError: If there is no test image.
    """
    hits, images, claims = as_array(true_positives), as_array(support), as_array(predicted)
    if not images.sum():
        raise UserError("metrics: there were no test images. Check that the split is not empty.")
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
    """Derive the metrics that follow from recalls alone, for many draws of a test set at once.

    Args:
        recall: Per class, (..., C).
        support: Test images per class, (C,).
        groups: Labels of each group.

    Returns:
        Those that are defined in every draw, (...) each.
    """
    tally = Tally(recall, support, groups)
    values = {
        name: each.compute(tally)
        for name, each in METRICS.items()
        if each.compute and each.resampled
    }
    return {name: value for name, value in values.items() if not np.isnan(value).any()}
