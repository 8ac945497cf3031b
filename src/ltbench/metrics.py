"""Metrics of long-tailed classification, all from one set of integer counts.

The state is O(classes) and integer, so summing it over batches and ranks in any order gives the
same bits; every metric is derived once from the sum, never averaged over batches or ranks.

Recall-type metrics are over the classes that have test images; a class without any is left out. A
class that is never predicted right has recall 0, which makes the harmonic and geometric mean 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from ltbench.errors import UserError

Counts = Tensor | npt.NDArray[Any] | Sequence[int]
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

# Confidences are summed as multiples of 2^-32: exact in any order, room for 2^31 samples.
_FIXED_POINT_BITS = 32


def shot_groups(train_counts: Counts) -> dict[str, Indices]:
    """Group classes by training images: many > 100 >= medium >= 20 > few.

    Liu et al. 2019, arXiv 1904.05160, section 5.

    Args:
        train_counts: Training images of each class, shape (C,).

    Returns:
        Labels by group name; a group may be empty.
    """
    counts = _array(train_counts)
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
    hits, images, claims = _array(true_positives), _array(support), _array(predicted)
    if not images.sum():
        raise UserError("metrics: no test images were seen. Check that the split is not empty.")
    recall = _recall(hits, images)
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


class LongTailMetrics(Metric):
    """Every classification metric of a test set, exact for any batch size and number of ranks.

    Scores are logits or log-probabilities; the prediction is their arg max (the first of equals)
    and the confidence its softmax probability. Pass the logarithm of averaged probabilities.

    The expected calibration error ``ece`` takes equal-width bins ((b-1)/bins, b/bins]: Guo et al.
    2017, arXiv 1706.04599, eq. 3. :func:`metrics_from_counts` defines the rest.

    A row of scores with a NaN, a positive infinity or nothing finite has no prediction. Such rows
    are counted, and :meth:`compute` refuses to give a number.

    Args:
        num_classes: C.
        train_counts: Training images of each class, shape (C,), for the groups; None if unknown.
        bins: Bins of the calibration error, at least 1.

    Raises:
        UserError: If ``train_counts`` has not one count a class.
    """

    full_state_update = False
    is_differentiable = False

    true_positives: Tensor
    support: Tensor
    predicted: Tensor
    bin_counts: Tensor
    bin_hits: Tensor
    bin_confidences: Tensor
    non_finite: Tensor

    def __init__(
        self, num_classes: int, train_counts: Counts | None = None, bins: int = 15
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.train_counts = None if train_counts is None else _array(train_counts)
        self.bins = bins
        if self.train_counts is not None and self.train_counts.shape != (num_classes,):
            raise UserError(
                f"metrics: {num_classes} classes need one training count each, "
                f"got shape {self.train_counts.shape}."
            )
        for name in ("true_positives", "support", "predicted"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
        for name in ("bin_counts", "bin_hits", "bin_confidences"):
            self.add_state(name, torch.zeros(bins, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("non_finite", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Count a batch; nothing is read back from the device.

        Args:
            scores: Logits or log-probabilities, shape (B, C), B may be 0.
            targets: int64 labels, shape (B,).

        Raises:
            ValueError: If a shape does not fit.
        """
        if scores.shape != (len(targets), self.num_classes) or targets.ndim != 1:
            raise ValueError(
                f"scores {tuple(scores.shape)} and targets {tuple(targets.shape)} "
                f"are not (B, {self.num_classes}) and (B,)"
            )
        scores = scores.detach()
        predictions = scores.argmax(1)
        hits = (predictions == targets).long()
        ones = torch.ones_like(hits)
        confidences = scores.softmax(1, dtype=torch.float32).amax(1)
        invalid = confidences.isnan()
        fixed = (confidences.nan_to_num(0) * 2**_FIXED_POINT_BITS).round().long()
        bins = ((fixed * self.bins - 1) >> _FIXED_POINT_BITS).clamp_min(0)

        # Not bincount, which waits for the device, and not in place: in Lightning's evaluation the
        # states are inference tensors, which must not be changed elsewhere.
        self.true_positives = self.true_positives.index_add(0, targets, hits)
        self.support = self.support.index_add(0, targets, ones)
        self.predicted = self.predicted.index_add(0, predictions, ones)
        self.bin_counts = self.bin_counts.index_add(0, bins, ones)
        self.bin_hits = self.bin_hits.index_add(0, bins, hits)
        self.bin_confidences = self.bin_confidences.index_add(0, bins, fixed)
        self.non_finite = self.non_finite + invalid.sum()

    def compute(self) -> dict[str, Tensor]:
        """Derive every metric by name, as float64 scalars on the CPU.

        Raises:
            UserError: If no sample was seen, or a sample had no finite scores.
        """
        self._require_finite()
        counts = (self.true_positives, self.support, self.predicted)
        metrics = metrics_from_counts(*counts, self.train_counts)
        gaps = _array(self.bin_hits) - _array(self.bin_confidences) / 2**_FIXED_POINT_BITS
        metrics["ece"] = float(np.abs(gaps).sum() / _array(self.bin_counts).sum())
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}

    def per_class_recall(self) -> Tensor:
        """Return the recall of each class, shape (C,), float64; NaN where there is no test image.

        Like :meth:`compute` it sums over the ranks, so every rank has to call it.

        Raises:
            UserError: If a sample had no finite scores.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            self._require_finite()
            return torch.from_numpy(_recall(_array(self.true_positives), _array(self.support)))

    def _require_finite(self) -> None:
        if invalid := int(self.non_finite):
            raise UserError(
                f"metrics: the scores of {invalid} of {int(self.support.sum())} samples are NaN or "
                "infinite, so they predict no class.\nThe model has diverged: lower the learning "
                "rate, or train in bf16 or fp32."
            )


def _array(values: Counts) -> npt.NDArray[Any]:
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values)


def _order(train_counts: Counts) -> Indices:
    """Return the labels by decreasing count; stable, so that ties keep the order of labels."""
    return np.argsort(-_array(train_counts).astype(np.int64), kind="stable")


def _recall(true_positives: npt.NDArray[Any], support: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.where(support > 0, true_positives / np.maximum(support, 1), np.nan)


def _mean_recall(recall: npt.NDArray[np.float64], group: Indices) -> float:
    values = recall[group]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
