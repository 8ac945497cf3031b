"""Large batches on small devices: passes over parts of a batch, whose gradients add up."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ltbench.optim.sam import GradientRule
from ltbench.optim.step import Step


@dataclass
class MicroBatches(GradientRule):
    """The gradient at the weights themselves, summed up over parts of the batch.

    Args:
        size: Images in a part; the last one may have fewer, and then weighs less.
    """

    size: int = 128

    def _backward(self, step: Step) -> Tensor:
        losses = []
        for part in parts(step.size, self.size):
            # Each rank adds up its gradients, so that only the last pass has to average them.
            with nullcontext() if part.stop == step.size else step.no_sync():
                losses.append(step.run(part))
        return torch.stack(losses).sum()


def parts(length: int, size: int | None) -> list[slice]:
    """Cut a batch of ``length`` into parts of ``size``, the last of which may be smaller."""
    size = size or length
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
