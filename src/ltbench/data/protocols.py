"""Which images are labelled, unlabelled, validation and test: published protocols, and your own.

A protocol says how many images of each class go where. Which ones is a seeded permutation of each
class: labelled images come first, then unlabelled ones, and validation images from its end. Other
unlabelled counts thus leave the labelled and the validation images as they are.

The labels of unlabelled images stay in the source: their :class:`Split` holds -1 for each image, in
random order, so that a position in it does not give the class away.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from ltbench.data import profiles
from ltbench.data.sources.base import Source
from ltbench.data.splits import Partition, Split
from ltbench.errors import UserError

Counts = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sizes:
    """Images per class, (K,) each.

    Attributes:
        labelled: Training images that keep their labels.
        unlabelled: Training images that lose them; None: the source's own ``unlabelled`` images.
        val: Validation images.
        val_from: Split of the source that these are taken from.
        shared: Whether labelled images are unlabelled ones too; else the two are disjoint.
    """

    labelled: Counts
    unlabelled: Counts | None
    val: Counts
    val_from: Literal["train", "test"] = "train"
    shared: bool = False


class Protocol(Partition):
    """How many images of each class are labelled, unlabelled and held out."""

    def sizes(self, source: Source) -> Sizes:
        """Return how many images of each class go where.

        Raises:
            UserError: A class would have no labelled or no unlabelled images.
        """
        raise NotImplementedError

    def split(self, source: Source, seed: int) -> dict[str, Split]:
        """See :meth:`Partition.split`."""
        if seed < 0:
            raise UserError(f"data.subset_seed is {seed}; it must be at least 0.")
        sizes = self.sizes(source)
        drawn = _draw(source, "train", sizes, seed)
        splits = {"train": Split.of(source, "train", drawn["labelled"])}
        if sizes.unlabelled is not None:
            splits["unlabelled"] = _hidden("train", drawn["unlabelled"], seed)
        elif source.has("unlabelled"):
            splits["unlabelled"] = _hidden(
                "unlabelled", np.arange(len(source.labels("unlabelled"))), seed
            )
        else:
            raise UserError(
                f"{source.display_name} has no unlabelled images of its own: tell the protocol how "
                "many training images lose their labels (m1, or a share for labelled)."
            )
        held_out = drawn["val"]
        if sizes.val_from == "test":
            held_out = _draw(source, "test", sizes, seed)["val"]
        if len(held_out):
            splits["val"] = Split.of(source, sizes.val_from, held_out)
        elif source.has("val"):
            splits["val"] = Split.of(source, "val")
        if source.has("test"):
            splits["test"] = Split.of(source, "test")
            if sizes.val_from == "test":
                rest = np.setdiff1d(splits["test"].indices, held_out)
                splits["test"] = Split.of(source, "test", rest)
        return splits


@dataclass
class ReleasedProtocol(Protocol):
    """Counts that fall exponentially, as in the code of CSST (2304.14738) and SelMix (2403.18301).

    Class c of K has n1 rho_l^(-c/(K-1)) labelled and m1 rho_u^(-c/(K-1)) unlabelled images, rounded
    down. Float rounding gives their code one image less if this is a whole number: in the last
    class of CIFAR-100 (14 for 15), and of CIFAR-10 with the inverted prior (2,999 for 3,000).

    Args:
        n1: Labelled images of class 0.
        rho_l: n1 over the labelled images of the last class, at least 1.
        m1: Unlabelled images of class 0, taken from the training images; null takes the source's
            own unlabelled images (STL-10, a folder ``ROOT/unlabelled``), whose prior is unknown.
        rho_u: m1 over the unlabelled images of the last class: ``rho_l`` gives the same prior, 1
            the uniform one; below 1 the counts grow, 1 / ``rho_l`` is the inverted prior.
        val_per_class: Validation images per class, from the remaining training images; 0 holds
            none out. A validation split of the source is used instead, if there is one.
        include_labelled: Use the labelled images as unlabelled ones too, among the m1, as their
            code does on ImageNet-100, where a class has too few images for both.

    Raises:
        UserError: ``include_labelled`` without ``m1``.
    """

    n1: int = 1500
    rho_l: float = 100
    m1: int | None = 3000
    rho_u: float = 100
    val_per_class: int = 500
    include_labelled: bool = False

    def __post_init__(self) -> None:
        if self.include_labelled and self.m1 is None:
            raise UserError("protocol.include_labelled needs protocol.m1.")

    @override
    def sizes(self, source: Source) -> Sizes:
        classes = source.num_classes
        return Sizes(
            _exponential(classes, n1=self.n1, rho_l=self.rho_l),
            None if self.m1 is None else _exponential(classes, m1=self.m1, rho_u=self.rho_u),
            np.full(classes, 0 if source.has("val") else self.val_per_class),
            shared=self.include_labelled,
        )


@dataclass
class PaperProtocol(Protocol):
    """One long tail, cut into labelled and unlabelled images: the tables of CSST (2304.14738).

    Half of the official test set is for validation, stratified; the other half is the test set.

    Args:
        largest: Images of class 0, labelled and unlabelled together.
        rho: ``largest`` over the images of the last class.
        mu: Unlabelled images per labelled one, at least 1; labelled counts are rounded down.

    Raises:
        UserError: ``mu`` is out of range.
    """

    largest: int = 5000
    rho: float = 100
    mu: int = 4

    def __post_init__(self) -> None:
        if self.mu < 1:
            raise UserError(f"protocol.mu is {self.mu}; it must be at least 1.")

    @override
    def sizes(self, source: Source) -> Sizes:
        counts = _exponential(source.num_classes, largest=self.largest, rho=self.rho)
        labelled = counts // (1 + self.mu)
        half = _counts(source, "test") // 2
        return Sizes(_present(source, labelled, "labelled"), counts - labelled, half, "test")


@dataclass
class NaturalProtocol(Protocol):
    """All images of a source, for your own data.

    Args:
        labelled: Share of the training images of each class that keep their labels, at least one
            image; the others are the unlabelled ones. Null keeps all labels and takes the source's
            own unlabelled images (a folder ``ROOT/unlabelled``).
        val: Share of the training images of each class held out for validation, at least one
            image; 0 holds none out. A validation split of the source is used instead.

    Raises:
        UserError: A share is out of range.
    """

    labelled: float | None = 0.2
    val: float = 0.1

    def __post_init__(self) -> None:
        if self.labelled is not None and not 0 < self.labelled < 1:
            raise UserError(
                f"protocol.labelled is {self.labelled}; give a share in (0, 1) or null."
            )
        if not 0 <= self.val < 1:
            raise UserError(f"protocol.val is {self.val}; give a share in [0, 1).")

    @override
    def sizes(self, source: Source) -> Sizes:
        counts = _counts(source, "train")
        held_out = bool(self.val) and not source.has("val")
        val = _share(counts, self.val) if held_out else np.zeros_like(counts)
        if self.labelled is None:
            return Sizes(_present(source, counts - val, "labelled"), None, val)
        labelled = _share(counts - val, self.labelled)
        rest = _present(source, counts - val - labelled, "unlabelled")
        return Sizes(labelled, rest, val)


def _exponential(classes: int, **settings: float) -> Counts:
    """Images per class, from those of the first class and their ratio to those of the last.

    Args:
        classes: Number of classes.
        **settings: The two numbers, by their names in a config; the ratio may be below 1.
    """
    first, ratio = settings.values()
    options = " and ".join(f"protocol.{name} {value}" for name, value in settings.items())
    if not ratio > 0:
        raise UserError(f"{options}: the ratio must be above 0.")
    try:
        if ratio >= 1:
            return np.array(profiles.class_counts(int(first), classes, ratio))
        return np.array(profiles.class_counts(round(first / ratio), classes, 1 / ratio))[::-1]
    except UserError as error:
        raise UserError(f"{options}: {error}") from error


def _counts(source: Source, split: str) -> Counts:
    counts: Counts = np.bincount(source.labels(split), minlength=source.num_classes)
    return counts


def _share(counts: Counts, share: float) -> Counts:
    shares: Counts = np.maximum(np.rint(share * counts).astype(np.int64), 1)
    return shares


def _present(source: Source, counts: Counts, kind: str) -> Counts:
    if counts.min() < 1:
        raise UserError(
            f"class {source.class_names[counts.argmin()]} would have no {kind} images. Choose a "
            "smaller imbalance or another share, or add images."
        )
    return counts


def _hidden(split: str, indices: Indices, seed: int) -> Split:
    shuffled = np.random.default_rng([seed, len(indices)]).permutation(indices)
    return Split(split, shuffled, np.full(len(indices), -1), hidden=True)


def _draw(source: Source, split: str, sizes: Sizes, seed: int) -> dict[str, Indices]:
    """Draw as many images as ``sizes`` says from one split of a source, class by class."""
    labels, counts = source.labels(split), _counts(source, split)
    zeros = np.zeros_like(counts)
    training, held_out = split == "train", split == sizes.val_from
    asked = {
        "labelled": sizes.labelled if training else zeros,
        "unlabelled": sizes.unlabelled if training and sizes.unlabelled is not None else zeros,
        "val": sizes.val if held_out else zeros,
    }
    _check(source, split, counts, asked, sizes.shared)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    drawn: dict[str, list[Indices]] = {kind: [] for kind in asked}
    for c, of_class in enumerate(members):
        order = np.random.default_rng([seed, c]).permutation(of_class)
        first, second, last = (int(asked[kind][c]) for kind in asked)
        drawn["labelled"].append(order[:first])
        start = 0 if sizes.shared else first
        drawn["unlabelled"].append(order[start : start + second])
        drawn["val"].append(order[len(order) - last :])
    return {kind: np.concatenate(parts) for kind, parts in drawn.items()}


def _check(
    source: Source, split: str, counts: Counts, asked: dict[str, Counts], shared: bool
) -> None:
    for kind, sizes in asked.items():
        if sizes.min() < 0:
            raise UserError(f"a class cannot have {sizes.min()} {kind} images: see data.protocol.")
    together = np.maximum if shared else np.add
    lacking = together(asked["labelled"], asked["unlabelled"]) + asked["val"] - counts
    if lacking.max() > 0:
        c = int(lacking.argmax())
        parts = " + ".join(f"{asked[kind][c]} {kind}" for kind in asked if asked[kind][c])
        raise UserError(
            f"class {source.class_names[c]} has {counts[c]} {split} images, but the protocol asks "
            f"for {parts}. Lower these numbers."
        )
