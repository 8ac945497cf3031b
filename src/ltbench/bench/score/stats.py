"""Whether rows differ beyond chance: intervals, paired bootstrap, Holm, shared ranks.

Two things make a number uncertain. Another seed gives another network: that spread is seen between
the runs of a row. Another test set gives other images: that spread is seen by drawing the images of
each class again, with replacement, the same ones for every row (a paired bootstrap; Efron and
Tibshirani 1993, chapter 16). The error of a difference between two rows combines both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats takes a second to import

Floats = NDArray[np.float64]
Interval = tuple[float, float]

LEVEL = 0.95
REPLICATES = 1000
SMALL_CLASS = 30  # test images, below which a recall is too coarse for the min recall to mean much


@dataclass(frozen=True)
class Estimate:
    """A metric of a row."""

    mean: float  # over seeds
    seeds: Interval | None  # 95 % t-interval of the mean; None for one seed
    images: Interval | None  # 95 % bootstrap interval over test images; None if unknown
    values: Sequence[float]  # per seed

    @property
    def interval(self) -> Interval | None:
        """The interval that is shown: over seeds, or over test images if there is one seed."""
        return self.seeds or self.images


def t_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95 % interval of a mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * error
    return mean - half, mean + half


class Resampler:
    """Draws of test images with labels (N,), stratified by class, the same for every row.

    There are B = ``replicates`` draws; ``seed`` is theirs.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        num_classes: int,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> None:
        self.support = np.bincount(labels, minlength=num_classes)
        self.replicates = replicates
        self._order = np.argsort(labels, kind="stable")
        draws = np.random.default_rng(seed)
        self._weights = [
            _weights(draws, int(images), replicates) for images in self.support[self.support > 0]
        ]

    def recalls(self, correct: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the recalls in each draw, (S, B, C); NaN for a class without images.

        ``correct``, (S, N), says whether each of S runs is right about each image.
        """
        recalls = np.full((len(correct), self.replicates, len(self.support)), np.nan, np.float32)
        for c, hits, weights in self._classes(correct):
            recalls[:, :, c] = (hits.astype(np.float32) @ weights) / len(weights)
        return recalls

    def _classes(
        self, correct: NDArray[np.bool_]
    ) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.float32]]]:
        ends = np.cumsum(self.support)
        for c, weights in zip(np.flatnonzero(self.support), self._weights, strict=True):
            images = self._order[ends[c] - self.support[c] : ends[c]]
            yield int(c), correct[:, images], weights


def _weights(draws: np.random.Generator, images: int, replicates: int) -> NDArray[np.float32]:
    """Return how often each image is in each draw, (images, B)."""
    drawn = draws.integers(0, images, (images, replicates)) * replicates + np.arange(replicates)
    counts = np.bincount(drawn.ravel(), minlength=images * replicates)
    return counts.reshape(images, replicates).astype(np.float32)


def percentiles(replicates: NDArray[np.floating]) -> Interval:
    """Return the 95 % percentile interval of bootstrap replicates (B,)."""
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """All rows against each other, by one metric; a row without the metric comes last."""

    order: NDArray[np.intp]  # (R,) rows by rank, then by mean
    ranks: NDArray[np.intp]  # (R,) 1 + the number of rows that are better beyond chance
    p: Floats  # (R, R) two-sided, after Holm's correction; NaN if unknown


def compare(
    values: Sequence[Sequence[float]],
    replicates: Sequence[NDArray[np.floating] | None],
    higher_is_better: bool = True,
) -> Comparison:
    """Compare rows pairwise, and let those that cannot be told apart share a rank.

    A difference of means over its error (:func:`_errors`) is taken as Student's t. Holm's step-down
    correction is over all pairs.

    Args:
        values: For each row, the metric of each seed; NaN if it has none.
        replicates: For each row, the mean over seeds in each draw of images, (B,); None if unknown.
        higher_is_better: Whether larger values are better.
    """
    means = np.array([np.mean(of_row) for of_row in values])
    errors, freedom = _errors(values, replicates)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(np.subtract.outer(means, means)) / errors
    p = 2 * stdtr(freedom, -t)
    p = np.where(np.isclose(means[:, None], means[None, :]), 1.0, p)
    upper = np.triu_indices(len(means), 1)
    corrected = np.ones_like(p)
    corrected[upper] = holm(p[upper])
    corrected.T[upper] = corrected[upper]
    goodness = means if higher_is_better else -means
    better = (corrected < 1 - LEVEL) & np.greater.outer(goodness, goodness)
    unknown = np.isnan(goodness)
    ranks = np.where(unknown, 1 + (~unknown).sum(), 1 + better.sum(0))
    return Comparison(np.lexsort((-goodness, ranks)), ranks, corrected)


def difference(
    values: tuple[Sequence[float], Sequence[float]],
    replicates: tuple[NDArray[np.floating] | None, NDArray[np.floating] | None],
) -> tuple[float, Interval | None]:
    """Return the mean of one row minus that of another, and its 95 % interval.

    The arguments are as in :func:`compare`, for two rows. The interval is by Student's t
    (:func:`_errors`), None if the error is unknown.
    """
    mean = float(np.mean(values[0]) - np.mean(values[1]))
    errors, freedom = _errors(values, replicates)
    half = float(stdtrit(freedom[0, 1], (1 + LEVEL) / 2) * errors[0, 1])
    return mean, (mean - half, mean + half) if np.isfinite(half) else None


def _errors(
    values: Sequence[Sequence[float]], replicates: Sequence[NDArray[np.floating] | None]
) -> tuple[Floats, Floats]:
    """Return the standard error of each difference of means, (R, R), and its degrees of freedom.

    For rows i and j with n seeds each, the squared error is ``V_ij + s_i^2/n_i + s_j^2/n_j``: V_ij
    is the variance of the difference over the paired bootstrap of images, s^2 the variance between
    seeds. The degrees of freedom are those of Welch and Satterthwaite, in which V_ij has infinitely
    many. With one seed s is unknown and left out; if V_ij is unknown it is left out too, provided
    that both rows have several seeds, and the error is then too small; else the error is NaN.
    """
    several = np.array([len(of_row) > 1 for of_row in values])
    variance = np.array([np.var(v, ddof=1) / len(v) if len(v) > 1 else 0.0 for v in values])
    terms = variance**2 / np.array([max(len(v) - 1, 1) for v in values])
    images = _paired_variances(replicates)
    images = np.where(np.isnan(images) & np.logical_and.outer(several, several), 0.0, images)
    squared = images + np.add.outer(variance, variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = squared**2 / np.add.outer(terms, terms)
    return np.sqrt(squared), np.where(np.isfinite(freedom), freedom, 1e9)


def _paired_variances(replicates: Sequence[NDArray[np.floating] | None]) -> Floats:
    """Return the variance of each difference over the draws, (R, R); NaN if unknown."""
    known = [r is not None for r in replicates]
    variances = np.full((len(replicates), len(replicates)), np.nan)
    if any(known):
        covariance = np.atleast_2d(np.cov(np.array([r for r in replicates if r is not None])))
        own = np.diag(covariance)
        variances[np.ix_(known, known)] = np.maximum(
            own[:, None] + own[None, :] - 2 * covariance, 0
        )
    return variances


def holm(p: Floats) -> Floats:
    """Correct p-values for their number (Holm 1979); NaN stays NaN and does not count."""
    corrected = np.full_like(p, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return corrected
