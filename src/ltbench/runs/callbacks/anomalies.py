"""Warnings of trouble that does not stop a training but may spoil its result."""

import logging
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from typing_extensions import override

from ltbench.methods.base import Method
from ltbench.metrics.counts import shot_groups

_log = logging.getLogger(__name__)

EXPLODED = 100.0  # times the usual norm of the gradient
EVERY = 10  # steps between two measurements of the norm
SHOTS = {"many": "over 100", "medium": "20 to 100", "few": "under 20"}


class Anomalies(Callback):
    """Warn, each once, of empty groups, dead classes, exploding gradients and the like."""

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._norms: list[Tensor] = []  # of this epoch, on the device
        self._usual: float | None = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"told": sorted(self._warned), "usual": self._usual}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._warned = set(state_dict["told"])
        self._usual = state_dict["usual"]

    @rank_zero_only
    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning("warning: %s", text)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        groups = shot_groups(pl_module.data.class_counts)
        empty = [f"{name}-shot ({SHOTS[name]})" for name in SHOTS if not len(groups[name])]
        if empty:
            self._warn(
                "group",
                f"no classes are {', '.join(empty)}, by training images: the recall of such "
                "classes is undefined.",
            )

    @override
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        if trainer.global_step % EVERY == 0:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self._norms.append(get_total_norm(gradients))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch, logged = trainer.current_epoch, trainer.callback_metrics
        if self._norms:
            norms = torch.stack(self._norms)
            middle, largest = float(norms.median()), float(norms.max())
            if self._usual and largest > EXPLODED * self._usual:
                self._warn(
                    "gradient",
                    f"epoch {epoch}: a gradient of norm {largest:.3g}; the first epoch's were "
                    f"{self._usual:.3g}. Lower the learning rate, or set model.clip_norm.",
                )
            self._usual = self._usual or middle
            self._norms.clear()
        if isinstance(pl_module, Method):
            for kind, text in pl_module.warnings(logged).items():
                self._warn(kind, f"epoch {epoch}: {text}")

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        dead = trainer.callback_metrics.get("val/dead_classes")
        late = trainer.current_epoch >= (trainer.max_epochs or 1) / 2
        if dead and late and trainer.training:
            self._warn(
                "dead",
                f"epoch {trainer.current_epoch}: {int(dead)} classes have a validation recall of "
                "0, so the H-mean is 0.",
            )
