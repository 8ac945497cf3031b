"""What a run writes as it goes: its record, curves and traces."""

import os
import resource
import sys
import time
from collections.abc import Mapping
from operator import methodcaller
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
import yaml
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import Logger
from torch import Tensor
from typing_extensions import override

import ltbench
from ltbench import records, seeding
from ltbench.data import loading as workers
from ltbench.data.datasets import Batch
from ltbench.errors import UserError
from ltbench.methods.base import Method, method_name
from ltbench.runs import peers
from ltbench.runs.callbacks.trace_figure import trace_figure
from ltbench.runs.context import RunContext


class RunRecord(Callback):
    """Write ``record.json``, ``metrics.csv`` and ``traces.npz`` of one run.

    The record is rewritten after each epoch, so that it is true at any moment: ``status`` is
    ``running``, ``done``, ``interrupted`` or ``failed`` (with ``cause``).

    Args:
        context: The run.
        monitor: The validation metric by which "best" is chosen.

    Attributes:
        begun: Whether training or evaluation has begun; before that nothing is written.
    """

    def __init__(self, context: RunContext, monitor: str | None) -> None:
        self.context = context
        self.versions, self.git = records.versions(), records.git_state(Path(ltbench.__file__))
        self.loggers: list[Logger] = []
        self.monitor = monitor or ""
        self.history: list[dict[str, float]] = []
        self.images_seen = 0
        self.seconds = 0.0
        self.metrics: dict[str, dict[str, Any]] = {}
        self._since = 0.0
        self._batches = 0  # of this epoch
        self.begun = False
        self._validated: tuple[str, ...] = ()
        self.traces: dict[str, list[tuple[int, Tensor]]] = {}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "history": self.history,
            "images_seen": self.images_seen,
            "seconds": self._clock(),
            "traces": self.traces,
            "job_id": self.context.job_id,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.context.selection is not None:  # it is only evaluated
            return
        if state_dict.get("job_id", self.context.job_id) != self.context.job_id:
            raise UserError(
                f"the checkpoint belongs to run {state_dict['job_id']}, but this config is run "
                f"{self.context.job_id}: use the config.yaml in the checkpoint's run folder."
            )
        self.history = state_dict["history"]
        self.images_seen = state_dict["images_seen"]
        self.seconds = state_dict["seconds"]
        self.traces = state_dict["traces"]

    def _clock(self) -> float:
        return self.seconds + (time.monotonic() - self._since if self._since else 0.0)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._require_own_batch_size(pl_module)
        trainer.loggers = self.loggers  # only now: nothing can refuse the run any more
        self.begun, self._since = True, time.monotonic()
        self._write(trainer, pl_module, "running")
        config = yaml.safe_dump(self.context.config, sort_keys=False)
        if trainer.is_global_zero:
            records.write_text(self.context.folder.config, config)

    def _require_own_batch_size(self, module: L.LightningModule) -> None:
        actual = _method(module).data.batch_size
        size = self.context.config["data"].get("init_args", {}).get("batch_size", actual)
        if actual != size:
            raise UserError(
                f"a callback has changed data.batch_size from {size} to {actual}: remove it, and "
                "set the batch size itself."
            )

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        self.images_seen += count_images(batch) * trainer.world_size
        self._batches += 1

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.context.selection is not None:
            self.metrics[self.context.selection]["val"] = _under("val", trainer.callback_metrics)
        self._keep_pictures(_method(pl_module), trainer.is_global_zero)
        self._validated = ("val", "test_watched")  # in this epoch; older metrics linger

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done, self._batches = self._batches, 0
        if done < trainer.num_training_batches:
            raise _ended(f"batch {done} of {trainer.num_training_batches} of an epoch")
        fresh = ("train/", *(f"{name}/" for name in self._validated))
        row = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(fresh) and not name.endswith(("_step", "_epoch"))
        }
        self._validated = ()
        self.history.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **row})
        self._keep_traces(trainer.current_epoch, _method(pl_module), trainer.is_global_zero)
        self._write(trainer, pl_module, "running")

    def _keep_traces(self, epoch: int, method: Method, write: bool) -> None:
        """Write ``traces.npz``: for each name an array (E, ...), and ``<name>.epoch`` (E,)."""
        for name, value in method.traces.items():
            self.traces.setdefault(name, []).append((epoch, value.detach().cpu().clone()))
        method.traces.clear()
        if self.traces and write:
            records.write_npz(self.context.folder.traces, self._trace_arrays())

    def _keep_pictures(self, method: Method, write: bool) -> None:
        for name, picture in method.pictures.items():
            if write and self.begun:
                records.write_whole(self.context.folder.path / name, methodcaller("write", picture))
        method.pictures.clear()

    def _trace_arrays(self) -> dict[str, Any]:
        arrays: dict[str, Any] = {}
        for name, values in self.traces.items():
            arrays[name] = torch.stack([value for _, value in values]).numpy()
            arrays[f"{name}.epoch"] = np.array([epoch for epoch, _ in values])
        return arrays

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds, self._since = self._clock(), 0.0
        # Of the config: a callback may have lowered the trainer's own.
        epochs = self.context.config["trainer"]["max_epochs"]
        if len(self.history) < epochs:
            raise _ended(f"epoch {len(self.history)} of {epochs}")

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if not self.begun:
            return
        status = "interrupted" if isinstance(exception, KeyboardInterrupt) else "failed"
        cause = workers.death(exception) or peers.lost(exception)
        cause = cause or f"{type(exception).__name__}: {exception}"
        self._write(trainer, pl_module, status, cause)

    def select(self, selection: str) -> None:
        """Choose the weights to be evaluated next, and look up their validation metrics.

        Args:
            selection: ``last``, ``best`` or ``given``, as in :class:`RunContext`.
        """
        self.context.selection = selection
        self.begun |= selection != "given"
        self.metrics[selection] = {}
        if selection == "best":
            rows = [row for row in self.history if self.monitor in row]
        else:
            rows = self.history[-1:] if selection == "last" else []
        row = max(rows, key=lambda row: row.get(self.monitor, 0.0), default=None)
        if row:
            self.metrics[selection] = {"epoch": row["epoch"], "val": _under("val", row)}

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        test = _under("test", trainer.callback_metrics)
        method = _method(pl_module)
        self.metrics[self.context.selection or "given"]["test"] = test | method.test_details()
        self._keep_pictures(method, trainer.is_global_zero)

    def finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the run as done, and plot its traces."""
        if self.traces and trainer.is_global_zero:
            figure = trace_figure(self._trace_arrays(), _method(pl_module).data.source.class_names)
            path = self.context.folder.traces.with_suffix(".png")
            records.write_whole(path, lambda file: figure.savefig(file, format="png"))
        self._write(trainer, pl_module, "done")

    def _write(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        status: str,
        cause: str | None = None,
    ) -> None:
        if not trainer.is_global_zero:
            return
        record = self.summary(trainer, pl_module, status, cause)
        records.write_record(self.context.folder.record, **record)
        curves = pd.DataFrame(self.history).to_csv(index=False)
        records.write_text(self.context.folder.curves, curves)

    def summary(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        status: str,
        cause: str | None = None,
    ) -> dict[str, Any]:
        """Return the record at this moment (see :mod:`ltbench.records.schema`)."""
        method = _method(pl_module)
        device = trainer.strategy.root_device  # where the weights are no more after the training
        seconds = self._clock()
        averaged = method.averages or any(
            isinstance(c, WeightAveraging)
            for c in trainer.callbacks  # type: ignore[attr-defined]
        )
        batches = trainer.num_training_batches  # infinite before a training
        starts = [{"role": role, **start} for role, start in self.context.starts.items()]
        return {
            "job_id": self.context.job_id,
            "name": self.context.name,
            "method": method_name(type(method)),
            "dataset": method.data.source_name,
            "stage": method.stage,
            "lineage": method.lineage or starts,
            "revisions": records.revisions(self.context.config),
            "config": self.context.config,
            "versions": self.versions,
            "git": self.git,
            "seed": seeding.run_seed(),
            "data": method.data.describe(),
            "metrics": self.metrics,
            "weights": "averaged" if averaged else "raw",
            "deviations": list(method.deviations),
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "precision": str(trainer.precision),
            "world_size": trainer.world_size,
            "batch_size": method.data.batch_size,
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "epochs": len(self.history),
            "steps": trainer.global_step,
            "batches_per_epoch": batches if isinstance(batches, int) else None,
            "images_seen": self.images_seen,
            "wall_seconds": round(seconds, 1),
            "images_per_second": round(self.images_seen / seconds, 1) if seconds else None,
            "peak_memory_bytes": peak_memory(device),
            "status": status,
            "cause": cause,
        }


def _ended(where: str) -> UserError:
    return UserError(
        f"a callback or the method ended the training after {where}, before its schedule: it has "
        "no result. Remove what stops it, or set a shorter trainer.max_epochs."
    )


def _method(module: L.LightningModule) -> Method:
    assert isinstance(module, Method)
    return module


def count_images(batch: Batch) -> int:
    """Return the number of images in a training batch: each ``index`` in it lists some."""
    return sum(
        count_images(value) if isinstance(value, dict) else len(value)
        for key, value in batch.items()
        if key == "index" or isinstance(value, dict)
    )


def _under(prefix: str, metrics: Mapping[str, Tensor | float]) -> dict[str, Any]:
    return {
        name.removeprefix(f"{prefix}/"): float(value)
        for name, value in metrics.items()
        if name.startswith(f"{prefix}/")
    }


def device_name(device: torch.device) -> str:
    """Return a device's name for people: that of the GPU, or of the processor with its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{torch.backends.cpu.get_cpu_capability()} CPU, {os.cpu_count()} cores"
    return str(device)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far in bytes: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
