"""``ltbench fit --dry-run``: what a run will cost, from a few of its steps."""

import json
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from typing_extensions import override

from ltbench import records
from ltbench.data.datasets import MemoryImages
from ltbench.runs.callbacks.run_record import count_images, device_name
from ltbench.runs.experiment import build
from ltbench.runs.notices import quiet
from ltbench.runs.training import make_trainer

STEPS = 10  # timed, after a first one that is not
SECONDS = 60.0  # after which no further step begins


class EnoughSteps(Exception):
    """Ends the training: its cost is known."""


class SavedTensors(saved_tensors_hooks):
    """Measure the memory of tensors that autograd saves for backward passes, while this is open.

    Args:
        held: Storages not to count, such as those of the weights.

    Attributes:
        peak: Largest number of bytes at one time.
    """

    def __init__(self, held: set[int]) -> None:
        self.held = held
        self.alive: Counter[int] = Counter()
        self.now = self.peak = 0
        super().__init__(self._save, lambda saved: saved.tensor)

    def _save(self, tensor: Tensor) -> "_Saved":
        # Detached: an operation that saves its own output would otherwise never release it.
        storage, saved = tensor.untyped_storage(), _Saved(tensor.detach())
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self.held:
            self.now += 0 if self.alive[place] else size
            self.alive[place] += 1
            self.peak = max(self.peak, self.now)
            weakref.finalize(saved, self._release, place, size)
        return saved

    def _release(self, place: int, size: int) -> None:
        self.alive[place] -= 1
        self.now -= 0 if self.alive[place] else size


class _Saved:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Meter(Callback):
    """Measure the first steps of a training, then end it with :class:`EnoughSteps`.

    Attributes:
        steps: Steps of the whole training.
        images: Images of each measured step, over all ranks.
        seconds: Time of each, including loading its data.
        memory: Bytes by purpose.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.images: list[int] = []
        self.seconds: list[float] = []
        self.memory: dict[str, int] = {}
        self.open = ExitStack()

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epochs, batches = trainer.max_epochs or -1, int(trainer.num_training_batches)
        self.steps = max(0, batches * epochs)
        Console(quiet=not trainer.is_global_zero).print(
            f"{_trained(pl_module):,} parameters; {self.steps:,} steps, {batches:,} per epoch. "
            "Timing a few of them.",
            highlight=False,
        )
        self.saved = SavedTensors({p.untyped_storage().data_ptr() for p in pl_module.parameters()})
        self.began = self.since = time.perf_counter()

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        if not self.seconds:
            self.open.enter_context(self.saved)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        if not self.seconds:
            self.open.close()
            self.memory = memory(trainer, pl_module) | {"activations": self.saved.peak}
        now = time.perf_counter()
        self.images.append(count_images(batch) * trainer.world_size)
        self.seconds.append(now - self.since)
        self.since = now
        late = len(self.seconds) > 1 and now - self.began > SECONDS
        if late or len(self.seconds) > STEPS:
            raise EnoughSteps

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.open.close()


def memory(trainer: L.Trainer, module: L.LightningModule) -> dict[str, int]:
    """Return the bytes that a training holds between its steps, by purpose."""
    states = [
        value
        for optimizer in trainer.optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    trained = [p for p in module.parameters() if p.requires_grad]
    loaded = trainer.datamodule._loaded.values()  # type: ignore[attr-defined]
    return {
        "weights": _bytes([*module.parameters(), *module.buffers()]),
        "gradients": _bytes(trained),
        "optimizer": _bytes(states),
        "images": _bytes([split.images for split in loaded if isinstance(split, MemoryImages)]),
    }


def _trained(module: L.LightningModule) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def cost_command(words: Sequence[str]) -> None:
    """Run ``ltbench fit --dry-run`` with further arguments of ``fit``."""
    with quiet():
        experiment = build(None, words, "fit --dry-run")
        meter = Meter()
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = make_trainer(experiment, experiment.training, [meter], limit_val_batches=0, **off)
        with suppress(EnoughSteps):
            trainer.fit(experiment.model, datamodule=experiment.data)
    cost = estimate(trainer, experiment.model, meter)
    if not trainer.is_global_zero:
        return
    Console().print(cost_table(experiment.config["name"], cost))
    if output := experiment.options.output:
        records.write_text(Path(output), json.dumps(cost, indent=1) + "\n")


def estimate(trainer: L.Trainer, module: L.LightningModule, meter: Meter) -> dict[str, Any]:
    """Return the cost of the whole training, by name; its time is without evaluation."""
    timed = meter.seconds[1:] or meter.seconds
    step = sorted(timed)[len(timed) // 2]
    images = max(meter.images)
    device = trainer.strategy.root_device  # where the weights are no more
    on_gpu = device.type == "cuda"
    device_parts = [size for name, size in meter.memory.items() if name != "images" or not on_gpu]
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else sum(device_parts)
    return {
        "device": device_name(device),
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
        "parameters": _trained(module),
        "epochs": trainer.max_epochs,
        "steps": meter.steps,
        "images_per_step": images,
        "images": meter.steps * images,
        "memory_bytes": {**meter.memory, "all": peak},
        "timed_steps": len(timed),
        "seconds_per_step": step,
        "images_per_second": images / step,
        "hours": meter.steps * step / 3600,
    }


def cost_table(name: str, cost: dict[str, Any]) -> Table:
    """Show an estimate as a table."""
    table = Table(title=f"{escape(name)}: cost of training", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_row("device", f"{cost['devices']} x {escape(cost['device'])}, {cost['precision']}")
    table.add_row("parameters", f"{cost['parameters']:,}")
    table.add_row("steps", f"{cost['steps']:,} in {cost['epochs']} epochs")
    table.add_row("images per step, over all devices", f"{cost['images_per_step']:,}")
    table.add_row("images", f"{cost['images']:,}")
    for part, size in cost["memory_bytes"].items():
        table.add_row(f"memory: {part}", f"{size / 2**20:,.0f} MiB")
    table.add_row(
        "time per step", f"{cost['seconds_per_step']:.3g} s ({cost['timed_steps']} timed)"
    )
    table.add_row("images per second", f"{cost['images_per_second']:,.0f}")
    duration = timedelta(seconds=round(3600 * cost["hours"]))
    table.add_row("training, without evaluation", f"{duration} ({cost['hours']:.2f} h)")
    return table
