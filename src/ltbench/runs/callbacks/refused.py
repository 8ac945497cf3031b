"""Callbacks of Lightning that would make the result another than the config says, or do nothing."""

from collections.abc import Iterable

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
    lightnings.ModelPruning: "changes the network that its checkpoints would be loaded into",
    lightnings.SpikeDetection: "needs a loss from each step; one that is not finite ends a run",
    lightnings.DeviceStatsMonitor: f"{_LOGS}: its record has the peak memory and images per second",
    lightnings.ThroughputMonitor: f"{_LOGS}: its record has the images per second",
    lightnings.LearningRateMonitor: f"{_LOGS}, as train/lr",
    lightnings.BasePredictionWriter: "is not used by predict, which writes its own --output",
}


def require_harmless(callbacks: Iterable[Callback]) -> None:
    """Refuse callbacks of these classes.

    Raises:
        UserError: Naming the first.
    """
    for callback in callbacks:
        for kind, reason in REFUSED.items():
            if isinstance(callback, kind):
                raise UserError(f"trainer.callbacks: {type(callback).__name__} {reason}.")
