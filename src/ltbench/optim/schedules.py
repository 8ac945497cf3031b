"""When things happen in training: learning-rate schedules and switch points.

A point in training is an ``int`` (epochs) or a ``float`` (a fraction of all epochs), so that a
shorter run keeps the shape of the published recipe.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from typing_extensions import override

from ltbench.errors import UserError


def epoch_of(point: int | float, epochs: int) -> int:
    """Return the 0-based epoch at which a point in training begins.

    Args:
        point: ``int``: that epoch; ``float`` in [0, 1]: that fraction of ``epochs``, rounded.
        epochs: Length of the whole training, in epochs.

    Raises:
        UserError: A negative point, or a fraction above 1.
    """
    if not point >= 0 or (isinstance(point, float) and point > 1):
        raise UserError(
            f"{point} is not a point in training: give an epoch as a whole number (160), or a "
            "fraction of training in [0, 1] (0.8)."
        )
    return point if isinstance(point, int) else round(point * epochs)


def require_rising(points: Sequence[int | float], what: str) -> None:
    """Refuse points in training that are out of range or not in order.

    Whole epochs and fractions compare only once the length of the training is known, so each kind
    is compared with its own. ``what`` names them in the message.
    """
    for point in points:
        epoch_of(point, 1)
    for kind in (int, float):
        alike = [point for point in points if isinstance(point, kind)]
        if alike != sorted(set(alike)):
            raise UserError(f"{what} {list(points)} must rise: each later than the one before.")


class LRSchedule:
    """A factor on the base learning rate, epoch by epoch or step by step.

    Attributes:
        by: ``epoch`` or ``step``: what :meth:`factor` counts.
    """

    by: ClassVar[Literal["epoch", "step"]] = "epoch"

    def factor(self, epoch: int, epochs: int) -> float:
        """Return the factor for the 0-based ``epoch`` (or step) of all ``epochs`` (or steps)."""
        return 1.0


@dataclass
class Constant(LRSchedule):
    """The base learning rate throughout."""


@dataclass
class MultiStep(LRSchedule):
    """Linear warm-up by epoch, then a factor that changes at milestones.

    The defaults are the CIFAR-LT recipe (LDAM-DRW, arXiv 1906.07413, and everything after it):
    of 200 epochs, 5 of warm-up, x0.01 from epoch 160, x0.0001 from epoch 180.

    Args:
        warmup: Length of the warm-up.
        milestones: Pairs (point in training, factor from there on), in order.
    """

    warmup: int | float = 0.025
    milestones: list[tuple[int | float, float]] = field(
        default_factory=lambda: [(0.8, 0.01), (0.9, 0.0001)]
    )

    def __post_init__(self) -> None:
        epoch_of(self.warmup, 1)
        require_rising([point for point, _ in self.milestones], "MultiStep milestones")

    @override
    def factor(self, epoch: int, epochs: int) -> float:
        warm = epoch_of(self.warmup, epochs)
        if epoch < warm:
            return (epoch + 1) / warm
        reached = [factor for point, factor in self.milestones if epoch >= epoch_of(point, epochs)]
        return reached[-1] if reached else 1.0


@dataclass
class Cosine(LRSchedule):
    """Linear warm-up by epoch, then half a cosine to 0 (arXiv 1608.03983, no restarts).

    The last epoch of a warm-up, at the full rate, is the first of the cosine, as in the code of
    PaCo (arXiv 2107.12028).

    Args:
        warmup: Length of the warm-up.
    """

    warmup: int | float = 0

    def __post_init__(self) -> None:
        epoch_of(self.warmup, 1)

    @override
    def factor(self, epoch: int, epochs: int) -> float:
        warm = epoch_of(self.warmup, epochs)
        if epoch < warm:
            return (epoch + 1) / warm
        top = max(warm - 1, 0)
        return 0.5 * (1 + math.cos(math.pi * (epoch - top) / max(epochs - top, 1)))


@dataclass
class SlowCosine(LRSchedule):
    """FixMatch's cos(7 pi t / 16 T), step by step, which ends at 0.195 (arXiv 2001.07685)."""

    by = "step"

    @override
    def factor(self, epoch: int, epochs: int) -> float:
        return math.cos(7 * math.pi * epoch / (16 * epochs))


@dataclass
class DeiTCosine(LRSchedule):
    """DeiT's schedule, step by step: a linear warm-up, then a cosine that began with training.

    Args:
        warmup: Length of the warm-up, a fraction of training.
        start: Factor at the first step.
        floor: Factor that the cosine ends at.
    """

    by = "step"

    warmup: float = 5 / 1200
    start: float = 0.004
    floor: float = 0.04

    def __post_init__(self) -> None:
        epoch_of(float(self.warmup), 1)

    @override
    def factor(self, epoch: int, epochs: int) -> float:
        warm = epoch_of(self.warmup, epochs)
        if epoch < warm:
            return self.start + (1 - self.start) * epoch / warm
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2
