"""Metrics of long-tailed classification, all from one set of integer counts.

The state is O(classes) and integer, so summing it over batches and ranks in any order gives the
same bits; :mod:`ltbench.metrics.catalogue` derives every metric once from the sum.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ltbench.errors import UserError
from ltbench.metrics.catalogue import metrics_from_counts
from ltbench.metrics.counts import Counts, as_array, recalls

# Confidences are summed as multiples of 2^-32: exact in any order, room for 2^31 samples.
_FIXED_POINT_BITS = 32


class LongTailMetrics(Metric):
    """Every classification metric of a test set, exact for any batch size and number of ranks.

    Scores are logits or log-probabilities; the prediction is their arg max (the first of equals)
    and the confidence its softmax probability. Pass the logarithm of averaged probabilities.

    The expected calibration error ``ece`` takes equal-width bins ((b-1)/bins, b/bins]: Guo et al.
    2017, arXiv 1706.04599, eq. 3. :data:`~ltbench.metrics.catalogue.METRICS` defines the rest.

    A row of scores with a NaN, a positive infinity or nothing finite has no prediction. Such rows
    are counted, and :meth:`compute` raises if there is one.

    Args:
        num_classes: C.
        train_counts: Training images per class, shape (C,), for the groups; None if unknown.
        bins: Bins of the calibration error, at least 1.
        head_mid_tail: Numbers of head, mid and tail classes; default: 30/40/30 %.

    Raises:
        UserError: If ``train_counts`` does not have one count per class.
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
        self,
        num_classes: int,
        train_counts: Counts | None = None,
        bins: int = 15,
        head_mid_tail: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.train_counts = None if train_counts is None else as_array(train_counts)
        self.bins = bins
        self.head_mid_tail = head_mid_tail
        if self.train_counts is not None and self.train_counts.shape != (num_classes,):
            raise UserError(
                f"metrics: train_counts needs one count for each of {num_classes} classes, "
                f"but has shape {self.train_counts.shape}."
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
            UserError: If there was no sample, or a sample without finite scores.
        """
        self._require_finite()
        counts = (self.true_positives, self.support, self.predicted)
        confidences = as_array(self.bin_confidences) / 2**_FIXED_POINT_BITS
        bins = (as_array(self.bin_counts), as_array(self.bin_hits), confidences)
        metrics = metrics_from_counts(*counts, self.train_counts, self.head_mid_tail, bins)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}

    def per_class_recall(self) -> Tensor:
        """Return the recall per class, shape (C,), float64; NaN where there is no test image.

        Like :meth:`compute` it sums over the ranks, so every rank has to call it.

        Raises:
            UserError: If a sample had no finite scores.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            self._require_finite()
            return torch.from_numpy(recalls(as_array(self.true_positives), as_array(self.support)))

    def _require_finite(self) -> None:
        if invalid := int(self.non_finite):
            raise UserError(
                f"metrics: the scores of {invalid} of {int(self.support.sum())} samples are NaN or "
                "infinite, so they predict no class.\nThe model has diverged: lower the learning "
                "rate, or train in bf16 or fp32."
            )
