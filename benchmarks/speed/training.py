"""What does training through the whole project cost over a method's bare step and a plain loop?

One `ltbench fit` a method, with everything that belongs to it, pauses every few steps for

* ``bare``: the method's own step on one cached batch: its passes, loss and optimizer;
* ``plain loop``, once a repeat and for cross-entropy alone: the training loop of the published
  scripts, with transforms of PIL images one by one, loader workers, float32 and two reads of the
  device a step;
* ``augment``: augmentation and normalisation of a raw batch alone.

Where only bare step and augmentation together reach the goal, augmentation is what is missing. The
rest is loading, averaging of weights, the bar, the trainer and logging, which SAM has most of: it
tells three numbers of a step besides the loss.

A repeat of cross-entropy is one epoch of CIFAR-10-LT, so that it holds what happens once an epoch.
CBGAN, which has no such step, is measured by ``cbgan.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from PIL import Image
from timing import Parser, Rounds, Row, report
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from trainings import CONFIGS, Pauses, bare_step, train

from ltbench.data.datasets import MemoryImages
from ltbench.methods.erm import ERM
from ltbench.models import build_backbone

WRN = {"name": "wrn_28_2", "negative_slope": 0.1, "bn_momentum": 0.001}


@dataclass(frozen=True)
class Case:
    """A method as it is measured.

    Args:
        steps: Of a repeat.
        starts: Networks that the method starts from.
        options: Further options of `fit`.
    """

    steps: int
    starts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


METHODS = {  # by their config
    "ce_cifar10": Case(97),
    "vssam_cifar10": Case(24),
    "paco_cifar10": Case(24),
    "fixmatch_cifar10": Case(12),
    "csst_cifar10": Case(12),
    "selmix_cifar10": Case(
        24,
        {"init_from": WRN},
        {
            "data__protocol__val_per_class": 50,  # a look comes before the first step
            "model__partners": "labelled",
        },
    ),
    "deitlt_tiny_cifar10": Case(12, {"teacher": {"name": "resnet32_cifar"}}),
}
PLAIN = "ce_cifar10"  # has the plain loop as a rival
WORKERS = 2


class PlainImages(Dataset[tuple[torch.Tensor, int]]):
    """Images and labels one by one, as torchvision's CIFAR-10 gives them."""

    def __init__(self, images: MemoryImages, mean: Sequence[float], std: Sequence[float]) -> None:
        self.pixels = images.images.cpu().permute(0, 2, 3, 1).numpy()
        self.labels = images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(self.pixels.shape[1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        """Return one image, transformed, and its label."""
        return self.transform(Image.fromarray(self.pixels[row])), self.labels[row]


def plain_loop(
    steps: int,
) -> Callable[[L.Trainer, ERM], Mapping[str, Callable[[], int]]]:
    """Return what makes the plain loop of so many steps, which ends as an epoch does."""

    def make(trainer: L.Trainer, method: ERM) -> Mapping[str, Callable[[], int]]:
        data, device = method.data, method.device
        loaded = data.dataset("train")
        assert isinstance(loaded, MemoryImages)
        images = PlainImages(loaded, data.source.mean, data.source.std)
        net = build_backbone(**method.network).to(device)
        optimizer = method.optimizer(net.parameters())

        def epoch() -> int:
            rows = torch.randperm(len(images))[: steps * data.batch_size].tolist()
            loader = DataLoader(
                Subset(images, rows),
                data.batch_size,
                shuffle=True,
                num_workers=WORKERS,
                pin_memory=device.type == "cuda",
            )
            loss_sum, right = 0.0, 0.0
            for inputs, labels in loader:
                inputs, labels = inputs.to(device), labels.to(device)
                scores = net(inputs)
                loss = F.cross_entropy(scores, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss_sum += loss.item() * len(labels)
                right += (scores.argmax(1) == labels).float().sum().item()
            return len(rows)

        return {"plain loop": epoch}

    return make


def answer(rounds: Sequence[Rounds]) -> list[Row]:
    """Return the ratios of every method."""
    rows = []
    for each in rounds:
        title = f"{each.title}: images/s through the project / of its bare step"
        rows.append(each.row(title, lambda s: s["bare"] / s["project"], ">= 0.97"))
        title += " and augmentation together"
        rows.append(each.row(title, lambda s: (s["bare"] + s["augment"]) / s["project"]))
        if "plain loop" in each.repeats[0]:
            title = f"{each.title}: images/s through the project / of the plain loop"
            rows.append(each.row(title, lambda s: s["plain loop"] / s["project"], ">= 2"))
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__, repeats=3)
    parser.add_argument("--configs", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, help="steps a repeat; default: an epoch, or a few")
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    parser.add_argument("--batch-size", type=int, help="default: that of the config")
    args = parser.parse_args(words)
    measured = []
    for config in args.configs:
        case, rounds = METHODS[config], Rounds(config)
        steps = args.steps or case.steps
        pauses = Pauses(
            rounds,
            lambda *run: {"bare": bare_step(*run)},
            steps,
            args.repeats,
            plain_loop(steps) if config == PLAIN else None,
        )
        options = {"trainer__precision": args.precision, **case.options}
        options |= {"data__batch_size": args.batch_size} if args.batch_size else {}
        train(CONFIGS / f"{config}.yaml", pauses, args.root, case.starts, **options)
        measured.append(rounds)
    report(
        args,
        answer(measured),
        *measured,
        unit="images/s",
        images=args.root.name if args.root else "random, in memory",
        precision=args.precision,
        plain_loop=f"32-true, {WORKERS} workers",
    )


if __name__ == "__main__":
    main()
