"""One step of training, as a gradient rule sees it: the batch, its loss, and passes over both."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Loss = Tensor | tuple[Tensor, Mapping[str, Tensor]]


@dataclass
class Step:
    """What a rule knows of one step.

    Args:
        module: Holds every parameter that is trained.
        loss_of: Maps the batch, or some samples of it, to their mean loss, a scalar, or to that
            and statistics by name: scalars, which are means over samples, or tensors (n, ...) with
            a row per sample. It is called once per pass and changes nothing, so random inputs
            (crops, mixing) are drawn before.
        batch: What it takes: a tensor, or a mapping of such, each with the same number of rows for
            every sample, in the order of the samples.
        size: Number of samples in the batch.
        epoch: The current epoch, from 0, for schedules.
        epochs: Length of the whole training.
        generator: Source of noise, on the device of ``module``. Every rank must pass one in the
            same state: the noise is part of the gradient that they share.
        backward: Runs one backward pass; Lightning's ``manual_backward`` scales and syncs.
        no_sync: Opens a context in which backward passes do not average over ranks.

    Attributes:
        statistics: What ``loss_of`` returned beside the loss, from the first pass over each sample:
            a later pass of the same step (SAM's second) leaves them as they are.
    """

    module: nn.Module
    loss_of: Callable[[Any], Loss]
    batch: Any
    size: int
    epoch: int
    epochs: int
    generator: torch.Generator
    backward: Callable[[Tensor], object] = Tensor.backward
    no_sync: Callable[[], AbstractContextManager[object]] = nullcontext
    statistics: dict[str, Tensor] = field(default_factory=dict)

    def run(self, part: slice = slice(None), again: bool = False) -> Tensor:
        """Add the gradient of the loss at the weights as they are.

        Args:
            part: Which samples; their loss counts by their share of the batch.
            again: Whether these samples have been seen in this step before.

        Returns:
            Their loss times their share, a detached scalar.
        """
        # Within one autocast context the low-precision copy of a weight is cached by identity, so a
        # weight that was moved in place would still be seen where it was before.
        torch.clear_autocast_cache()
        start, stop, _ = part.indices(self.size)
        whole = stop - start == self.size
        share = 1.0 if whole else (stop - start) / self.size
        output = self.loss_of(self.batch if whole else rows(self.batch, start, stop, self.size))
        loss, statistics = output if isinstance(output, tuple) else (output, {})
        if not whole:
            loss = share * loss
        if not again:
            self._note(statistics, share)
        self.backward(loss)
        return loss.detach()

    def _note(self, statistics: Mapping[str, Tensor], share: float) -> None:
        for name, value in statistics.items():
            value = value.detach()
            if share == 1:
                self.statistics[name] = value
            elif value.ndim:
                before = self.statistics.get(name, value[:0])
                self.statistics[name] = torch.cat([before, value])
            else:
                self.statistics[name] = self.statistics.get(name, 0) + share * value


def rows(batch: Any, start: int, stop: int, size: int) -> Any:  # noqa: ANN401 - the method's own
    """Return what belongs to the samples from ``start`` to ``stop`` of a batch of ``size``.

    A batch is a tensor (k size, ...) with k rows for each sample, or a mapping of such.
    """
    if isinstance(batch, Mapping):
        return {name: rows(value, start, stop, size) for name, value in batch.items()}
    each = len(batch) // size
    return batch[each * start : each * stop]
