"""An average of the weights that follows every step of a training."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from typing_extensions import override


class WeightAverage(WeightAveraging):
    """An exponential moving average of the weights, on their device and in fused operations.

    Lightning's own stays where the weights are before training, on the CPU, and all weights would
    be copied there in every step. The first average is the first step's weights.

    Args:
        decay: What an average keeps of the one before, in [0, 1).
        use_buffers: Whether batch norm's statistics are averaged too, or copied.
    """

    def __init__(self, decay: float, use_buffers: bool) -> None:
        super().__init__(use_buffers=use_buffers)
        self.decay = decay

    @property
    def network(self) -> nn.Module | None:
        """The averaged module; None before :meth:`begin`."""
        return self._average_model and self._average_model.module

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Wait for :meth:`begin`: a module may build its network in a setup of its own."""

    def begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Copy the module, as it is before training, to the device that it will be trained on."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, module, "fit")

    @torch.no_grad()
    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step <= self._latest_update_step:
            return
        assert self._average_model is not None
        average, first = self._average_model.module, self._latest_update_step == 0
        weights = zip(average.parameters(), pl_module.parameters(), strict=True)
        buffers = zip(average.buffers(), pl_module.buffers(), strict=True)
        followed: list[tuple[Tensor, Tensor]] = [*weights]
        copied = [*buffers]
        if self._use_buffers:
            followed += [pair for pair in copied if pair[0].is_floating_point()]
            copied = [pair for pair in copied if not pair[0].is_floating_point()]
        if first:
            followed, copied = [], followed + copied
        if followed:
            averages, values = zip(*followed, strict=True)
            torch._foreach_lerp_(averages, values, 1 - self.decay)
        if copied:
            averages, values = zip(*copied, strict=True)
            torch._foreach_copy_(averages, values)
        self._average_model.n_averaged += 1
        self._latest_update_step = trainer.global_step
