"""Counts of a training and a test set: groups of classes, recalls, means. No torch.

Recalls are over the classes that have test images. A class that is never predicted correctly has
recall 0, which makes the harmonic and geometric mean 0.
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
    """The C classes of a training set."""

    names: Sequence[str]  # in label order
    counts: npt.NDArray[np.int64]  # (C,) training images
    head_mid_tail: Sequence[int] | None = None  # numbers of classes; None: 30/40/30 %

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
    """Group classes by training images (C,): many > 100 >= medium >= 20 > few.

    Liu et al. 2019, arXiv 1904.05160, section 5. Returns labels by group name; a group may be
    empty.
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
        train_counts: Training images per class, shape (C,), or the number of classes if the labels
            are in that order already.
        head_mid_tail: Number of classes in each group; default: :func:`default_sizes`.

    Returns:
        Labels by group name; a group may be empty if there are fewer than four classes.
    """
    counts = range(train_counts, 0, -1) if isinstance(train_counts, int) else train_counts
    order = by_frequency(counts)
    head, mid, _ = head_mid_tail or default_sizes(len(order))
    head_labels, mid_labels, tail_labels = np.split(order, [head, head + mid])
    return {"head": head_labels, "mid": mid_labels, "tail": tail_labels}


def default_sizes(num_classes: int) -> tuple[int, int, int]:
    """Return the numbers of head, mid and tail classes unless a paper says: 30/40/30 %, rounded."""
    outer = (3 * num_classes + 5) // 10
    return outer, num_classes - 2 * outer, outer


def by_frequency(train_counts: Counts) -> Indices:
    """Return the labels by decreasing count; ties keep the order of labels."""
    return np.argsort(-as_array(train_counts).astype(np.int64), kind="stable")


def as_array(values: Counts) -> npt.NDArray[Any]:
    """Return counts, on whatever device, as an array."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


def recalls(true_positives: npt.NDArray[Any], support: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the recall per class, (C,); NaN for a class without test images."""
    return np.where(support > 0, true_positives / np.maximum(support, 1), np.nan)


def harmonic_mean(values: Floats) -> Any:  # noqa: ANN401 - an array or a number
    """Return the harmonic mean over the last axis; 0 if one of the values is 0."""
    with np.errstate(divide="ignore"):  # through infinity
        return 1 / (1 / values).mean(-1)


def geometric_mean(values: Floats) -> Any:  # noqa: ANN401 - an array or a number
    """Return the geometric mean over the last axis; 0 if one of the values is 0."""
    with np.errstate(divide="ignore"):
        return np.exp(np.log(values).mean(-1))


def reliability(
    confidences: Floats, hits: npt.NDArray[np.bool_], bins: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Count predictions by confidence, in equal bins ((b - 1) / bins, b / bins].

    Args:
        confidences: (N,), in (0, 1].
        hits: (N,) whether each prediction is correct.
        bins: Number of bins.

    Returns:
        For each bin its images, the number of correct predictions, and the sum of confidences.
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

    The arguments are per bin, as :func:`reliability` returns them.
    """
    return float(np.abs(hits - confidences).sum() / images.sum())
