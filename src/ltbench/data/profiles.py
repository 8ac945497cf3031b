"""Which images make the long tail: class counts, the subset, and its validation split.

NumPy and private generators only: the same arguments give the same indices on any machine.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ltbench.errors import UserError
from ltbench.naming import Name, resolve

Indices = npt.NDArray[np.int64]

PROFILES: dict[str, Callable[[int, int], float] | str] = {
    "exp": lambda c, num_classes: c / (num_classes - 1),
    "step": lambda c, num_classes: float(c >= num_classes // 2),
    "pareto": lambda c, num_classes: math.log(c + 1) / math.log(num_classes),
    "balanced": lambda c, num_classes: 0.0,
}
"""How far along the tail class c of C is, 0 to 1: it keeps int(largest * IF ** -position)."""


def position_of(kind: Name) -> Callable[[int, int], float]:
    """Return the function of a profile, which may be the user's own.

    Raises:
        UserError: There is no such profile.
    """
    position: Callable[[int, int], float] = resolve("profile", kind, PROFILES)
    return position


def class_counts(
    largest: int, num_classes: int, imbalance_factor: float, kind: Name = "exp"
) -> list[int]:
    r"""Training images per class under a named profile, class 0 first and never increasing.

    With f = 1 / `imbalance_factor`, n = `largest` and C = `num_classes`, in float64, truncated:

    * ``exp``: n f^(c / (C - 1)), the profile of CIFAR-LT (Cao et al., arXiv 1906.07413);
    * ``step``: n for the first C // 2 classes, n f for the others (same source);
    * ``pareto``: n (c + 1)^(-a) with a = ln(IF) / ln(C), the rank-size rule of a Pareto law,
      its exponent set so that the ends are n and n f (the family of ImageNet-LT, arXiv
      1904.05160, whose own counts come from its list file);
    * ``balanced``: n for every class; the imbalance factor has no effect.

    Args:
        largest: Images of class 0, at least 1.
        num_classes: Number of classes, at least 2.
        imbalance_factor: Largest count over smallest count before truncation, at least 1.
        kind: A name of :data:`PROFILES`, or the import path of your own function ``position(c,
            num_classes)``.

    Returns:
        `num_classes` counts, each at least 1.

    Raises:
        UserError: An unknown `kind`, an argument out of range, or a class without images.
    """
    position = position_of(kind)
    if largest < 1 or num_classes < 2:
        raise UserError(
            f"profile '{kind}' needs at least 2 classes and 1 image, not {num_classes} classes "
            f"with at most {largest} images."
        )
    if not (imbalance_factor >= 1 and math.isfinite(imbalance_factor)):
        raise UserError(
            f"profile '{kind}': imbalance factor {imbalance_factor} must be at least 1: it is the "
            "largest class count over the smallest."
        )
    f = 1 / imbalance_factor
    counts = [int(largest * f ** position(c, num_classes)) for c in range(num_classes)]
    if min(counts) < 1:
        # largest * (1 / largest) can round to just below 1, and would then be cut to 0.
        limit = largest if int(largest * (1 / largest)) == 1 else largest - 1
        raise UserError(
            f"profile '{kind}' leaves class {counts.index(0)} without images: counts "
            f"{_abbreviate(counts)} for largest class {largest}, imbalance factor "
            f"{imbalance_factor:g}. Use an imbalance factor of at most {limit}."
        )
    return counts


def select(labels: npt.ArrayLike, counts: Sequence[int] | None, seed: int = 0) -> Indices:
    """Pick the long-tailed subset that the field uses; seed 0 gives the published one.

    Class by class in ascending order, one legacy `numpy.random.RandomState` shuffles the indices of
    the class in place, and the first n_c are picked. These are the draws of the global generator in
    the code of LDAM-DRW (arXiv 1906.07413), made with a private one.

    Args:
        labels: (n,) integer labels; a negative one means unlabelled and is never picked.
        counts: Images to pick per class, or None for the natural profile: all labelled images.
        seed: Seed of the subset, 0 to 2**32 - 1; not the seed of the training run.

    Returns:
        Indices into `labels`, by class in ascending order (simply ascending for None).

    Raises:
        UserError: A class has fewer images than its count, or `seed` is out of range.
    """
    labels = np.asarray(labels)
    if counts is None:
        return np.flatnonzero(labels >= 0).astype(np.int64)
    if not 0 <= seed < 2**32:
        raise UserError(f"subset seed {seed} is out of range: it must be 0 to {2**32 - 1}.")
    generator = np.random.RandomState(seed)
    picked = []
    for c, (members, count) in enumerate(zip(_by_class(labels, len(counts)), counts, strict=True)):
        if count > len(members):
            raise UserError(
                f"class {c} has {len(members)} images, but the profile asks for {count}. "
                "Lower data.largest, or use the profile 'natural'."
            )
        generator.shuffle(members)
        picked.append(members[:count])
    return np.concatenate(picked)


def split_validation(
    labels: npt.ArrayLike, indices: npt.ArrayLike, fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Split training indices in two, stratified by class.

    A class with at least two images gives at least one to each side; a single image stays in
    training. The order of `indices` does not matter.

    Args:
        labels: (n,) integer labels of the whole source.
        indices: Indices into `labels` to split.
        fraction: Share of each class that goes to validation, between 0 and 1, both excluded.
        seed: Seed of the private generator, at least 0.

    Returns:
        `(train, val)`, both ascending; together they are `indices`.

    Raises:
        UserError: `fraction` or `seed` is out of range.
    """
    if not 0 < fraction < 1:
        raise UserError(f"validation fraction {fraction} must be above 0 and below 1.")
    if seed < 0:
        raise UserError(f"validation seed {seed} is out of range: it must be 0 or more.")
    indices = np.sort(np.asarray(indices, dtype=np.int64))
    picked = np.asarray(labels)[indices]
    generator = np.random.default_rng(seed)
    in_val = np.zeros(len(indices), dtype=bool)
    for members in _by_class(picked, int(picked.max(initial=-1)) + 1):
        if len(members) > 1:
            size = min(max(round(fraction * len(members)), 1), len(members) - 1)
            in_val[generator.permutation(members)[:size]] = True
    return indices[~in_val], indices[in_val]


def index_hash(indices: npt.ArrayLike) -> str:
    """SHA-256, in hex, of the indices in order, as little-endian int64 bytes."""
    return hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()


def imbalance_factor(counts: npt.ArrayLike) -> float:
    """Largest class count over the smallest; infinite if a class has no images."""
    counts = np.asarray(counts)
    return float(counts.max() / counts.min()) if counts.min() > 0 else math.inf


def _by_class(labels: npt.NDArray[np.integer], num_classes: int) -> list[Indices]:
    """Ascending positions of each class 0..num_classes-1, found with a single sort."""
    order = np.argsort(labels, kind="stable").astype(np.int64)
    bounds = np.searchsorted(labels[order], np.arange(num_classes + 1))
    return [order[start:stop] for start, stop in pairwise(bounds)]


def _abbreviate(counts: list[int]) -> str:
    """A list of counts short enough for one line."""
    if len(counts) <= 12:
        return ", ".join(map(str, counts))
    return f"{_abbreviate(counts[:4])}, ..., {_abbreviate(counts[-4:])}"
