"""What does a Hessian-vector product cost in gradients, and does memory grow with the images?

ResNet-32 (464,154 parameters) in evaluation mode on random images, float32, as `ltbench analyze
hessian` has it. On one batch, in turns:

* ``gradient``: forward, loss and backward;
* ``torch``: one product by torch's own double backward;
* ``product``: one product of `ltbench.analysis.curvature`;
* ``five``: a product in five runs at once, which share the graph of the gradient.

Then the spectrum of one class: Lanczos steps with all that belongs to them. Memory is the growth of
a process's peak when a product runs over ten batches, after it ran over one. Freed blocks go back
to the system there at once: those that glibc keeps for later come and go by some 0.4 GiB, as many
batches as there may be.
"""

import os
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from unittest.mock import patch

import torch
from timing import Candidate, Parser, Rounds, Row, peak_memory, report, take_turns
from torch.nn import functional as F

from ltbench.analysis.curvature import MeanLoss
from ltbench.analysis.lanczos import lanczos, rademacher
from ltbench.models import build_backbone

RUNS = 5


def problem(images: int, batch: int) -> MeanLoss:
    """Return the mean loss of a fresh network over one class of random images."""
    torch.manual_seed(0)
    net = build_backbone("resnet32_cifar", 10).to(memory_format=torch.channels_last).eval()
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, images, batch):
            part = pixels[start : start + batch].contiguous(memory_format=torch.channels_last)
            yield {"image": part.float().sub_(127).div_(60)}

    def loss(found: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = net(found["image"])
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    return MeanLoss(list(net.parameters()), batches, loss, lambda b: len(b["image"]) / images)


def products(target: MeanLoss) -> dict[str, Candidate]:
    """Return what takes turns on one batch."""
    (batch,) = target.batches()
    vectors = torch.randn(RUNS, target.size)
    sizes = [p.numel() for p in target.parameters]
    pieces = [
        piece.view_as(p)
        for piece, p in zip(vectors[0].split(sizes), target.parameters, strict=True)
    ]

    def double_backward() -> None:
        slope = torch.autograd.grad(target.loss(batch), target.parameters, create_graph=True)
        torch.autograd.grad(slope, target.parameters, pieces)

    return {
        "gradient": lambda: torch.autograd.grad(target.loss(batch), target.parameters),
        "torch": double_backward,
        "product": lambda: target.products(vectors[:1]),
        "five": lambda: target.products(vectors),
    }


def growth(batch: int) -> int:
    """Return the bytes that ten times the images add to the peak of a product."""
    at_once = patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**16))
    with at_once, get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth, (batch, torch.get_num_threads()))


def _growth(batch: int, threads: int) -> int:
    torch.set_num_threads(threads)
    small, large = problem(batch, batch), problem(10 * batch, batch)
    vector = torch.randn(1, small.size)
    for _ in range(2):  # the first makes what later ones find
        small.products(vector)
    before = peak_memory()
    large.products(vector)
    return peak_memory() - before


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__, repeats=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100, help="of Lanczos")
    parser.add_argument("--images", type=int, default=50, help="of the class: the rarest of CIFAR")
    args = parser.parse_args(words)
    memory = growth(args.batch_size)
    rounds = take_turns(products(problem(args.batch_size, args.batch_size)), args.repeats)
    one, spectrum = problem(args.images, args.batch_size), Rounds("spectrum")
    start = rademacher(one.size, 0)[None]
    spectrum.turn("Lanczos steps", lambda: lanczos(one.products, start, args.steps), work=1)
    spectrum.close()
    title = "time of {} / of a gradient"
    report(
        args,
        [
            rounds.row(
                title.format("a product of five runs at once"),
                lambda s: s["five"] / RUNS / s["gradient"],
                "<= 2.5",
            ),
            rounds.row(title.format("a product alone"), lambda s: s["product"] / s["gradient"]),
            rounds.row(
                title.format("torch's double backward"), lambda s: s["torch"] / s["gradient"]
            ),
            spectrum.row(
                f"{args.steps} Lanczos steps, {args.images} images",
                lambda s: s["Lanczos steps"],
                unit="s",
            ),
            Row("peak with ten times the images, more", {"wall": memory / 2**20}, "< 50", "MiB"),
        ],
        rounds,
        network="resnet32_cifar",
        batch_size=args.batch_size,
        precision="32-true",
    )


if __name__ == "__main__":
    main()
