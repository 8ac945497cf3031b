"""The progress bar of a training."""

import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import BarColumn, ProgressColumn, TimeRemainingColumn
from rich.table import Column
from typing_extensions import override

DRAWS = 1  # of the bar per second; only then is the loss read
WAKES = 10  # of Lightning's thread per second; a bar that stops waits for the next one


class Progress(RichProgressBar):
    """Lightning's Rich bar with the time left of the whole training, not only of the epoch.

    It draws once per second, and only then reads the loss, which means to wait for a GPU. It draws
    between two steps; Lightning's thread would draw during one, beside the threads that compute.
    """

    _rests, _due = False, 0.0

    def __init__(self) -> None:
        super().__init__(refresh_rate=WAKES)

    def _init_progress(self, trainer: L.Trainer) -> None:
        """Let only the bar shrink on a narrow terminal: wrapped columns cannot be read."""
        super()._init_progress(trainer)
        for column in self.progress.columns if self.progress else ():
            if isinstance(column, ProgressColumn) and not isinstance(column, BarColumn):
                column._table_column = Column(no_wrap=True)

    @override
    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        description, bar, batches, _, speed = super().configure_columns(trainer)
        return [description, bar, batches, TimeRemainingColumn(elapsed_when_finished=True), speed]

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began, self._from = time.monotonic(), trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any
    ) -> None:
        self._rests = True
        super().on_train_batch_end(trainer, pl_module, *batch)
        self._rests = False
        if trainer.is_last_batch or time.monotonic() >= self._due:
            self._update_metrics(trainer, pl_module)
            self.refresh()

    def _update_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._rests and not trainer.sanity_checking:  # before the training has begun
            super()._update_metrics(trainer, pl_module)

    @override
    def refresh(self, hard: bool = False) -> None:
        now = time.monotonic()
        if not self._rests and (hard or now >= self._due):
            super().refresh(hard=True)
            self._due = now + 1 / DRAWS

    @override
    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
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
