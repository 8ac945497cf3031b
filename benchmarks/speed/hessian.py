"""What a Hessian-vector product costs over a gradient, and a class's spectrum in time and memory.

ResNet-32 (464,154 parameters) in evaluation mode on random images, float32, as `ltbench analyze
hessian` has it. On one batch, in turns, so that whatever slows the machine slows all alike:

* ``gradient``: forward, loss and backward;
* ``torch``: one product by torch's own double backward;
* ``product``: one product of `ltbench.analysis.curvature`;
* ``five``: a product in five runs at once, which share the graph of the gradient, by product.

Then the spectrum of one class: Lanczos steps with all that belongs to them. Memory is the growth of
the process's peak when a product runs over ten times the images, after it ran over one batch.
"""

import argparse
import json
import os
import platform
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from training import cpu_name

from ltbench import records
from ltbench.analysis.curvature import MeanLoss
from ltbench.analysis.lanczos import lanczos, rademacher
from ltbench.models import build_backbone

RUNS = 5
GOAL = "2.5"


def problem(images: int, batch: int) -> MeanLoss:
    """Return the mean loss of a fresh network over one class of random images."""
    torch.manual_seed(0)
    net = build_backbone("resnet32_cifar", 10).to(memory_format=torch.channels_last).eval()
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)

    def batches() -> Any:  # noqa: ANN401 - a generator
        for start in range(0, images, batch):
            part = pixels[start : start + batch].contiguous(memory_format=torch.channels_last)
            yield {"image": part.float().sub_(127).div_(60)}

    def loss(found: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = net(found["image"])
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    return MeanLoss(list(net.parameters()), batches, loss, lambda b: len(b["image"]) / images)


def rivals(target: MeanLoss) -> dict[str, tuple[Callable[[], object], int]]:
    """Return what takes turns on one batch, and how many products each call makes."""
    (batch,) = target.batches()
    vectors = torch.randn(RUNS, target.size)
    pieces = [
        v.view(p.shape)
        for v, p in zip(
            vectors[0].split([p.numel() for p in target.parameters]), target.parameters, strict=True
        )
    ]

    def double_backward() -> None:
        slope = torch.autograd.grad(target.loss(batch), target.parameters, create_graph=True)
        torch.autograd.grad(slope, target.parameters, pieces)

    return {
        "gradient": (lambda: torch.autograd.grad(target.loss(batch), target.parameters), 1),
        "torch": (double_backward, 1),
        "product": (lambda: target.products(vectors[:1]), 1),
        "five": (lambda: target.products(vectors), RUNS),
    }


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Return the seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def peak() -> int:
    """Return the most memory that the process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and lay out what was found, ratios first."""
    torch.set_num_threads(args.threads)
    small, large = problem(args.batch, args.batch), problem(10 * args.batch, args.batch)
    vector = torch.randn(1, small.size)
    small.products(vector)
    before = peak()
    large.products(vector)
    growth = peak() - before
    turns, repeats = rivals(small), []
    for _ in range(args.repeats):
        seconds: dict[str, dict[str, float]] = defaultdict(dict)
        for name, (work, products) in turns.items():
            seconds[name] = {clock: s / products for clock, s in timed(work).items()}
        repeats.append(seconds)
    start = rademacher(small.size, 0)[None]
    one = problem(args.images, args.batch)
    spectrum = timed(lambda: lanczos(one.products, start, args.steps))
    ratios = {
        name: {
            clock: median(each[name][clock] / each["gradient"][clock] for each in repeats)
            for clock in ("wall", "processor")
        }
        for name in ("torch", "product", "five")
    }
    return {
        "ratios": ratios,
        "spectrum_seconds": {"steps": args.steps, "images": args.images, "runs": 1, **spectrum},
        "memory": {"parameters_bytes": 4 * small.size, "peak": before, "growth_tenfold": growth},
        "setting": {"batch": args.batch, "threads": args.threads, "precision": "float32"},
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **records.versions()},
        "git": records.git_state(Path(__file__).parent),
        "repeats": repeats,
    }


def table(result: dict[str, Any]) -> Table:
    """Lay out a report for people."""
    found = Table(
        "over one gradient evaluation", "goal", "wall", "processor",
        title="Hessian-vector product", title_justify="left",
    )  # fmt: skip
    names = {
        "torch": ("torch's double backward", ""),
        "product": ("one product alone", ""),
        "five": ("a product of five runs at once", GOAL),
    }
    for name, (title, goal) in names.items():
        ratio = result["ratios"][name]
        found.add_row(title, goal, f"{ratio['wall']:.2f}", f"{ratio['processor']:.2f}")
    spectrum, memory = result["spectrum_seconds"], result["memory"]
    title = f"{spectrum['steps']} Lanczos steps, {spectrum['images']} images, one run: seconds"
    found.add_row(title, "", f"{spectrum['wall']:.0f}", f"{spectrum['processor']:.0f}")
    megabytes = memory["growth_tenfold"] / 2**20
    found.add_row("growth of the peak with ten times the images, MiB", "0", f"{megabytes:.0f}", "")
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description="Cost of class-wise spectra.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=int, default=50, help="of the class: the rarest of CIFAR")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args(words)
    result = measure(args)
    Console().print(table(result))
    text = json.dumps(result, indent=1) + "\n"
    records.write_whole(args.output, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
