"""An objective followed on the validation images while a method trains: CSST, SelMix."""

from typing import NamedTuple

import torch
from torch import Tensor

from ltbench.data.base import DataModule
from ltbench.errors import UserError
from ltbench.objectives import (
    MultiplierRule,
    build_objective,
    joint_confusion,
    zero_recall_classes,
)


class Look(NamedTuple):
    """What the validation images show.

    Attributes:
        joint: (K, K) joint confusion matrix.
        smoothed: The same of smoothed counts, for derivatives.
        multipliers: (n,) that follow from it.
        report: Value and violation of the objective, and the number of classes with a recall of 0.
    """

    joint: Tensor
    smoothed: Tensor
    multipliers: Tensor
    report: dict[str, Tensor | int]


class HeldOut:
    """An objective on validation images; its multipliers are a buffer of the method.

    Args:
        name: Of the objective, as in :func:`~ltbench.objectives.build_objective`.
        num_classes: K.
        coverage_target: Least coverage as a share of 1/K, for objectives that constrain it.

    Attributes:
        objective: The objective; it knows head and tail after :meth:`setup`.
        monitor: Its validation metric.
    """

    def __init__(self, name: str, num_classes: int, coverage_target: float) -> None:
        self.name = name
        self.coverage_target = coverage_target
        self.objective = build_objective(name, torch.ones(num_classes), coverage_target)
        self.monitor = f"val/{self.objective.metric}"

    def setup(self, data: DataModule, class_counts: Tensor) -> None:
        """Check the validation images, and tell head from tail by the training images per class.

        Raises:
            UserError: There are no validation images, or none of some class.
        """
        if "val" not in data.splits:
            raise UserError(
                f"the objective {self.name} needs validation images: hold some out "
                "(data.val_fraction, a protocol with validation images, or a folder val)."
            )
        labels = torch.from_numpy(data.splits["val"].labels)
        images = labels.bincount(minlength=data.num_classes)
        joint_confusion(images.diag(), class_names=data.source.class_names)  # every class is there
        self.objective = build_objective(self.name, class_counts, self.coverage_target)

    def look(
        self, counts: Tensor, multipliers: Tensor, rule: MultiplierRule, smoothing: float = 0.5
    ) -> Look:
        """Update the multipliers (n,) by confusion counts (K, K) of the validation images.

        ``smoothing`` is added to each entry of the counts for derivatives.
        """
        joint = joint_confusion(counts)
        report: dict[str, Tensor | int] = {
            "objective": self.objective.value(joint),
            "violation": self.objective.violation(joint),
            "zero_recall_classes": zero_recall_classes(counts),
        }
        updated = self.objective.update(multipliers, joint, rule)
        return Look(joint, joint_confusion(counts, smoothing), updated, report)
