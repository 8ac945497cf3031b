"""Callbacks of Lightning that would make the result another than the config says, or do nothing."""

import pkgutil
from collections.abc import Iterable

from jsonargparse import Namespace
from lightning.pytorch import callbacks as lightnings
from lightning.pytorch.callbacks import Callback

from ltbench.errors import UserError

_ENDS = "ends a training before its schedule, and such a result is not the config's"
_FINDS = "changes the config's settings at the start; try values with --dry-run, and set them"
_LOGS = "logs what the run keeps already"

REFUSED: dict[type[Callback], str] = {
    lightnings.EarlyStopping: f"{_ENDS}; the best epoch on validation is kept anyway",
    lightnings.Timer: f"{_ENDS}; `timeout 2h ltbench fit ...` can be resumed",
    lightnings.BatchSizeFinder: _FINDS,
    lightnings.LearningRateFinder: _FINDS,
    lightnings.GradientAccumulationScheduler: "has no effect: the steps are the method's own",
    lightnings.StochasticWeightAveraging: "replaces the schedule of the method; use "
    "model.ema_decay",
    lightnings.BaseFinetuning: "changes which parameters learn; use model.trainable",
    lightnings.OnExceptionCheckpoint: "would have a run go on from the middle of an epoch; the run "
    "keeps that of each whole one",
    lightnings.ModelPruning: "changes the network that its checkpoints would be loaded into",
    lightnings.SpikeDetection: "needs a loss from each step; one that is not finite ends a run",
    lightnings.DeviceStatsMonitor: f"{_LOGS}: its record has the peak memory and images per second",
    lightnings.ThroughputMonitor: f"{_LOGS}: its record has the images per second",
    lightnings.LearningRateMonitor: f"{_LOGS}, as train/lr",
    lightnings.BasePredictionWriter: "is not used by predict, which writes its own --output",
}


def require_harmless(callbacks: Iterable[Namespace]) -> None:
    """Refuse callbacks of these classes, as a config names them.

    Raises:
        UserError: Naming the first.
    """
    for callback in callbacks:
        class_ = pkgutil.resolve_name(callback.class_path)
        for kind, reason in REFUSED.items():
            if issubclass(class_, kind):
                raise UserError(f"trainer.callbacks: {class_.__name__} {reason}.")
