"""Metrics of generated images: the Fréchet distance of features, and the balance of classes.

States are sums, so they add up over batches and ranks in any order: integers exactly, moments in
float64. Every metric is derived once from the sums.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from ltbench.errors import UserError

Array = npt.NDArray[np.float64]

_SMOOTHING = 1e-5  # of the class shares, as in the code of arXiv 2106.09402


def kl_to_uniform(class_counts: npt.ArrayLike) -> float:
    """Return KL(class distribution || uniform) in nats: 0 is balanced, ln K all of one class.

    sum_k (q_k + e) ln((q_k + e) / (1 / K + e)) with e = 1e-5: arXiv 2106.09402. The arguments are
    generated images per class, shape (K,), at least one in all.
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    shares = counts / counts.sum() + _SMOOTHING
    return float((shares * np.log(shares / (1 / len(counts) + _SMOOTHING))).sum())


def min_class_share(class_counts: npt.ArrayLike) -> float:
    """Return the share of the rarest class, in [0, 1 / K], from images per class (K,)."""
    counts = np.asarray(class_counts, dtype=np.float64)
    return float(counts.min() / counts.sum())


class GeneratedClasses(Metric):
    """The class distribution of generated images, according to a classifier of K classes."""

    full_state_update = False
    is_differentiable = False

    counts: Tensor
    confidence: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("confidence", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor) -> None:
        """Count a batch of class probabilities, shape (B, K)."""
        confidences, predicted = probabilities.max(1)
        self.counts = self.counts.index_add(0, predicted, torch.ones_like(predicted))
        self.confidence = self.confidence + confidences.double().sum()

    def compute(self) -> tuple[npt.NDArray[np.int64], dict[str, float]]:
        """Return the images of each predicted class, (K,), and the metrics that follow from them.

        They are ``kl_to_uniform``, ``min_class_share`` and the mean ``confidence``.
        """
        counts = self.counts.cpu().numpy()
        return counts, {
            "kl_to_uniform": kl_to_uniform(counts),
            "min_class_share": min_class_share(counts),
            "confidence": float(self.confidence) / int(counts.sum()),
        }


@dataclass(frozen=True)
class Moments:
    """Number, mean and unbiased covariance of feature vectors of length d."""

    count: int
    mean: Array  # (d,)
    covariance: Array  # (d, d)


class FeatureSums(NamedTuple):
    """Sums over feature vectors, separately for G groups of classes."""

    number: Array  # (G,) vectors
    total: Array  # (G, d) their sum
    outer: Array  # (G, d, d) sum of their outer products

    def moments(self, group: int | None = None) -> Moments:
        """Return the moments of one group, or of all together.

        Raises:
            UserError: There are fewer than two vectors, or one of them is not finite.
        """
        groups = slice(None) if group is None else slice(group, group + 1)
        count = int(self.number[groups].sum())
        total, outer = self.total[groups].sum(0), self.outer[groups].sum(0)
        if count < 2:
            raise UserError(f"a Fréchet distance needs at least two images per group, not {count}.")
        if not np.isfinite(outer).all():
            raise UserError("the features of some images are not finite: the generator diverged.")
        mean = total / count
        return Moments(count, mean, (outer - np.outer(total, mean)) / (count - 1))


class FeatureMoments(Metric):
    """Running sums of feature vectors, exact for any batch size and number of ranks.

    Args:
        features: Length d of a vector.
        groups: (K,) group of each class, 0 to G - 1 (:func:`class_groups`).
    """

    full_state_update = False
    is_differentiable = False

    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, features: int, groups: npt.NDArray[np.int64]) -> None:
        super().__init__()
        self.groups = torch.from_numpy(groups)
        self.size = int(groups.max()) + 1
        for name, shape in (("count", ()), ("total", (features,)), ("outer", (features, features))):
            zeros = torch.zeros(self.size, *shape, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add feature vectors (B, d) of images of classes (B,)."""
        group = self.groups.to(labels.device)[labels]
        features = features.double()
        count, total, outer = self.count.clone(), self.total.clone(), self.outer.clone()
        for g in range(self.size):
            part = features[group == g]
            count[g] += len(part)
            total[g] += part.sum(0)
            outer[g] += part.T @ part
        self.count, self.total, self.outer = count, total, outer

    def compute(self) -> FeatureSums:
        """Return the sums over all batches and ranks."""
        return FeatureSums(*(s.cpu().numpy() for s in (self.count, self.total, self.outer)))


def class_groups(class_counts: npt.NDArray[np.int64], features: int) -> npt.NDArray[np.int64]:
    """Give each class with enough reference images a group of its own, and all others group 0.

    A covariance of d features from d images or fewer is singular, and a distance from it says more
    about the number of images than about the images.

    Args:
        class_counts: Reference images per class, (K,).
        features: Length d of a feature vector.

    Returns:
        (K,) group of each class.
    """
    enough = class_counts > features
    return np.where(enough, np.cumsum(enough), 0)


def frechet_distance(one: Moments, other: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)): Heusel et al. 2017, arXiv 1706.08500, eq. 6.

    The trace of the root is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which
    is symmetric, so singular covariances need no correction.
    """
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ other.covariance @ root).clip(0)
    gap = one.mean - other.mean
    traces = np.trace(one.covariance) + np.trace(other.covariance)
    return float(max(gap @ gap + traces - 2 * np.sqrt(crossed).sum(), 0))


def per_class_distances(
    generated: FeatureSums, reference: FeatureSums, groups: npt.NDArray[np.int64]
) -> list[float]:
    """Return the Fréchet distance of each class, NaN where either side has too few images.

    Args:
        generated: Sums of the generated images, by predicted class.
        reference: Sums of the reference images, by class.
        groups: (K,) result of :func:`class_groups`.
    """
    enough = generated.total.shape[1]
    return [
        frechet_distance(generated.moments(g), reference.moments(g))
        if g and generated.number[g] > enough
        else float("nan")
        for g in groups.tolist()
    ]
