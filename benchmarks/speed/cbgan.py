"""What CBGAN's regulariser adds to a training step of the same GAN.

The networks, batch and classifier are those of ``configs/cbgan_cifar10.yaml``: SNDCGAN at 32 pixels
and a ResNet-32, here with random weights; the images are noise. One run of the trainer takes a few
steps at a time in turn

* ``cbgan``: with the regulariser;
* ``gan``: the same run without it;

and pauses for as many steps on one cached batch of

* ``bare``: latents, both players' passes, losses and Adam steps, without trainer, data, logging and
  averaging;
* ``classifier``: the classifier's forward pass on generated images alone.

Ratios are taken within a repeat, and the median over the repeats counts. Processor time stands
beside wall time because it holds on a busy machine, where wall time does not.
"""

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from training import CLOCKS, ROOT, RandomImages, Repeat, cpu_name

from ltbench import records
from ltbench.callbacks import device_name
from ltbench.data.datamodule import LongTailDataModule
from ltbench.data.datasets import Batch
from ltbench.methods.cbgan import CBGAN, Balance
from ltbench.models import build_backbone
from ltbench.models.gan import Architecture, build_gan
from ltbench.stages import Trained
from ltbench.training import quiet

CLASSIFIER = "resnet32_cifar"

# What is reported: title, goal, and how it follows from one column of seconds a step.
RATIOS: dict[str, tuple[str, str, Callable[[dict[str, float]], float]]] = {
    "bare_over_cbgan": (
        "the bare GAN step / a step of the project with the regulariser",
        ">= 0.85",
        lambda seconds: seconds["bare"] / seconds["cbgan"],
    ),
    "regulariser": (
        "a step with the regulariser / without it",
        "<= 1.15",
        lambda seconds: seconds["cbgan"] / seconds["gan"],
    ),
    "classifier_share": (
        "the classifier's own forward pass / what the regulariser adds",
        "",
        lambda seconds: seconds["classifier"] / (seconds["cbgan"] - seconds["gan"]),
    ),
    "project": (
        "a step of the project without the regulariser / the bare GAN step",
        "",
        lambda seconds: seconds["gan"] / seconds["bare"],
    ),
}


class TakeTurns(Callback):
    """Time the trainer with and without the regulariser, and its rivals in between.

    The first round is a warm-up, which does not count.

    Args:
        steps: Iterations of a turn.

    Attributes:
        repeats: What was measured.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.repeats: list[Repeat] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the rivals."""
        assert isinstance(pl_module, CBGAN)
        self.device = pl_module.device
        self.balance = pl_module.balance
        self.rivals = self._make_rivals(trainer, pl_module)
        self.counts: Repeat = defaultdict(lambda: np.zeros(3))
        self.round = self.taken = 0
        self.since = self._now()

    def _make_rivals(self, trainer: L.Trainer, method: CBGAN) -> dict[str, Callable[[], object]]:
        size = method.data.batch_size
        generator, discriminator = (
            network.to(self.device, memory_format=torch.channels_last)
            for network in build_gan(Architecture(), 10)
        )
        optimizers = [method.optimizer(n.parameters()) for n in (generator, discriminator)]
        real = torch.rand(size, 3, 32, 32, device=self.device) * 2 - 1
        real = real.contiguous(memory_format=torch.channels_last)
        classifier, context = method._judges["classifier"], trainer.precision_plugin.forward_context

        def latents() -> torch.Tensor:
            return torch.randn(size, method.latent, device=self.device)

        def bare() -> None:
            with context():
                with torch.no_grad():
                    fake = generator(latents()).float()
                scores, _ = discriminator(torch.cat([real, fake]))
                loss = method.loss.discriminator(*scores.chunk(2))
            optimizers[1].zero_grad()
            loss.backward()
            optimizers[1].step()
            discriminator.requires_grad_(False)
            with context():
                scores, _ = discriminator(generator(latents()).float())
                with torch.no_grad():
                    real_scores, _ = discriminator(real)
                loss = method.loss.generator(real_scores, scores)
            optimizers[0].zero_grad()
            loss.backward()
            optimizers[0].step()
            discriminator.requires_grad_(True)

        def forward() -> None:
            with context(), torch.no_grad():
                classifier(real)

        return {"bare": bare, "classifier": forward}

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Go on to the next turn where it is time."""
        assert isinstance(pl_module, CBGAN)
        self.taken += 1
        if self.taken < self.steps:
            return
        self._count("cbgan" if pl_module.balance else "gan")
        pl_module.balance = None if pl_module.balance else self.balance
        self.round += 1
        if self.round % 2 == 0:
            for name, rival in self.rivals.items():
                self.since = self._now()
                for _ in range(self.steps):
                    rival()
                self._count(name)
            if self.round > 2:
                self.repeats.append(dict(self.counts))
            self.counts.clear()
            pl_module.balance = self.balance if self.round % 4 == 0 else None
        self.taken = 0
        self.since = self._now()

    def _count(self, name: str) -> None:
        self.counts[name] += [self.steps, *(self._now() - self.since)]

    def _now(self) -> NDArray[np.float64]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return np.array([time.perf_counter(), time.process_time()])


def measure(args: argparse.Namespace) -> list[Repeat]:
    """Train for as long as the turns take."""
    quiet()
    warnings.filterwarnings("ignore", "the classifier in the loop has", UserWarning)
    data = LongTailDataModule("cifar10", val_fraction=0, batch_size=args.batch_size)
    data.source = RandomImages(Path())
    turns = TakeTurns(args.steps)
    with tempfile.TemporaryDirectory() as folder:
        classifier, annotator = (_untrained(Path(folder, f"{n}.pt")) for n in range(2))
        model = CBGAN(
            balance=Balance(),
            classifier=classifier,
            annotator=annotator,
            fid_features=annotator,
        )
        trainer = L.Trainer(
            max_epochs=-1,
            max_steps=4 * args.steps * (1 + args.repeats),  # two optimizers, two turns
            limit_val_batches=0,
            devices=1,
            precision=args.precision,
            callbacks=[turns],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, datamodule=data)
    return turns.repeats


def _untrained(path: Path) -> Trained:
    torch.save(build_backbone(CLASSIFIER, 10).state_dict(), path)
    return Trained(str(path), backbone=CLASSIFIER)


def report(args: argparse.Namespace, repeats: list[Repeat]) -> dict[str, Any]:
    """Lay out what was measured, ratios first."""
    ratios, speeds = {}, {}
    for column, clock in enumerate(CLOCKS, start=1):
        seconds = [{name: row[column] / row[0] for name, row in each.items()} for each in repeats]
        ratios[clock] = {
            key: median(ratio(each) for each in seconds) for key, (_, _, ratio) in RATIOS.items()
        }
        speeds[clock] = {
            name: args.batch_size * median(1 / each[name] for each in seconds)
            for name in repeats[0]
        }
    return {
        "ratios": {key: {clock: ratios[clock][key] for clock in CLOCKS} for key in RATIOS},
        "images_per_second": speeds,
        "setting": {
            "network": "SNDCGAN, 32 pixels",
            "classifier": CLASSIFIER,
            "batch_size": args.batch_size,
            "precision": args.precision,
            "threads": torch.get_num_threads(),
            "steps_per_turn": args.steps,
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
                name: dict(zip(("steps", *CLOCKS), row.round(4).tolist(), strict=True))
                for name, row in each.items()
            }
            for each in repeats
        ],
    }


def table(result: dict[str, Any]) -> Table:
    """Lay out a report for people."""
    setting, machine = result["setting"], result["machine"]
    laid = Table(
        title=f"CBGAN: {setting['network']}, batch {setting['batch_size']}, "
        f"{setting['precision']}, {setting['threads']} threads, {machine['cpu']}",
        caption=f"medians of {len(result['repeats'])} repeats; load average at the end "
        f"{machine['load'][0]:.1f}",
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
    parser = argparse.ArgumentParser(description="The regulariser's share of a GAN step.")
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="iterations of a turn")
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
