"""What a step of DeiT-LT costs over the sum of its parts.

One run of `ltbench fit` on ``configs/deitlt_tiny_cifar10.yaml`` (or another of its method) with
everything that belongs to it, and a teacher with weights as they start. Every few steps it pauses,
and each rival takes as many steps on one cached batch of the run's own mixed images:

* ``student``: forward, both losses, backward and optimizer step;
* ``teacher``: the teacher's forward pass, without gradients, at the run's precision;
* ``augment``: augmentation and normalisation alone.

The goal is a throughput of at least 0.9 of student and teacher together. Ratios are taken within a
repeat, and the median over the repeats counts; see ``training.py`` for the rest.
"""

import argparse
import copy
import json
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from training import CLOCKS, ROOT, TERMINAL, MeasuredCLI, Repeat, TakeTurns, cpu_name

from ltbench import records
from ltbench.callbacks import device_name
from ltbench.methods.deit_lt import DeiTLT
from ltbench.models import build_backbone

CONFIG = ROOT / "configs" / "deitlt_tiny_cifar10.yaml"


class DistillationTurns(TakeTurns):
    """Time the trainer, and its parts in turn."""

    def _make_rivals(
        self, trainer: L.Trainer, method: L.LightningModule
    ) -> dict[str, Callable[[], object]]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(method, DeiTLT)
        on_cpu = data.dataset("train").__getitems__(range(data.batch_size))
        raw = {name: tensor.to(self.device) for name, tensor in on_cpu.items()}
        prepared = method.prepare_step(data.on_after_batch_transfer(raw, 0))
        self.batch_size = len(prepared.images)
        self.parameters = sum(p.numel() for p in method.net.parameters())
        student = copy.copy(method)  # shares all but the network
        student._modules = {**method._modules, "net": copy.deepcopy(method.net)}
        student.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
        optimizer = method.optimizer(student.net.parameters())

        def step() -> None:
            optimizer.zero_grad()
            with trainer.precision_plugin.forward_context():
                loss = student.loss_of(prepared, slice(None))
            loss.backward()
            optimizer.step()

        def teach() -> None:
            assert method.teacher is not None
            with trainer.precision_plugin.forward_context():
                method.teacher(prepared.images)

        augment = lambda: data.on_after_batch_transfer(raw, 0)  # noqa: E731
        return {"student": step, "teacher": teach, "augment": augment}


def measure(args: argparse.Namespace) -> DistillationTurns:
    """Run it."""
    turns = DistillationTurns(args.steps, args.precision == "bf16-mixed")
    source = ["--data.source", "folder", "--data.root", str(args.root)] if args.root else []
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        patch.dict(os.environ, TERMINAL),
        redirect_stdout(nowhere),
    ):
        teacher = Path(folder) / "teacher.pth"
        torch.save(build_backbone(args.teacher, 10).state_dict(), teacher)
        options = {
            "config": args.config,
            "model.teacher.path": teacher,
            "model.teacher.backbone": args.teacher,
            "trainer.precision": args.precision,
            "trainer.max_steps": turns.turn + args.repeats * args.steps,
            "trainer.default_root_dir": folder,
            "data.batch_size": args.batch_size,
            "model.micro_batch": "null",
        }
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        MeasuredCLI(["fit", *words, *source], turns, random_images=args.root is None)
    return turns


def report(args: argparse.Namespace, turns: DistillationTurns) -> dict[str, Any]:
    """Lay out what was measured, ratios first."""
    ratios: dict[str, dict[str, float]] = {"over_parts": {}, "over_parts_and_augment": {}}
    speeds = {}
    repeats: list[Repeat] = turns.repeats
    for column, clock in enumerate(CLOCKS, start=1):
        each = [{name: row[column] / row[0] for name, row in found.items()} for found in repeats]
        ratios["over_parts"][clock] = median(
            (one["student"] + one["teacher"]) / one["project"] for one in each
        )
        ratios["over_parts_and_augment"][clock] = median(
            (one["student"] + one["teacher"] + one["augment"]) / one["project"] for one in each
        )
        speeds[clock] = {name: median(1 / one[name] for one in each) for name in repeats[0]}
    return {
        "ratios": ratios,
        "images_per_second": speeds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if _cuda() else None,
        "setting": {
            "config": args.config.name,
            "teacher": args.teacher,
            "parameters": turns.parameters,
            "batch_size": args.batch_size,
            "images": args.root.name if args.root else "random, in memory",
            "precision": args.precision,
            "threads": torch.get_num_threads(),
            "steps_per_repeat": args.steps,
        },
        "machine": {
            "device": device_name(torch.device("cuda" if _cuda() else "cpu")),
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
                for name, row in found.items()
            }
            for found in repeats
        ],
    }


def _cuda() -> bool:
    return torch.cuda.is_available()


def table(result: dict[str, Any]) -> Table:
    """Lay out a report for people."""
    setting, machine = result["setting"], result["machine"]
    laid = Table(
        title=f"{setting['config']}, teacher {setting['teacher']}: {setting['images']}, batch "
        f"{setting['batch_size']}, {setting['precision']}, {setting['threads']} threads, "
        f"{machine['device']}",
        caption=f"medians of {len(result['repeats'])} repeats of {setting['steps_per_repeat']} "
        f"steps; load average at the end {machine['load'][0]:.1f}",
    )
    laid.add_column("")
    for heading in ("goal", "wall time", "processor time"):
        laid.add_column(heading, justify="right")
    titles = {
        "over_parts": ("images/s / of student step and teacher together", ">= 0.9"),
        "over_parts_and_augment": ("the same with augmentation as a part", ""),
    }
    for key, (title, goal) in titles.items():
        laid.add_row(title, goal, *(f"{result['ratios'][key][clock]:.3f}" for clock in CLOCKS))
    laid.add_section()
    for name in result["images_per_second"]["wall"]:
        speeds = (result["images_per_second"][clock][name] for clock in CLOCKS)
        laid.add_row(f"images/s, {name}", "", *(f"{speed:,.0f}" for speed in speeds))
    return laid


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description="A step of DeiT-LT against its parts.")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--teacher", default="resnet32_cifar", help="backbone of the teacher")
    parser.add_argument(
        "--data.root",
        dest="root",
        type=Path,
        help="folder of images (train/<class>/*); default: random images in memory",
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps a repeat")
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
