"""Metrics of long-tailed classification from integer counts, and the groups of classes. No torch.

Recall-type metrics are over the classes that have test images; a class without any is left out. A
class that is never predicted right has recall 0, which makes the harmonic and geometric mean 0.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt

from ltbench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Counts = Union["Tensor", npt.NDArray[Any], Sequence[int]]
"""One non-negative integer a class."""
Indices = npt.NDArray[np.intp]
"""Labels of the classes in a group."""

# (head, mid, tail) sizes that the papers of a data set use; a set is known by its class count.
INDEX_SPLITS = {
    10: (3, 4, 3),  # CIFAR-10-LT
    100: (36, 35, 29),  # CIFAR-100-LT
    1000: (390, 445, 165),  # ImageNet-LT
    8142: (842, 3701, 3599),  # iNaturalist 2018
}


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


def index_groups(train_counts: Counts | int) -> dict[str, Indices]:
    """Group classes by rank: head, mid and tail in the order of decreasing training images.

    The sizes are those of :data:`INDEX_SPLITS`; other class counts split 30/40/30, rounded.

    Args:
        train_counts: Training images of each class, shape (C,), or the number of classes when the
            labels are in that order already.

    Returns:
        Labels by group name; a group may be empty below four classes.
    """
    order = np.arange(train_counts) if isinstance(train_counts, int) else _order(train_counts)
    outer = (3 * len(order) + 5) // 10
    head, mid, _ = INDEX_SPLITS.get(len(order), (outer, len(order) - 2 * outer, outer))
    head_labels, mid_labels, tail_labels = np.split(order, [head, head + mid])
    return {"head": head_labels, "mid": mid_labels, "tail": tail_labels}


def metrics_from_counts(
    true_positives: Counts,
    support: Counts,
    predicted: Counts,
    train_counts: Counts | None = None,
) -> dict[str, float]:
    """Derive every classification metric but the calibration error, in float64.

    * ``accuracy``; ``mean_recall`` (balanced accuracy); ``hmean_recall``; ``gmean_recall``;
      ``min_recall``; ``dead_classes``, the number of classes with test images and recall 0.
    * ``min_coverage``: the least share of predictions that a class gets, over all classes.
    * ``min_ht_recall``: the smaller of the mean recalls of the first floor(0.9 C) classes and of
      the rest, in the order of decreasing training images; NaN below 10 classes. Rangwani et al.
      2022, arXiv 2304.14738.
    * ``many_recall``, ``medium_recall``, ``few_recall``: mean recall of :func:`shot_groups`; NaN
      without ``train_counts``.
    * ``head_recall``, ``mid_recall``, ``tail_recall``: mean recall of :func:`index_groups`.

    The mean recall of a group in which no class has test images is NaN.

    Args:
        true_positives: Test images of each class that were predicted right, shape (C,).
        support: Test images of each class, shape (C,).
        predicted: Predictions of each class, shape (C,).
        train_counts: Training images of each class, shape (C,). Without them the labels are taken
            to be in the order of decreasing training images.

    Returns:
        Fractions in [0, 1] by name; ``dead_classes`` is a number of classes.

    Raises:
        UserError: If there is no test image.
    """
    hits, images, claims = as_array(true_positives), as_array(support), as_array(predicted)
    if not images.sum():
        raise UserError("metrics: no test images were seen. Check that the split is not empty.")
    recall = recalls(hits, images)
    seen = recall[images > 0]
    with np.errstate(divide="ignore"):  # a recall of 0 takes both means to 0 through infinity
        hmean, gmean = 1 / (1 / seen).mean(), np.exp(np.log(seen).mean())
    metrics = {
        "accuracy": hits.sum() / images.sum(),
        "mean_recall": seen.mean(),
        "hmean_recall": hmean,
        "gmean_recall": gmean,
        "min_recall": seen.min(),
        "min_coverage": claims.min() / images.sum(),
        "min_ht_recall": np.nan,
        "dead_classes": (seen == 0).sum(),
    }

    order = np.arange(len(images)) if train_counts is None else _order(train_counts)
    if len(order) >= 10:
        parts = np.split(order, [9 * len(order) // 10])
        metrics["min_ht_recall"] = np.min([_mean_recall(recall, part) for part in parts])
    shots = shot_groups([]) if train_counts is None else shot_groups(train_counts)
    ranks = index_groups(len(images) if train_counts is None else train_counts)
    for name, group in {**shots, **ranks}.items():
        metrics[f"{name}_recall"] = _mean_recall(recall, group)
    return {name: float(value) for name, value in metrics.items()}


def as_array(values: Counts) -> npt.NDArray[Any]:
    """Return counts as an array of this process, wherever they are."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


def _order(train_counts: Counts) -> Indices:
    """Return the labels by decreasing count; stable, so that ties keep the order of labels."""
    return np.argsort(-as_array(train_counts).astype(np.int64), kind="stable")


def recalls(true_positives: npt.NDArray[Any], support: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the recall of each class, (C,); NaN for a class without test images."""
    return np.where(support > 0, true_positives / np.maximum(support, 1), np.nan)


def _mean_recall(recall: npt.NDArray[np.float64], group: Indices) -> float:
    values = recall[group]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
