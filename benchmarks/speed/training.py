"""What training through the whole project costs over the same model's bare training step.

One run of `ltbench fit` on ``configs/ce_cifar10.yaml`` (ResNet-32, batch 128, CIFAR-10-LT with
imbalance factor 100) with everything that belongs to it: data, augmentation, loss, logging, record,
checkpoints, curves and the progress bar as on a terminal. Every few steps it pauses, and each rival
takes as many steps on one cached batch, so that whatever slows the machine slows all of them alike:

* ``bare``: forward, loss, backward and SGD step;
* ``sam``: the same with the gradient of `ltbench.sam.SAM`;
* ``augment``: augmentation and normalisation alone.

A repeat is one epoch by default, so that it holds what happens once an epoch; evaluation is left
out. Ratios are taken within a repeat, and the median over the repeats counts. Processor time stands
beside wall time because it holds on a busy machine, where wall time does not; it counts threads
that wait for each other as busy and leaves out waits for the disk, so the goals are on wall time.
"""

import argparse
import copy
import json
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from ltbench import records
from ltbench.callbacks import device_name
from ltbench.data.datamodule import LongTailDataModule
from ltbench.data.datasets import Batch
from ltbench.data.sources.base import Images, Labels
from ltbench.data.sources.cifar import Cifar10
from ltbench.methods.classification import ClassificationModule
from ltbench.methods.erm import ERM
from ltbench.sam import SAM
from ltbench.training import TrainingCLI

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "ce_cifar10.yaml"
EPOCH = 97  # steps
TURN = 4  # steps that one of them takes before it is another's turn

# Rich draws nothing into a file; these make it take one for a terminal.
TERMINAL = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}

Repeat = dict[str, NDArray[np.float64]]
"""By name: images, seconds of wall time, seconds of processor time."""

# What is reported: title, goal, and how it follows from one column of seconds an image.
RATIOS: dict[str, tuple[str, str, Callable[[dict[str, float]], float]]] = {
    "project_over_bare": (
        "images/s through the whole project / of the bare step",
        ">= 0.95",
        lambda seconds: seconds["bare"] / seconds["project"],
    ),
    "sam_over_bare": (
        "time of a SAM step / of the bare step",
        "<= 2.05",
        lambda seconds: seconds["sam"] / seconds["bare"],
    ),
    "augment_share": (
        "time of augmentation and normalisation / of a step of the project",
        "",
        lambda seconds: seconds["augment"] / seconds["project"],
    ),
}
CLOCKS = ("wall", "processor")


class RandomImages(Cifar10):
    """Noise in the shape of CIFAR-10, where there is no folder of images."""

    display_name = "random images"

    @property
    def class_names(self) -> list[str]:
        """Numbers."""
        return [str(c) for c in range(self.num_classes)]

    def _load(self, split: str) -> tuple[Images, Labels]:
        labels = np.repeat(np.arange(self.num_classes), 5000 if split == "train" else 1)
        draws = np.random.default_rng(0)
        return draws.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8), labels


class TakeTurns(Callback):
    """Time the trainer, and pause it every few steps for each rival to take as many.

    The first turns are a warm-up, which does not count.

    Args:
        steps: Steps of a repeat.
        autocast: Whether the rivals compute in bfloat16.

    Attributes:
        repeats: What was measured.
    """

    def __init__(self, steps: int, autocast: bool) -> None:
        self.steps = steps
        self.turn = min(TURN, steps)
        self.autocast = autocast
        self.repeats: list[Repeat] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the rivals."""
        self.device = pl_module.device
        self.rivals = self._make_rivals(trainer, pl_module)
        self.counts: Repeat = defaultdict(lambda: np.zeros(3))
        self.order = list(self.rivals)
        self.taken = self.images = 0
        self.since = self._now()

    def _make_rivals(
        self, trainer: L.Trainer, method: L.LightningModule
    ) -> dict[str, Callable[[], object]]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(method, ERM)
        on_cpu = data.dataset("train").__getitems__(range(data.batch_size))
        raw = {name: tensor.to(self.device) for name, tensor in on_cpu.items()}
        cached = data.on_after_batch_transfer(raw, 0)
        images, labels = cached["image"], cached["label"]
        self.batch_size = len(labels)
        nets = {name: copy.deepcopy(method.net) for name in ("bare", "sam")}
        optimizers = {name: method.optimizer(net.parameters()) for name, net in nets.items()}
        rule, noise = SAM(rho=0.05), torch.Generator(self.device)

        def loss_of(net: torch.nn.Module, part: slice) -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                return F.cross_entropy(net(images[part]), labels[part])

        def bare() -> None:
            optimizers["bare"].zero_grad()
            loss_of(nets["bare"], slice(None)).backward()
            optimizers["bare"].step()

        def sam() -> None:
            net = nets["sam"]
            rule.backward(
                net,
                lambda part: loss_of(net, part),
                len(labels),
                epoch=0,
                epochs=1,
                generator=noise,
            )
            optimizers["sam"].step()

        return {"bare": bare, "sam": sam, "augment": lambda: data.on_after_batch_transfer(raw, 0)}

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Give the rivals their turn where it is time; runs after all other callbacks."""
        self.taken += 1
        self.images += len(batch["label"])
        measured = trainer.global_step - self.turn  # steps since the warm-up
        whole = measured >= 0 and measured % self.steps == 0
        if self.taken < self.turn and not whole:
            return
        self._count("project", self.images)
        bar = trainer.progress_bar_callback
        shown = bar.progress if isinstance(bar, RichProgressBar) else None
        if shown:
            shown.stop()  # its thread draws on, at the rivals' expense
        for name in self.order:
            self.since = self._now()
            for _ in range(self.taken):
                self.rivals[name]()
            self._count(name, self.taken * self.batch_size)
        self.order.reverse()  # whoever follows the trainer, or SAM, may find a colder cache
        if whole:
            if measured:
                self.repeats.append(dict(self.counts))
                print(f"repeat {len(self.repeats)} done", file=sys.__stdout__, flush=True)
            self.counts.clear()
        if shown:
            shown.start()
        self.taken = self.images = 0
        self.since = self._now()

    def _count(self, name: str, images: int) -> None:
        self.counts[name] += [images, *(self._now() - self.since)]

    def _now(self) -> NDArray[np.float64]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return np.array([time.perf_counter(), time.process_time()])


class MeasuredCLI(TrainingCLI):
    """`ltbench fit` with one more callback, and neither test nor record at the end."""

    def __init__(self, args: list[str], turns: TakeTurns, random_images: bool) -> None:
        self.turns = turns
        self.random_images = random_images
        super().__init__(args)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:  # noqa: ANN401
        """Add the rivals, behind every callback that belongs to the run."""
        if self.random_images:
            self.datamodule.source = RandomImages(Path())
        trainer: L.Trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.turns)  # type: ignore[attr-defined]
        return trainer

    def fit(
        self,
        model: ClassificationModule,
        datamodule: LongTailDataModule,
        ckpt_path: str | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Train."""
        self.trainer.fit(model, datamodule=datamodule)


def measure(args: argparse.Namespace) -> list[Repeat]:
    """Run it."""
    turns = TakeTurns(args.steps, args.precision == "bf16-mixed")
    source = ["--data.source", "folder", "--data.root", str(args.root)] if args.root else []
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        patch.dict(os.environ, TERMINAL),
        redirect_stdout(nowhere),
    ):
        options = {
            "config": CONFIG,
            "trainer.precision": args.precision,
            "trainer.max_steps": turns.turn + args.repeats * args.steps,
            "trainer.default_root_dir": folder,
        }
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        MeasuredCLI(["fit", *words, *source], turns, random_images=args.root is None)
    return turns.repeats


def report(args: argparse.Namespace, repeats: list[Repeat]) -> dict[str, Any]:
    """Lay out what was measured, ratios first."""
    ratios, speeds = {}, {}
    for column, clock in enumerate(CLOCKS, start=1):
        seconds = [{name: row[column] / row[0] for name, row in each.items()} for each in repeats]
        ratios[clock] = {
            key: median(ratio(each) for each in seconds) for key, (_, _, ratio) in RATIOS.items()
        }
        speeds[clock] = {name: median(1 / each[name] for each in seconds) for name in repeats[0]}
    return {
        "ratios": {key: {clock: ratios[clock][key] for clock in CLOCKS} for key in RATIOS},
        "images_per_second": speeds,
        "setting": {
            "config": CONFIG.relative_to(ROOT).as_posix(),
            "images": args.root.name if args.root else "random, in memory",
            "precision": args.precision,
            "threads": torch.get_num_threads(),
            "steps_per_repeat": args.steps,
            "steps_per_turn": min(TURN, args.steps),
        },
        "machine": {
            "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **records.versions()},
        "git": records.git_state(ROOT),
        "repeats": [
            {
                name: dict(zip(("images", *CLOCKS), row.round(4).tolist(), strict=True))
                for name, row in each.items()
            }
            for each in repeats
        ],
    }


def cpu_name() -> str:
    """Return the processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(result: dict[str, Any]) -> Table:
    """Lay out a report for people."""
    setting, machine = result["setting"], result["machine"]
    laid = Table(
        title=f"Training: {setting['images']}, {setting['precision']}, "
        f"{setting['threads']} threads, {machine['cpu']}, {machine['cores']} cores",
        caption=f"medians of {len(result['repeats'])} repeats of {setting['steps_per_repeat']} "
        f"steps; load average at the end {machine['load'][0]:.1f}",
    )
    laid.add_column("")
    for heading in ("goal", "wall time", "processor time"):
        laid.add_column(heading, justify="right")
    for key, (title, goal, _) in RATIOS.items():
        laid.add_row(title, goal, *(f"{result['ratios'][key][clock]:.3f}" for clock in CLOCKS))
    laid.add_section()
    for name in result["images_per_second"]["wall"]:
        speeds = (result["images_per_second"][clock][name] for clock in CLOCKS)
        laid.add_row(f"images/s, {name}", "", *(f"{speed:,.0f}" for speed in speeds))
    return laid


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description="Training throughput against the bare step.")
    parser.add_argument(
        "--data.root",
        dest="root",
        type=Path,
        help="folder of images (train/<class>/*); default: random images in memory",
    )
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=EPOCH, help="steps a repeat; default: an epoch"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args(words)
    if args.threads:
        torch.set_num_threads(args.threads)
    result = report(args, measure(args))
    Console().print(table(result))
    records.write_whole(
        args.output, lambda file: file.write(f"{json.dumps(result, indent=1)}\n".encode())
    )
    Console().print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
