"""What SelMix costs: the gain of every pair of classes, a look, and a step.

Gains and shares of all pairs, for several numbers of classes, against the matrix products that they
contain, in turns on the same random numbers, and the memory that they take beyond their inputs. A
process of its own for each number keeps the peaks apart.

Then steps of a run on noise in the shape of CIFAR-10 (WRN-28-2, 64 pairs), in turns with their
rivals, a few steps each:

* ``selmix``: a step as training takes it: sampling, augmentation, step, hooks and logging;
* ``mixup``: a bare step of feature mixup on one cached batch of as many pairs;
* ``look``: what happens between two cycles, for 1,000 validation images;
* ``forward``: a bare forward pass over these images.

Ratios are taken within a repeat, and the median counts.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from training import CLOCKS, ROOT, RandomImages, Repeat, cpu_name

from ltbench import records
from ltbench.callbacks import device_name
from ltbench.data.augment import HorizontalFlip, RandomCrop
from ltbench.data.protocols import ReleasedProtocol
from ltbench.data.semi import SemiSupervisedDataModule
from ltbench.methods.selmix import SelMix
from ltbench.mixing_gain import pair_gains, selective, smooth
from ltbench.models import build_backbone
from ltbench.stages import Trained
from ltbench.training import quiet

FEATURES = {10: 128, 100: 128, 1000: 2048, 8142: 2048}
GOALS = {10: "< 1 ms", 100: "< 20 ms", 1000: "<= 1.5 x products, < 1 GiB", 8142: "< 4 GiB"}
BACKBONE = {"negative_slope": 0.1, "bn_momentum": 0.001}


def gains(classes: int, features: int, threads: int, repeats: int) -> dict[str, Any]:
    """Measure gains and shares for one number of classes: seconds, and bytes beyond the inputs."""
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(classes, features, generator=draw).abs_()
    w = torch.randn(classes, features, generator=draw) / features**0.5
    slopes = torch.randn(classes, classes, generator=draw, dtype=torch.float64)
    bias = torch.zeros(classes)

    def ours() -> None:
        smooth(selective(pair_gains(z, w, bias, slopes)))

    def products() -> None:
        wide = z.double()
        square = wide @ wide.T @ slopes
        for _ in range(3):
            torch.mm(square, slopes)
        wide @ w.double().T

    if classes > 1000:
        repeats = 1
    else:
        ours(), products()
    page = resource.getpagesize()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * page
    found: dict[str, list[list[float]]] = {"gains": [], "products": []}
    batch = max(1, 10**7 // classes**3)  # calls of a turn, so that short ones can be timed
    peak = 0
    for _ in range(repeats):
        for name, call in (("gains", ours), ("products", products)):
            since = np.array([time.perf_counter(), time.process_time()])
            for _ in range(batch):
                call()
            now = np.array([time.perf_counter(), time.process_time()])
            found[name].append(((now - since) / batch).tolist())
            if name == "gains":
                peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ratios = np.array(found["gains"]) / np.array(found["products"])
    return {
        "features": features,
        "seconds": {
            name: dict(zip(CLOCKS, np.median(rows, 0).tolist(), strict=True))
            for name, rows in found.items()
        },
        "over_products": dict(zip(CLOCKS, np.median(ratios, 0).tolist(), strict=True)),
        "extra_bytes": max(0, peak - before),
    }


class TakeTurns(Callback):
    """Pause a run every few steps for its rivals.

    Args:
        steps: Steps of a turn.

    Attributes:
        repeats: What was measured, by name: how many, seconds of wall time, of processor time; the
            first turns, a warm-up, are left out.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.taken = steps, 0
        self.repeats: list[Repeat] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; the first turn is a warm-up."""
        assert isinstance(pl_module, SelMix)
        self.device, self.method = pl_module.device, pl_module
        self.optimizer = pl_module.optimizer(pl_module.net.parameters())
        self.since = self._now()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: dict[str, torch.Tensor],
        batch_idx: int,
    ) -> None:
        """Let each rival take its turn, when a turn of the run is over."""
        self.taken += 1
        if self.taken % self.steps:
            return
        spent = self._now() - self.since
        found = {"selmix": np.array([self.steps, *spent])}
        rivals: dict[str, tuple[int, Callable[[], object]]] = {
            "mixup": (self.steps, lambda: self._mixup(batch)),
            "look": (1, self.method._look),
            "forward": (1, self._forward),
        }
        for name, (times, call) in rivals.items():
            since = self._now()
            for _ in range(times):
                call()
            found[name] = np.array([times, *(self._now() - since)])
        self.method.net.train(self.method.official_compat)
        if self.taken > self.steps:
            self.repeats.append(found)
        self.since = self._now()

    def _mixup(self, batch: dict[str, torch.Tensor]) -> None:
        net, labels = self.method.net, batch["label"]
        self.optimizer.zero_grad()
        share = 0.6 + 0.4 * torch.rand(len(labels), 1, device=self.device)
        with self.method.trainer.precision_plugin.forward_context():
            found = net.forward_head(net.forward_features(batch["image"]), pre_logits=True)
            one, other = found.chunk(2)
            loss = F.cross_entropy(net.get_classifier()(share * one + (1 - share) * other), labels)
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def _forward(self) -> None:
        method = self.method
        method.net.eval()
        with method.trainer.precision_plugin.forward_context():
            for batch in method.data.evaluation_batches("val", self.device):
                method.net(batch["image"])

    def _now(self) -> np.ndarray[Any, Any]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return np.array([time.perf_counter(), time.process_time()])


def steps(args: argparse.Namespace, folder: Path) -> list[Repeat]:
    """Fine-tune a random network for as long as the turns take."""
    quiet()
    L.seed_everything(0, verbose=False)
    torch.save(build_backbone("wrn_28_2", 10, **BACKBONE).state_dict(), folder / "start.pt")
    start = Trained(str(folder / "start.pt"), backbone="wrn_28_2", backbone_args=BACKBONE)
    data = SemiSupervisedDataModule(
        "cifar10",
        protocol=ReleasedProtocol(val_per_class=100),
        batch_size=64,
        mu=0,
        augment=[HorizontalFlip(), RandomCrop(4)],
    )
    data.source = RandomImages(Path())
    turns = TakeTurns(args.steps)
    trainer = L.Trainer(
        max_epochs=1,
        limit_val_batches=0,
        devices=1,
        precision=args.precision,
        callbacks=[turns],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    method = SelMix(10, 3, start, "mean_recall", cycle=args.steps * (1 + args.repeats))
    trainer.fit(method, datamodule=data)
    return turns.repeats


def report(
    args: argparse.Namespace, found: dict[int, dict[str, Any]], repeats: list[Repeat]
) -> dict[str, Any]:
    """Collect ratios, seconds, setting and machine."""

    def ratio(name: str, other: str) -> dict[str, float]:
        each = [(r[name][1:] / r[name][0]) / (r[other][1:] / r[other][0]) for r in repeats]
        return dict(zip(CLOCKS, np.median(each, 0).tolist(), strict=True))

    return {
        "ratios": {
            "selmix_over_mixup": ratio("selmix", "mixup"),
            "look_over_forward": ratio("look", "forward"),
        },
        "gains": found,
        "seconds": {
            clock: {
                name: median(r[name][1 + i] / r[name][0] for r in repeats) for name in repeats[0]
            }
            for i, clock in enumerate(CLOCKS)
        },
        "setting": {
            "backbone": "wrn_28_2",
            "pairs": 64,
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
                name: dict(zip(("times", *CLOCKS), row.round(4).tolist(), strict=True))
                for name, row in found.items()
            }
            for found in repeats
        ],
    }


def table(result: dict[str, Any]) -> Table:
    """Lay out a report for people."""
    setting, machine = result["setting"], result["machine"]
    laid = Table(
        title=f"SelMix: {setting['threads']} threads, {machine['cpu']}",
        caption=f"medians; load average at the end {machine['load'][0]:.1f}",
    )
    laid.add_column("")
    for heading in ("goal", "wall time", "processor time", "extra memory"):
        laid.add_column(heading, justify="right")
    for classes, row in result["gains"].items():
        times = (1e3 * row["seconds"]["gains"][clock] for clock in CLOCKS)
        laid.add_row(
            f"ms, gains and shares, {classes:,} classes, d = {row['features']:,}",
            GOALS.get(classes, ""),
            *(f"{time:,.2f}" for time in times),
            f"{row['extra_bytes'] / 2**20:,.0f} MiB",
        )
        if classes < 1000:
            continue  # what is not a product counts for more than the few multiplications
        over = (f"{row['over_products'][clock]:.2f}" for clock in CLOCKS)
        laid.add_row("  over the products that they contain", "", *over, "")
    laid.add_section()
    for key, title, goal in (
        ("selmix_over_mixup", "time of a SelMix step / of a bare mixup step", "<= 1.1"),
        ("look_over_forward", "time of a look / of a forward pass over its images", ""),
    ):
        laid.add_row(title, goal, *(f"{result['ratios'][key][clock]:.3f}" for clock in CLOCKS), "")
    return laid


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description="What SelMix costs.")
    parser.add_argument("--classes", type=int, nargs="*", default=sorted(FEATURES))
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="32-true")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args(words)
    if args.threads:
        torch.set_num_threads(args.threads)
    found = {}
    for classes in args.classes:
        with get_context("spawn").Pool(1) as pool:
            job = (classes, FEATURES.get(classes, 2048), torch.get_num_threads(), args.repeats)
            found[classes] = pool.apply(gains, job)
    with tempfile.TemporaryDirectory() as folder:
        result = report(args, found, steps(args, Path(folder)))
    Console().print(table(result))
    records.write_whole(
        args.output, lambda file: file.write(f"{json.dumps(result, indent=1)}\n".encode())
    )
    Console().print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
