"""A torchvision-style data set cut to a long tail: the same images that a run would train on."""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, Subset

from ltbench.data import profiles
from ltbench.errors import UserError
from ltbench.naming import Name


class LongTailed(Subset[Any]):
    """Some images of a data set, which is left as it is.

    Attributes:
        dataset: The whole data set.
        indices: Positions of these images in it.
        targets: (n,) labels.
        class_counts: Images per class, (C,).
    """

    def __init__(
        self, dataset: Dataset[Any], indices: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
    ) -> None:
        super().__init__(dataset, indices.tolist())
        self.targets: list[int] = labels[indices].tolist()
        self.class_counts: list[int] = np.bincount(labels[indices]).tolist()


def long_tailed(
    dataset: Dataset[Any],
    imbalance_factor: float,
    seed: int = 0,
    *,
    labels: npt.ArrayLike | None = None,
    largest: int | None = None,
    profile: Name = "exp",
) -> LongTailed:
    """Cut a data set to a long tail, as ``LongTailDataModule`` does with ``val_fraction: 0``.

    Args:
        dataset: A data set with a length and integer ``targets`` or ``labels``, 0 to C - 1, such
            as torchvision's.
        imbalance_factor: Largest over smallest class, at least 1.
        seed: Seed of the draw; 0 gives the published CIFAR-LT sets.
        labels: (n,) labels, for a data set without such an attribute.
        largest: Images of class 0; default: the images of the smallest class.
        profile: See :func:`ltbench.data.profiles.class_counts`.

    Raises:
        UserError: The labels are unknown or do not fit, or an argument is out of range.
    """
    if labels is None:
        labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if labels is None:
        raise UserError(
            f"{type(dataset).__name__} has neither targets nor labels: pass long_tailed(labels=...)"
        )
    every = np.asarray(labels)
    if every.shape != (len(dataset),) or every.dtype.kind not in "iu" or every.min(initial=0) < 0:  # type: ignore[arg-type]
        raise UserError(
            "long_tailed needs one whole number of at least 0 per image as its label; got "
            f"{every.dtype} of shape {every.shape} for {len(dataset)} images."  # type: ignore[arg-type]
        )
    every = every.astype(np.int64)
    available = np.bincount(every)
    most = int(available.min(initial=len(every))) if largest is None else largest
    counts = profiles.class_counts(most, len(available), imbalance_factor, profile)
    return LongTailed(dataset, profiles.select(every, counts, seed), every)
