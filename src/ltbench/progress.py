"""The progress bar of a training."""

import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

DRAWS = 4  # of the bar in a second, and its looks at the loss


class Progress(RichProgressBar):
    """Lightning's Rich bar with the time left of the whole training, not of the epoch alone.

    In training it shows the loss of now and then: to read it is to wait for a GPU. It draws as
    rarely: Lightning's thread wakes a hundred times a second, beside those that compute.
    """

    _rests, _due = False, 0.0

    def __init__(self) -> None:
        super().__init__(refresh_rate=DRAWS)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember when and where this sitting began."""
        super().on_train_start(trainer, pl_module)
        self._began, self._from = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Count the step, and read the loss where it is time."""
        self._rests = time.monotonic() < self._due and not trainer.is_last_batch
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self._rests:
            self._due = time.monotonic() + 1 / DRAWS
        self._rests = False

    def _update_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._rests:
            super()._update_metrics(trainer, pl_module)

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Show the losses of the last step, what asks for the bar, and when training will end."""
        steps = {  # short: a line has 80 letters
            name.removeprefix("train/").removesuffix("_step"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/") and name.endswith("_step")
        }
        items = steps | super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        done = trainer.global_step - self._from
        left = trainer.estimated_stepping_batches - trainer.global_step
        if done:
            seconds = (time.monotonic() - self._began) / done * left
            items["ends in"] = str(timedelta(seconds=round(seconds)))
        return items
