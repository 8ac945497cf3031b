"""What a CSST step costs over a FixMatch step, and what objectives cost for 1,000 classes.

Network, batch and precision are those of ``configs/csst_cifar10.yaml``: WRN-28-2, 64 labelled
images and 256 unlabelled ones in two views, already on the device. In turns, a few steps each:

* ``fixmatch``: forward, FixMatch's loss, backward and SGD step;
* ``csst``: the same with CSST's hybrid losses and threshold;
* ``update``: the update of the multipliers, one pass over the 5,000 held-out images.

The images are noise. An update is counted once in ``--interval`` steps, 1,000 as in the second half
of the published schedule. Ratios are taken within a repeat, and the median counts. Objectives are
measured apart: gain matrix and gradients of each, from a confusion matrix of 1,000 classes.
"""

import argparse
import copy
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from training import CLOCKS, ROOT, RandomImages, Repeat, cpu_name

from ltbench import records
from ltbench.callbacks import device_name
from ltbench.data.protocols import ReleasedProtocol
from ltbench.data.semi import SemiSupervisedDataModule
from ltbench.methods.csst import CSST
from ltbench.methods.fixmatch import FixMatch
from ltbench.objectives import OBJECTIVES, Ascent, build_objective, joint_confusion
from ltbench.training import quiet

BACKBONE = {"negative_slope": 0.1, "bn_momentum": 0.001}
CLASSES = 1000


class TakeTurns(Callback):
    """Measure before the first step, when everything is in its place.

    Args:
        steps: Steps of a turn.
        repeats: How often each has its turn.

    Attributes:
        repeats: What was measured; the first turns, a warm-up, are left out.
    """

    def __init__(self, steps: int, repeats: int) -> None:
        self.steps, self.wanted = steps, repeats
        self.repeats: list[Repeat] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take turns."""
        assert isinstance(pl_module, CSST)
        self.device = pl_module.device
        rivals = self._rivals(trainer, pl_module)
        order = list(rivals)
        for repeat in range(1 + self.wanted):
            found: Repeat = {}
            for name in order:
                since = self._now()
                for _ in range(1 if name == "update" else self.steps):
                    rivals[name]()
                found[name] = np.array(
                    [1 if name == "update" else self.steps, *(self._now() - since)]
                )
            order.reverse()
            if repeat:
                self.repeats.append(found)

    def _rivals(self, trainer: L.Trainer, csst: CSST) -> dict[str, Callable[[], object]]:
        data = csst.data
        raw = next(iter(data.train_dataloader()))
        batch = data.on_after_batch_transfer(data.transfer_batch_to_device(raw, self.device, 0), 0)
        fixmatch = FixMatch(csst.num_classes, 3, backbone_args=BACKBONE).to(self.device).train()
        fixmatch.net.load_state_dict(csst.net.state_dict())
        ours = copy.deepcopy(fixmatch.net)

        def step_of(method: FixMatch, net: torch.nn.Module) -> Callable[[], object]:
            optimizer = method.optimizer(net.parameters())

            def step() -> None:
                optimizer.zero_grad()
                with trainer.precision_plugin.forward_context():
                    loss = method.loss_of(batch, slice(None))
                loss.backward()
                optimizer.step()

            return step

        csst.net = ours
        return {
            "fixmatch": step_of(fixmatch, fixmatch.net),
            "csst": step_of(csst, ours),
            "update": csst.update_multipliers,
        }

    def _now(self) -> np.ndarray[Any, Any]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return np.array([time.perf_counter(), time.process_time()])


def measure(args: argparse.Namespace) -> list[Repeat]:
    """Train for as long as the turns take."""
    quiet()
    data = SemiSupervisedDataModule(
        "cifar10",
        protocol=ReleasedProtocol(val_per_class=args.held_out // 10),
        batch_size=args.batch_size,
        mu=4,
    )
    data.source = RandomImages(Path())
    turns = TakeTurns(args.steps, args.repeats)
    trainer = L.Trainer(
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        devices=1,
        precision=args.precision,
        callbacks=[turns],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = CSST(10, 3, backbone_args=BACKBONE, update_interval=args.interval)
    trainer.fit(model, datamodule=data)
    return turns.repeats


def objectives(repeats: int = 5) -> dict[str, float]:
    """Return milliseconds for update, gain and gradients of each objective at 1,000 classes."""
    draw = np.random.default_rng(0)
    joint = joint_confusion(torch.from_numpy(draw.integers(1, 50, (CLASSES, CLASSES))))
    counts = torch.arange(CLASSES, 0, -1)
    prior = counts.double() / counts.sum()

    def all_of(name: str) -> None:
        objective = build_objective(name, counts)
        multipliers = objective.update(objective.initial, joint, Ascent())
        objective.gain(prior, joint, multipliers)
        objective.gradient(joint, multipliers)
        objective.logit_gradient(joint, multipliers)

    found = {}
    for name in OBJECTIVES:
        times = []
        for _ in range(1 + repeats):
            since = time.perf_counter()
            all_of(name)
            times.append(1000 * (time.perf_counter() - since))
        found[name] = round(median(times[1:]), 2)
    return found


def report(args: argparse.Namespace, repeats: list[Repeat]) -> dict[str, Any]:
    """Lay out what was measured, ratios first."""
    ratios, seconds = {}, {}
    for column, clock in enumerate(CLOCKS, start=1):
        each = [{name: row[column] / row[0] for name, row in found.items()} for found in repeats]
        ratios[clock] = {
            "csst_step_over_fixmatch_step": median(one["csst"] / one["fixmatch"] for one in each),
            "csst_over_fixmatch": median(
                (one["csst"] + one["update"] / args.interval) / one["fixmatch"] for one in each
            ),
        }
        seconds[clock] = {name: median(one[name] for one in each) for name in repeats[0]}
    return {
        "ratios": {key: {c: ratios[c][key] for c in CLOCKS} for key in ratios[CLOCKS[0]]},
        "seconds": seconds,
        "objectives_1000_classes_milliseconds": objectives(),
        "setting": {
            "backbone": "wrn_28_2",
            "labelled_images_a_step": args.batch_size,
            "unlabelled_images_a_step": 4 * args.batch_size,
            "held_out_images": args.held_out,
            "steps_between_updates": args.interval,
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
                for name, row in found.items()
            }
            for found in repeats
        ],
    }


def table(result: dict[str, Any]) -> Table:
    """Lay out a report for people."""
    setting, machine = result["setting"], result["machine"]
    laid = Table(
        title=f"CSST: {setting['backbone']}, {setting['precision']}, {setting['threads']} threads, "
        f"{machine['cpu']}",
        caption=f"medians of {len(result['repeats'])} repeats of {setting['steps_per_turn']} "
        f"steps; load average at the end {machine['load'][0]:.1f}",
    )
    laid.add_column("")
    for heading in ("goal", "wall time", "processor time"):
        laid.add_column(heading, justify="right")
    titles = {
        "csst_step_over_fixmatch_step": ("time of a CSST step / of a FixMatch step", ""),
        "csst_over_fixmatch": (
            f"the same with an update every {setting['steps_between_updates']:,} steps",
            "<= 1.03",
        ),
    }
    for key, (title, goal) in titles.items():
        laid.add_row(title, goal, *(f"{result['ratios'][key][clock]:.3f}" for clock in CLOCKS))
    laid.add_section()
    for name in ("fixmatch", "csst", "update"):
        laid.add_row(f"seconds, {name}", "", *(f"{result['seconds'][c][name]:.2f}" for c in CLOCKS))
    slowest = max(result["objectives_1000_classes_milliseconds"].values())
    laid.add_row("ms, gains and gradients, 1,000 classes, slowest", "< 50", f"{slowest:.1f}", "")
    return laid


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description="A CSST step against a FixMatch step.")
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument("--batch-size", type=int, default=64, help="labelled images a step")
    parser.add_argument("--held-out", type=int, default=5000, help="held-out images")
    parser.add_argument("--interval", type=int, default=1000, help="steps between updates")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--repeats", type=int, default=5)
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
