"""The geometry of features and classifier, class by class: norms, spread, neural collapse.

Neural collapse: Papyan, Han and Donoho 2020, arXiv 2008.08186. In a balanced set, late in training,
features shrink to their class means, and means and classifier to one simplex; a long tail bends it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from ltbench import escaping
from ltbench.analysis.result import BLUE, COLOURS, Result, figure
from ltbench.analysis.subject import Subject
from ltbench.methods.parts.features import FrozenFeatures
from ltbench.models import penultimate

Values = NDArray[np.float64]
PICTURED = 10  # classes in the picture, at most
POINTS = 100  # images of each


def analyse(subject: Subject, split: str = "train") -> Result:
    """Measure the features that the classifier sees, in one pass over a split.

    Heads on the same network read them from its run folder, and leave them there.

    Args:
        subject: A network with a linear or a cosine classifier.
        split: Which split.
    """
    heads = [*penultimate.classifiers(subject.net).values()]
    weight = torch.cat([head.weight for head in heads], 1).detach().double().cpu().numpy()
    weight /= len(heads)
    order = subject.by_frequency(split)
    shown = _shown(order)
    moments = Moments(subject.model.num_classes, weight.shape[1])
    samples: dict[int, list[Tensor]] = {c: [] for c in shown}
    labels = subject.labels(split)
    checkpoint = subject.output.place.checkpoint
    frozen = FrozenFeatures(subject.net, subject.data, checkpoint, subject.device)
    parts = torch.split(frozen.of(split), 4096), torch.split(torch.from_numpy(labels), 4096)
    for some, label in zip(*parts, strict=True):
        features = some.double()
        moments.add(features, label)
        for c in shown:
            samples[c].extend(features[label == c][: POINTS - len(samples[c])])
    table = _table(subject, moments, weight, order)
    collapse = neural_collapse(moments, weight)
    counts = table["train_images"].to_numpy()
    with_count = {
        name: _rank_correlation(counts, table[name].to_numpy())
        for name in ("feature_norm", "centre_distance", "within_variance", "weight_norm")
    }
    points = {c: np.stack([p.numpy() for p in vectors]) for c, vectors in samples.items()}
    explained, projected = project(moments, points)
    return Result(
        title=f"Features and classifier by class ({len(labels)} {split} images)",
        summary=[
            *((MEASURES[name], f"{value:.3g}") for name, value in collapse.items()),
            *(
                (f"rank correlation of {name.replace('_', ' ')} with training images", f"{r:.2f}")
                for name, r in with_count.items()
            ),
        ],
        values={
            "collapse": collapse,
            "correlation_with_count": with_count,
            "explained_by_picture": explained.tolist(),
        },
        figures={"": _by_class(table), "pca": _picture(subject, projected, explained)},
        tables={"": table},
    )


MEASURES = {
    "within_over_between": "NC1: variance within classes over between, tr(Sw pinv(Sb)) / C",
    "norm_spread": "NC2: spread of the distances of class means from their centre",
    "cosine_gap": "NC2: mean distance of their cosines from -1 / (C - 1)",
    "weight_gap": "NC3: distance of classifier and class means, each of norm 1",
}


@dataclass
class Moments:
    """Sums over features that all measures are computed from, for C classes and d features."""

    classes: int  # C
    width: int  # d

    def __post_init__(self) -> None:
        self.counts = torch.zeros(self.classes, dtype=torch.float64)
        self.norms = torch.zeros(self.classes, dtype=torch.float64)
        self.squares = torch.zeros(self.classes, dtype=torch.float64)
        self.sums = torch.zeros(self.classes, self.width, dtype=torch.float64)
        self.outer = torch.zeros(self.width, self.width, dtype=torch.float64)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add float64 features (B, d) with labels (B,)."""
        self.counts += torch.bincount(labels, minlength=self.classes)
        self.norms.index_add_(0, labels, features.norm(dim=1))
        self.squares.index_add_(0, labels, (features**2).sum(1))
        self.sums.index_add_(0, labels, features)
        self.outer += features.T @ features

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which classes have images, (C,)."""
        return (self.counts > 0).numpy()

    @property
    def means(self) -> Values:
        """Mean feature per class, (C, d); zero if it has no image."""
        return (self.sums / self.counts.clamp_min(1)[:, None]).numpy()

    @property
    def within(self) -> Values:
        """Mean squared distance of each class's features from their mean, (C,)."""
        mean_square = (self.squares / self.counts.clamp_min(1)).numpy()
        return np.asarray((mean_square - (self.means**2).sum(1)).clip(0))


def neural_collapse(moments: Moments, weight: Values) -> dict[str, float]:
    """Return how far features and classifier (C, d) are from neural collapse, by :data:`MEASURES`.

    Classes have equal weight, however many images they have: arXiv 2008.08186, section 2.
    """
    present = moments.present
    means, counts = moments.means[present], moments.counts.numpy()[present]
    classes = len(means)
    weighted = means * np.sqrt(counts)[:, None]
    within = (moments.outer.numpy() - weighted.T @ weighted) / counts.sum()
    centred = means - means.mean(0)
    between = centred.T @ centred / classes
    lengths = np.linalg.norm(centred, axis=1)
    unit = centred / lengths[:, None]
    cosines = unit @ unit.T
    apart = cosines[~np.eye(classes, dtype=bool)]
    weights = weight[present] - weight[present].mean(0)
    gap = weights / np.linalg.norm(weights) - centred / np.linalg.norm(centred)
    return {
        "within_over_between": float(np.trace(within @ np.linalg.pinv(between)) / classes),
        "norm_spread": float(lengths.std() / lengths.mean()),
        "cosine_gap": float(np.abs(apart + 1 / (classes - 1)).mean()),
        "weight_gap": float(np.linalg.norm(gap)),
    }


def project(moments: Moments, points: Mapping[int, Values]) -> tuple[Values, dict[int, Values]]:
    """Project features of some classes, (n, d), onto the first two principal components of all.

    Returns:
        Share of the variance along each of the two, and the projections, (n, 2) per class.
    """
    total = float(moments.counts.sum())
    mean = moments.sums.sum(0).numpy() / total
    covariance = moments.outer.numpy() / total - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    first = vectors[:, :-3:-1]
    explained = values[:-3:-1] / values.clip(0).sum()
    return explained, {c: (features - mean) @ first for c, features in points.items()}


def _shown(order: list[int]) -> list[int]:
    if len(order) <= PICTURED:
        return order
    half = PICTURED // 2
    return [*order[:half], *order[-half:]]


def _table(subject: Subject, moments: Moments, weight: Values, order: list[int]) -> pd.DataFrame:
    counts, means = moments.counts.numpy(), moments.means
    centre = means[moments.present].mean(0)
    columns = {
        "class": np.arange(moments.classes),
        "name": subject.classes.names,
        "group": subject.classes.rank_of,
        "train_images": subject.classes.counts,
        "images": counts.astype(int),
        "feature_norm": (moments.norms / moments.counts.clamp_min(1)).numpy(),
        "centre_distance": np.linalg.norm(means - centre, axis=1),
        "within_variance": moments.within,
        "weight_norm": np.linalg.norm(weight, axis=1),
    }
    return pd.DataFrame(columns).iloc[order].reset_index(drop=True)


def _rank_correlation(counts: NDArray[np.int64], values: Values) -> float:
    if len(np.unique(counts)) < 2 or len(np.unique(values)) < 2:
        return float("nan")
    return float(spearmanr(counts, values).statistic)


def _by_class(table: pd.DataFrame) -> Figure:
    drawn, panels = figure(2, 2, width=3.6, height=2.6, sharex=True)
    for axes, (name, label) in zip(
        (axes for row in panels for axes in row),
        {
            "feature_norm": "mean norm of the features",
            "weight_norm": "norm of the classifier's row",
            "centre_distance": "distance of the class mean\nfrom the centre",
            "within_variance": "variance within the class",
        }.items(),
        strict=True,
    ):
        axes.plot(table["train_images"], table[name], "o", color=BLUE, markersize=4, alpha=0.7)
        axes.set_ylabel(label, fontsize=9)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0, 1.1 * table[name].max())
    for axes in panels[-1]:
        axes.set_xlabel("training images of the class")
    return drawn


def _picture(subject: Subject, points: Mapping[int, Values], explained: Values) -> Figure:
    drawn, ((axes,),) = figure(width=6.4, height=4.6)
    markers = "os^Dv"
    for number, (c, where) in enumerate(points.items()):
        axes.scatter(
            where[:, 0], where[:, 1], s=12, alpha=0.7, linewidths=0,
            color=COLOURS[number % len(COLOURS)],
            marker=markers[(number // len(COLOURS)) % len(markers)],
            label=escaping.drawn(f"{subject.classes.names[c]} ({subject.classes.counts[c]})"),
        )  # fmt: skip
    first, second = 100 * explained
    axes.set(
        xlabel=f"first principal component ({first:.0f} % of the variance)",
        ylabel=f"second principal component ({second:.0f} %)",
    )
    axes.legend(
        frameon=False, fontsize=8, title="class (training images)", title_fontsize=8,
        loc="center left", bbox_to_anchor=(1, 0.5),
    )  # fmt: skip
    return drawn
