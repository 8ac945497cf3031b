"""When things happen in training: learning-rate schedules and switch points.

A point in training is an ``int`` (epochs) or a ``float`` (a fraction of all epochs), so that a
shorter run keeps the shape of the published recipe.
"""

import math
from dataclasses import dataclass, field

from ltbench.errors import UserError


def epoch_of(point: int | float, epochs: int) -> int:
    """Return the 0-based epoch at which a point in training begins.

    Args:
        point: ``int``: that epoch; ``float`` in [0, 1]: that fraction of ``epochs``, rounded.
        epochs: Length of the whole training, in epochs.

    Raises:
        UserError: A negative point, or a fraction above 1.
    """
    if point < 0 or (isinstance(point, float) and point > 1):
        raise UserError(
            f"{point} is no point in training: give epochs as a whole number (160) "
            "or a fraction of training in [0, 1] (0.8)."
        )
    return point if isinstance(point, int) else round(point * epochs)


class LRSchedule:
    """A factor on the base learning rate for each epoch."""

    def factor(self, epoch: int, epochs: int) -> float:
        """Return the factor for a 0-based ``epoch`` of ``epochs``."""
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

    def factor(self, epoch: int, epochs: int) -> float:
        """Return the factor for a 0-based ``epoch`` of ``epochs``."""
        warm = epoch_of(self.warmup, epochs)
        if epoch < warm:
            return (epoch + 1) / warm
        reached = [factor for point, factor in self.milestones if epoch >= epoch_of(point, epochs)]
        return reached[-1] if reached else 1.0


@dataclass
class Cosine(LRSchedule):
    """Linear warm-up by epoch, then half a cosine to 0 (arXiv 1608.03983, no restarts).

    Args:
        warmup: Length of the warm-up.
    """

    warmup: int | float = 0

    def factor(self, epoch: int, epochs: int) -> float:
        """Return the factor for a 0-based ``epoch`` of ``epochs``."""
        warm = epoch_of(self.warmup, epochs)
        if epoch < warm:
            return (epoch + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (epoch - warm) / (epochs - warm)))
