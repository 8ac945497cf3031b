"""What a test set and a training set are counted into: groups of classes, recalls, means. No torch.

Recall-type metrics are over the classes that have test images; a class without any is left out. A
class that is never predicted right has recall 0, which makes the harmonic and geometric mean 0.
:mod:`ltbench.metrics.catalogue` has the metrics that follow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Counts = Union["Tensor", npt.NDArray[Any], Sequence[int]]
"""One non-negative integer per class."""
Indices = npt.NDArray[np.intp]
"""Labels of the classes in a group."""
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Classes:
    """The classes of a training set.

    Attributes:
        names: C names, in label order.
        counts: Training images of each class, (C,).
        head_mid_tail: Numbers of head, mid and tail classes; default: 30/40/30 %.
    """

    names: Sequence[str]
    counts: npt.NDArray[np.int64]
    head_mid_tail: Sequence[int] | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Classes":
        """Return the classes that a record's ``data`` describes."""
        return cls(list(data["class_names"]), np.array(data["class_counts"]), data["head_mid_tail"])

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def ranks(self) -> dict[str, Indices]:
        """Labels of the head, mid and tail classes, by training images."""
        return index_groups(self.counts, self.head_mid_tail)

    @cached_property
    def groups(self) -> dict[str, Indices]:
        """Labels of the classes of every group, by training images."""
        return {**shot_groups(self.counts), **self.ranks}

    @property
    def rank_of(self) -> npt.NDArray[np.str_]:
        """Head, mid or tail for each class, (C,)."""
        names = np.empty(len(self), dtype="<U4")
        for name, members in self.ranks.items():
            names[members] = name
        return names


def shot_groups(train_counts: Counts) -> dict[str, Indices]:
    """Group classes by training images: many > 100 >= medium >= 20 > few.

    Liu et al. 2019, arXiv 1904.05160, section 5.

    Args:
        train_counts: Training images of each class, shape (C,).

    Returns:
        Labels by group name; a group may be empty.
    """
    counts = as_array(train_counts)
    return {
        "many": np.flatnonzero(counts > 100),
        "medium": np.flatnonzero((counts >= 20) & (counts <= 100)),
        "few": np.flatnonzero(counts < 20),
    }


def index_groups(
    train_counts: Counts | int, head_mid_tail: Sequence[int] | None = None
) -> dict[str, Indices]:
    """Group classes by rank: head, mid and tail in the order of decreasing training images.

    Args:
        train_counts: Training images of each class, shape (C,), or the number of classes when the
            labels are in that order already.
        head_mid_tail: How many classes each group has; default: :func:`default_sizes`.

    Returns:
        Labels by group name; a group may be empty below four classes.
    """
    counts = range(train_counts, 0, -1) if isinstance(train_counts, int) else train_counts
    order = by_frequency(counts)
    head, mid, _ = head_mid_tail or default_sizes(len(order))
    head_labels, mid_labels, tail_labels = np.split(order, [head, head + mid])
    return {"head": head_labels, "mid": mid_labels, "tail": tail_labels}


def default_sizes(num_classes: int) -> tuple[int, int, int]:
    """Return the numbers of head, mid and tail classes where no paper says: 30/40/30 %, rounded."""
    outer = (3 * num_classes + 5) // 10
    return outer, num_classes - 2 * outer, outer


def by_frequency(train_counts: Counts) -> Indices:
    """Return the labels by decreasing count; stable, so that ties keep the order of labels."""
    return np.argsort(-as_array(train_counts).astype(np.int64), kind="stable")


def as_array(values: Counts) -> npt.NDArray[Any]:
    """Return counts as an array of this process, wherever they are."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


def recalls(true_positives: npt.NDArray[Any], support: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the recall of each class, (C,); NaN for a class without test images."""
    return np.where(support > 0, true_positives / np.maximum(support, 1), np.nan)


def harmonic_mean(values: Floats) -> Any:  # noqa: ANN401 - an array or a number
    """Return the harmonic mean over the last axis; 0 where one of the values is 0."""
    with np.errstate(divide="ignore"):  # through infinity
        return 1 / (1 / values).mean(-1)


def geometric_mean(values: Floats) -> Any:  # noqa: ANN401 - an array or a number
    """Return the geometric mean over the last axis; 0 where one of the values is 0."""
    with np.errstate(divide="ignore"):
        return np.exp(np.log(values).mean(-1))


def reliability(
    confidences: Floats, hits: npt.NDArray[np.bool_], bins: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Count predictions by confidence, in equal bins ((b - 1) / bins, b / bins].

    Args:
        confidences: (N,), in (0, 1].
        hits: Whether each was right, (N,).
        bins: Their number.

    Returns:
        Of each bin its images, the right ones among them, and the sum of their confidences.
    """
    which = np.ceil(confidences * bins).astype(int).clip(1, bins) - 1
    return (
        np.bincount(which, minlength=bins),
        np.bincount(which, weights=hits, minlength=bins),
        np.bincount(which, weights=confidences, minlength=bins),
    )


def calibration_error(
    images: npt.NDArray[Any], hits: npt.NDArray[Any], confidences: npt.NDArray[Any]
) -> float:
    """Return the expected calibration error: Guo et al. 2017, arXiv 1706.04599, eq. 3.

    Args:
        images: Of each bin, as in :func:`reliability`.
        hits: Right ones of each bin.
        confidences: Their sum in each bin.
    """
    return float(np.abs(hits - confidences).sum() / images.sum())
