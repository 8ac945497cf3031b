"""An objective that is followed on the validation images while a method trains: CSST, SelMix."""

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
    """What a look at the validation images shows.

    Attributes:
        joint: (K, K) joint confusion matrix.
        smoothed: The same of smoothed counts, for derivatives.
        multipliers: (n,) that follow from it.
        report: Value of the objective, by how much its worst constraint is missed, and the number
            of classes whose recall is 0.
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
        objective: It; which classes are head and tail is known after :meth:`setup`.
        monitor: The validation metric that it is about.
    """

    def __init__(self, name: str, num_classes: int, coverage_target: float) -> None:
        self.name = name
        self.coverage_target = coverage_target
        self.objective = build_objective(name, torch.ones(num_classes), coverage_target)
        self.monitor = f"val/{self.objective.metric}"

    def setup(self, data: DataModule, class_counts: Tensor) -> None:
        """Look whether the data has what it takes, and learn which classes are head and tail.

        Args:
            data: Its validation split is what is looked at.
            class_counts: (K,) training images per class.

        Raises:
            UserError: There are no validation images, or none of some class.
        """
        if "val" not in data.splits:
            raise UserError(
                f"the objective {self.name} is followed on validation images, and this data has "
                "none: hold some out (data.val_fraction, a protocol with validation images, or a "
                "folder val)."
            )
        labels = torch.from_numpy(data.splits["val"].labels)
        images = labels.bincount(minlength=data.num_classes)
        joint_confusion(images.diag(), class_names=data.source.class_names)  # refuses a missing one
        self.objective = build_objective(self.name, class_counts, self.coverage_target)

    def look(
        self, counts: Tensor, multipliers: Tensor, rule: MultiplierRule, smoothing: float = 0.5
    ) -> Look:
        """Update the multipliers by what the validation images show.

        Args:
            counts: (K, K) of the network that is evaluated.
            multipliers: (n,) of the last look, on the same device.
            rule: How they move.
            smoothing: Added to each entry of the counts for derivatives.
        """
        joint = joint_confusion(counts)
        report: dict[str, Tensor | int] = {
            "objective": self.objective.value(joint),
            "violation": self.objective.violation(joint),
            "zero_recall_classes": zero_recall_classes(counts),
        }
        updated = self.objective.update(multipliers, joint, rule)
        return Look(joint, joint_confusion(counts, smoothing), updated, report)
