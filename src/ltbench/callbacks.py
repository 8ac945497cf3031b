"""What a run leaves behind: its record, curves, traces, predictions and checkpoints."""

import io
import os
import resource
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
import yaml
from lightning.pytorch.callbacks import (
    Callback,
    ModelCheckpoint,
    RichProgressBar,
    WeightAveraging,
)
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from ltbench import records, seeding
from ltbench.data.datamodule import Batch
from ltbench.methods.base import Method

LOGITS_KEPT = 10_000_000


class RunRecord(Callback):
    """Keep ``record.json``, ``metrics.csv``, ``traces.npz`` and the predictions of one run.

    The record is rewritten whole after each epoch, so it tells the truth at any moment: ``status``
    is ``running``, ``done``, ``interrupted`` or ``failed`` (with ``cause``).

    Args:
        folder: The run folder.
        identity: What is known before the run: name, method, job id, resolved config.
        monitor: The validation metric that "best" goes by.
        keep: Whether predictions are stored; an evaluation alone leaves nothing behind.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], monitor: str | None, keep: bool = True
    ) -> None:
        """Remember where to write; nothing is written before training starts."""
        self.folder = folder
        self.identity = identity | {
            "versions": records.versions(),
            "git": records.git_state(Path(__file__).parent),
        }
        self.monitor = monitor or ""
        self.keep = keep
        self.history: list[dict[str, float]] = []
        self.images_seen = 0
        self.seconds = 0.0
        self.selection: str | None = None
        self.metrics: dict[str, dict[str, Any]] = {}
        self._since = 0.0
        self._validated: tuple[str, ...] = ()
        self.traces: dict[str, list[tuple[int, Tensor]]] = {}
        self._outputs: dict[str, list[dict[str, Tensor]]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must remember."""
        return {
            "history": self.history,
            "images_seen": self.images_seen,
            "seconds": self._clock(),
            "traces": self.traces,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what a checkpoint remembers; not when it is loaded only to be tested."""
        if self.selection is not None:
            return
        self.history = state_dict["history"]
        self.images_seen = state_dict["images_seen"]
        self.seconds = state_dict["seconds"]
        self.traces = state_dict["traces"]

    def _clock(self) -> float:
        return self.seconds + (time.monotonic() - self._since if self._since else 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that the run has begun."""
        self._since = time.monotonic()
        self._write(trainer, pl_module, "running")
        config = yaml.safe_dump(self.identity["config"], sort_keys=False).encode()
        if trainer.is_global_zero:
            records.write_whole(self.folder / "config.yaml", lambda file: file.write(config))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count images, over all ranks."""
        self.images_seen += count_images(batch) * trainer.world_size

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that this epoch's row has validation metrics; those of earlier epochs linger.

        After training it is the validation of a selection, and belongs to that.
        """
        if self.selection is not None:
            self.metrics[self.selection]["val"] = _under("val", trainer.callback_metrics)
        self._validated = ("val", "test_watched")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add this epoch's row to the curves."""
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
        """Write ``traces.npz``: of each name an array (E, ...), and ``<name>.epoch`` (E,)."""
        for name, value in method.traces.items():
            self.traces.setdefault(name, []).append((epoch, value.detach().cpu().clone()))
        method.traces.clear()
        if not (self.traces and write):
            return
        arrays: dict[str, Any] = {}
        for name, kept in self.traces.items():
            arrays[name] = torch.stack([value for _, value in kept]).numpy()
            arrays[f"{name}.epoch"] = np.array([epoch for epoch, _ in kept])
        path = self.folder / "traces.npz"
        records.write_whole(path, lambda file: np.savez_compressed(file, **arrays))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.seconds, self._since = self._clock(), 0.0

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Say why the run stopped, if it had begun: bad input leaves nothing behind."""
        if not (self._since or self.history):
            return
        status = "interrupted" if isinstance(exception, KeyboardInterrupt) else "failed"
        self._write(trainer, pl_module, status, f"{type(exception).__name__}: {exception}")

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores of every test image, where the method gives any."""
        self._collect("test", outputs, batch)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores of the chosen weights; those of every epoch would be too many."""
        watched = _method(pl_module).data.watched[dataloader_idx]
        if self.selection is not None and watched == "val":
            self._collect(watched, outputs, batch)

    def _collect(self, split: str, outputs: object, batch: Batch) -> None:
        if not (self.keep and isinstance(outputs, dict)):
            return
        row = {"index": batch["index"], "label": batch["label"], **outputs}
        self._outputs.setdefault(split, []).append(
            {name: tensor.cpu() for name, tensor in row.items()}
        )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Store the scores of the validation set, as those of the test set."""
        self._store(trainer)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring the scores of all ranks together and store them on the first."""
        self._store(trainer)

    def _store(self, trainer: L.Trainer) -> None:
        if not self.keep or self.selection is None:
            return
        found: list[dict[str, list[dict[str, Tensor]]]] = [self._outputs]
        if trainer.world_size > 1:
            found = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(found, self._outputs)
        self._outputs = {}
        if not trainer.is_global_zero:
            return
        for split in {split: None for shard in found for split in shard}:
            batches = [batch for shard in found for batch in shard.get(split, [])]
            columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
            self.save_predictions(split, columns)

    def save_predictions(self, split: str, columns: dict[str, Tensor]) -> None:
        """Write ``predictions_<selection>.npz`` (test) or ``<split>_predictions_<selection>.npz``.

        It opens with ``allow_pickle=False``. Arrays, a row an image, in the order of the source:
        ``index`` (N,), ``label`` (N,), ``prediction`` (N,), ``confidence`` (N,), ``logits`` (N, C)
        up to 10 million of them, and ``prediction_<head>`` (N,) of each further head.

        Args:
            split: Which images.
            columns: ``index`` and ``label``, then the logits (N, C) of each head.
        """
        index, label, *heads = columns.values()
        order = index.argsort(stable=True)
        logits = heads[0][order].float()
        confidence, prediction = logits.softmax(1).max(1)
        arrays: dict[str, Any] = {
            "index": index[order],
            "label": label[order],
            "prediction": prediction,
            "confidence": confidence,
        }
        if logits.numel() <= LOGITS_KEPT:
            arrays["logits"] = logits
        for name in list(columns)[3:]:
            arrays[f"prediction_{name}"] = columns[name][order].argmax(1)
        stem = "predictions" if split == "test" else f"{split}_predictions"
        path = self.folder / f"{stem}_{self.selection}.npz"
        arrays = {name: tensor.numpy() for name, tensor in arrays.items()}
        records.write_whole(path, lambda file: np.savez_compressed(file, **arrays))

    def select(self, selection: str) -> None:
        """Say which weights are evaluated next, with what validation said of them.

        Args:
            selection: ``last``; ``best``, the first epoch that was best on validation; or
                ``given``, a checkpoint that the user named.
        """
        self.selection = selection
        self.metrics[selection] = {}
        if selection == "best":
            rows = [row for row in self.history if self.monitor in row]
        else:
            rows = self.history[-1:] if selection == "last" else []
        row = max(rows, key=lambda row: row.get(self.monitor, 0.0), default=None)
        if row:
            self.metrics[selection] = {"epoch": row["epoch"], "val": _under("val", row)}

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the test metrics of this selection into the record."""
        test = _under("test", trainer.callback_metrics)
        self.metrics[self.selection or "given"]["test"] = test | _method(pl_module).test_details()

    def finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that all is done."""
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
        records.write_record(self.folder / "record.json", record)
        curves = pd.DataFrame(self.history).to_csv(index=False).encode()
        records.write_whole(self.folder / "metrics.csv", lambda file: file.write(curves))

    def summary(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        status: str,
        cause: str | None = None,
    ) -> dict[str, Any]:
        """Return the record as it stands (:mod:`ltbench.records` says what is in it)."""
        method = _method(pl_module)
        seconds = self._clock()
        averaged = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
        return {
            "schema": records.SCHEMA,
            **self.identity,
            "lineage": method.lineage or self.identity["lineage"],
            "seed": seeding.run_seed(),
            "data": method.data.describe(),
            "metrics": self.metrics,
            "weights": "averaged" if averaged else "raw",
            "deviations": list(method.deviations),
            "device": device_name(pl_module.device),
            "threads": torch.get_num_threads(),
            "precision": str(trainer.precision),
            "world_size": trainer.world_size,
            "batch_size": method.data.batch_size,
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "epochs": len(self.history),
            "steps": trainer.global_step,
            "images_seen": self.images_seen,
            "wall_seconds": round(seconds, 1),
            "images_per_second": round(self.images_seen / seconds, 1) if seconds else None,
            "peak_memory_bytes": peak_memory(pl_module.device),
            "status": status,
            "cause": cause,
        }


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint that is still known after its run folder was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as if the files had always been here; those of another run are none of this one."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "", Path(path).name)) if path else ""

        if not Path(here(state_dict["best_model_path"])).is_file():
            return
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        super().load_state_dict(
            state_dict
            | {name: here(state_dict[name]) for name in paths}
            | {
                "dirpath": self.dirpath,
                "best_k_models": {here(p): s for p, s in state_dict["best_k_models"].items()},
            }
        )


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints are never half written; Lightning would copy them from /tmp over the old ones."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401 - Lightning's signature
    ) -> None:
        """Write a checkpoint as every other file of a run."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        records.write_whole(Path(path), lambda file: file.write(buffer.getbuffer()))


class Progress(RichProgressBar):
    """Lightning's Rich bar with the time left of the whole training, not of the epoch alone."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember when and where this sitting began."""
        super().on_train_start(trainer, pl_module)
        self._began, self._from = time.monotonic(), trainer.global_step

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Show the loss of the last step and when training will end."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        done = trainer.global_step - self._from
        left = trainer.estimated_stepping_batches - trainer.global_step
        if done:
            seconds = (time.monotonic() - self._began) / done * left
            items["ends in"] = str(timedelta(seconds=round(seconds)))
        return items


def _method(module: L.LightningModule) -> Method:
    assert isinstance(module, Method)
    return module


def count_images(batch: Batch) -> int:
    """Return how many images a training batch holds: every ``index`` in it names some."""
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
    """Return what a reader calls the device: the GPU's name, or the processor's and its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{torch.backends.cpu.get_cpu_capability()} CPU, {os.cpu_count()} cores"
    return str(device)


def peak_memory(device: torch.device) -> int:
    """Return the most memory held so far, in bytes: the GPU's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
