"""The data module of supervised runs: a long tail of labelled images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import override

from ltbench import seeding
from ltbench.data import profiles
from ltbench.data.base import DataModule
from ltbench.data.samplers import SAMPLERS, TrainingSampler
from ltbench.data.sources.base import Source
from ltbench.data.splits import Partition, Split
from ltbench.data.streams import MAIN, Stream, Streams
from ltbench.data.transforms.basic import BatchTransform
from ltbench.errors import UserError
from ltbench.naming import Name, resolve


@dataclass
class LongTail(Partition):
    """A long tail; validation images come from its training images, never from test.

    The arguments are those of :class:`LongTailDataModule`. If the source has a validation split of
    its own, that is used instead.

    Raises:
        UserError: ``val_fraction`` is out of range, or there is no such profile.
    """

    profile: Name = "exp"
    imbalance_factor: float = 100
    largest: int | None = None
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"data.val_fraction is {self.val_fraction}; it must lie in [0, 1).")
        if self.profile != "natural":
            profiles.position_of(self.profile)

    def __str__(self) -> str:
        return str(self.profile)

    @override
    def split(self, source: Source, seed: int) -> dict[str, Split]:
        labels, counts = source.labels("train"), None
        if self.profile != "natural":
            available = np.bincount(labels, minlength=source.num_classes)
            counts = profiles.class_counts(
                int(available.min()) if self.largest is None else self.largest,
                source.num_classes,
                self.imbalance_factor,
                self.profile,
            )
        train, splits = profiles.select(labels, counts, seed), {}
        if source.has("val"):
            splits["val"] = Split.of(source, "val")
        elif self.val_fraction:
            train, val = profiles.split_validation(labels, train, self.val_fraction, seed)
            if len(val):  # single images stay in training
                splits["val"] = Split.of(source, "train", val)
        splits["train"] = Split.of(source, "train", train)
        if source.has("test"):
            splits["test"] = Split.of(source, "test")
        return splits


class LongTailDataModule(DataModule):
    """A long tail cut from a source; validation images come from training data, never from test.

    Args:
        source: See :class:`~ltbench.data.base.DataModule`.
        root: See there.
        profile: How many training images each class keeps (:mod:`ltbench.data.profiles`);
            ``natural`` keeps all.
        imbalance_factor: Largest over smallest class, >= 1; not used by ``natural``.
        largest: Images of the largest class; default: the images of the source's smallest class.
        val_fraction: Share of the long-tailed training images held out for validation, stratified;
            0 trains on all of them, as the papers do, so that only the last epoch is reported.
        sampler: Which training images an epoch shows: each once (``shuffled``), every class equally
            often (``class_balanced``; ``class_aware``: four images of a class in a row), classes by
            the square root or the inverse of their images (``square_root``, ``reversed``), from
            their shares to equal ones (``progressive``), or a third of the images three times
            (``repeated``); or the import path of a subclass of
            :class:`~ltbench.data.samplers.TrainingSampler`.
        views: Further views of each training image: name -> transforms, instead of ``augment``; a
            batch has them beside ``image``.
        **kwargs: Further arguments of :class:`~ltbench.data.base.DataModule`.

    Raises:
        UserError: An argument is out of range.
    """

    def __init__(
        self,
        source: Name = "digits",
        root: str | None = None,
        profile: Name = "exp",
        imbalance_factor: float = 100,
        largest: int | None = None,
        val_fraction: float = 0.1,
        sampler: Name = "shuffled",
        views: Mapping[str, Sequence[BatchTransform]] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        if taken := {"image", "label", "index"} & set(views or ()):
            raise UserError(
                f"data.views: every batch has an entry '{min(taken)}'; choose another name."
            )
        partition = LongTail(profile, imbalance_factor, largest, val_fraction)
        super().__init__(source, root, partition, **kwargs)
        self.sampler = resolve("sampler", sampler, SAMPLERS, TrainingSampler)
        self.views = {name: list(transforms) for name, transforms in (views or {}).items()}

    @override
    def streams(self) -> Streams:
        sampler = self.sampler(self.splits["train"].labels, seeding.run_seed())
        return Streams(sampler, {MAIN: Stream("train", {"image": self.augment, **self.views})})
