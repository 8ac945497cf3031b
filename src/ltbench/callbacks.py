"""What a run leaves behind: its record, its curves, its predictions and the table it prints."""

import io
import math
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
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
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ltbench import records, seeding
from ltbench.data.datamodule import Batch
from ltbench.methods.base import ClassificationModule

LOGITS_KEPT = 10_000_000
BEST = "val/mean_recall"  # what "best on validation" means

TABLE = (
    ("accuracy", "accuracy"),
    ("many_recall", "many-shot recall (> 100 training images)"),
    ("medium_recall", "medium-shot recall (20 to 100)"),
    ("few_recall", "few-shot recall (< 20)"),
    ("head_recall", "head recall (by index)"),
    ("mid_recall", "mid recall"),
    ("tail_recall", "tail recall"),
    ("hmean_recall", "H-mean recall"),
    ("gmean_recall", "G-mean recall"),
    ("min_recall", "min recall"),
)

SELECTIONS = {"last": "last epoch", "best": "best on val", "given": "given checkpoint"}


class RunRecord(Callback):
    """Keep ``record.json``, ``metrics.csv`` and ``predictions_<selection>.npz`` of one run.

    The record is rewritten whole after each epoch, so it tells the truth at any moment: ``status``
    is ``running``, ``done``, ``interrupted`` or ``failed`` (with ``cause``).

    Args:
        folder: The run folder.
        identity: What is known before the run: name, method, job id, resolved config.
        keep: Whether predictions are stored; an evaluation alone leaves nothing behind.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], keep: bool = True) -> None:
        """Remember where to write; nothing is written before training starts."""
        self.folder = folder
        self.identity = identity | {
            "versions": records.versions(),
            "git": records.git_state(Path(__file__).parent),
        }
        self.keep = keep
        self.history: list[dict[str, float]] = []
        self.images_seen = 0
        self.seconds = 0.0
        self.selection: str | None = None
        self.metrics: dict[str, dict[str, Any]] = {}
        self._since = 0.0
        self._validated: tuple[str, ...] = ()
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must remember."""
        return {"history": self.history, "images_seen": self.images_seen, "seconds": self._clock()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what a checkpoint remembers; not when it is loaded only to be tested."""
        if self.selection is not None:
            return
        self.history = state_dict["history"]
        self.images_seen = state_dict["images_seen"]
        self.seconds = state_dict["seconds"]

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
        self.images_seen += len(batch["label"]) * trainer.world_size

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that this epoch's row has validation metrics; those of earlier epochs linger."""
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
        self._write(trainer, pl_module, "running")

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
        """Keep the scores of every test image."""
        assert isinstance(outputs, Tensor)
        self._batches.append((batch["index"].cpu(), batch["label"].cpu(), outputs.float().cpu()))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring the scores of all ranks together and store them on the first."""
        columns = [torch.cat(column).numpy() for column in zip(*self._batches, strict=True)]
        self._batches.clear()
        if trainer.world_size > 1:
            shards: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(shards, columns)
            filled = [shard for shard in shards if shard]  # a rank may have had no image
            columns = [np.concatenate(column) for column in zip(*filled, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        index, label, logits = (column[order] for column in columns)
        if trainer.is_global_zero and self.keep:
            self.save_predictions(index, label, logits)

    def save_predictions(
        self, index: NDArray[np.int64], label: NDArray[np.int64], logits: NDArray[np.float32]
    ) -> None:
        """Write ``predictions_<selection>.npz``; opens with ``allow_pickle=False``.

        Arrays, a row an image, in the order of the source: ``index`` (N,), ``label`` (N,),
        ``prediction`` (N,), ``confidence`` (N,), and ``logits`` (N, C) up to 10 million of them.
        """
        scores = torch.from_numpy(logits)
        confidence, prediction = scores.softmax(1).max(1)
        arrays: dict[str, Any] = {
            "index": index,
            "label": label,
            "prediction": prediction.numpy(),
            "confidence": confidence.numpy(),
        }
        if logits.size <= LOGITS_KEPT:
            arrays["logits"] = logits
        path = self.folder / f"predictions_{self.selection}.npz"
        records.write_whole(path, lambda file: np.savez_compressed(file, **arrays))

    def select(self, selection: str) -> None:
        """Say which weights are evaluated next, with what validation said of them.

        Args:
            selection: ``last``; ``best``, the first epoch that was best on validation; or
                ``given``, a checkpoint that the user named.
        """
        self.selection = selection
        self.metrics[selection] = {}
        rows = {"last": self.history[-1:], "best": [row for row in self.history if BEST in row]}
        row = max(rows.get(selection, []), key=lambda row: row.get(BEST, 0.0), default=None)
        if row:
            self.metrics[selection] = {"epoch": row["epoch"], "val": _under("val", row)}

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the test metrics of this selection into the record."""
        test = _under("test", trainer.callback_metrics)
        test["per_class_recall"] = _method(pl_module).test_recalls.tolist()
        self.metrics[self.selection or "given"]["test"] = test

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


def _method(module: L.LightningModule) -> ClassificationModule:
    assert isinstance(module, ClassificationModule)
    return module


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


def result_table(record: dict[str, Any]) -> Table:
    """Lay out a record's metrics in percent: a column a selection (last epoch, best on val).

    They are those of the test set; of the validation set where the data has no test set.
    """
    selections = record["metrics"]
    split = "test" if any("test" in found for found in selections.values()) else "val"
    title = {"test": "test set", "val": "validation set"}[split]
    table = Table(title=f"{record['name']}: {title} of {record['data']['source']}, %")
    table.add_column("")
    for selection in selections:
        table.add_column(SELECTIONS[selection], justify="right")
    measured = [found.get(split, {}) for found in selections.values()]
    for name, title in TABLE:
        table.add_row(title, *(percent(metrics.get(name)) for metrics in measured))
    names = record["data"]["class_names"]
    table.add_row("class with the min recall", *(_worst_class(m, names) for m in measured))
    return table


def _worst_class(test: dict[str, Any], names: Sequence[str]) -> str:
    recalls = np.array(test.get("per_class_recall", []), dtype=float)
    return escape(names[int(np.nanargmin(recalls))]) if np.isfinite(recalls).any() else "-"


def percent(value: float | None) -> str:
    """Write a fraction as percent with one decimal; undefined ones as a dash."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
