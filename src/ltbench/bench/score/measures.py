"""The metrics that a leaderboard shows: their headings, units, and which way is better."""

from dataclasses import dataclass

import numpy as np


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

    def signed(self, change: float) -> str:
        """Write a difference of two values, with its sign."""
        return f"{100 * change:+.1f}" if self.percent else f"{change:+.3g}"


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


def is_shown(name: str) -> bool:
    """Say whether a metric of a record is one of these, of whichever features."""
    return name.partition("[")[0] in METRICS


def metric(name: str) -> Metric:
    """Return how a metric is shown; FIDs on several features are told apart by their names."""
    base, _, features = name.partition("[")
    found = METRICS[base]
    return Metric(f"{found.title} [{features}", found.percent, False) if features else found
