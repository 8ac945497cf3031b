"""How many images a second does batched augmentation make, against pipelines of single images?

Three pipelines on images of 32 pixels, from uint8 to standardised float32 batches, each as

* ``batched``: the project's transforms, a whole batch at a time;
* ``v2``: torchvision's transforms v2 on tensors, one image at a time;
* ``PIL``: torchvision's transforms of PIL images, one at a time, as published scripts have it.

A test holds the outputs to the same distribution.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from timing import Parser, Rounds, report, take_turns
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2
from trainings import RandomImages

from ltbench.data.datamodule import LongTailDataModule
from ltbench.data.transforms.basic import BatchTransform, Cutout, HorizontalFlip, RandomCrop
from ltbench.data.transforms.randaugment import RandAugment

Augment = Callable[[Tensor], Tensor]
"""Maps uint8 images (B, 3, H, W) to standardised float32 ones."""

MEAN, STD = RandomImages.mean, RandomImages.std


def batched(steps: Sequence[BatchTransform], device: torch.device) -> Augment:
    """Return the project's transforms and its normalisation."""
    data = LongTailDataModule("cifar10")
    draws = torch.Generator(device).manual_seed(0)

    def augment(images: Tensor) -> Tensor:
        images = images.to(device, non_blocking=True)
        for step in steps:
            images = step(images, draws)
        return data.normalise(images)

    return augment


def one_by_one(steps: Sequence[Callable[[Tensor], Tensor]]) -> Augment:
    """Return torchvision's transforms v2 and its normalisation."""
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    whole = v2.Compose([*steps, *last])
    return lambda images: torch.stack([whole(image) for image in images])


def of_pil(steps: Sequence[Callable[[Image.Image], Image.Image]]) -> Augment:
    """Return torchvision's transforms of PIL images, and its normalisation."""
    whole = transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)],
    )

    def augment(images: Tensor) -> Tensor:
        pixels = images.permute(0, 2, 3, 1).numpy()
        return torch.stack([whole(Image.fromarray(one)) for one in pixels])

    return augment


class OneCutout:
    """Black out one square of a (3, H, W) image (arXiv 1708.04552)."""

    def __init__(self, size: int) -> None:
        self.half = size // 2

    def __call__(self, image: Tensor) -> Tensor:
        """Cut."""
        height, width = image.shape[-2:]
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        cut = image.clone()
        top, left = max(y - self.half, 0), max(x - self.half, 0)
        cut[:, top : y + self.half, left : x + self.half] = 0
        return cut


def pipelines(device: torch.device | str = "cpu") -> dict[str, dict[str, Augment]]:
    """Return the pipelines: what they do -> by what -> how."""
    place = torch.device(device)
    crop, flip = v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()
    old = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    to_tensor = [transforms.PILToTensor(), OneCutout(16), transforms.ToPILImage()]
    ours = [RandomCrop(4), HorizontalFlip()]
    return {
        "crop, flip": {
            "batched": batched(ours, place),
            "v2": one_by_one([crop, flip]),
            "PIL": of_pil(old),
        },
        "crop, flip, cutout": {
            "batched": batched([*ours, Cutout(16)], place),
            "v2": one_by_one([crop, flip, OneCutout(16)]),
            "PIL": of_pil([*old, *to_tensor]),
        },
        "crop, flip, RandAugment": {
            "batched": batched([*ours, RandAugment(2, 9)], place),
            "v2": one_by_one([crop, flip, v2.RandAugment(2, 9)]),
            "PIL": of_pil([*old, transforms.RandAugment(2, 9)]),
        },
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=8, help="of a turn")
    args = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = LongTailDataModule("folder" if args.root else "cifar10", args.root and str(args.root))
    if args.root is None:
        data.source = RandomImages(Path())
    images = data.source.images("train", list(range(args.batch_size)))
    answer, measured = [], []
    for title, candidates in pipelines(device).items():
        rounds = Rounds(title, device)
        calls = {
            name: lambda augment=augment: augment(images) for name, augment in candidates.items()
        }
        take_turns(calls, args.repeats, args.batches, args.batch_size, rounds)
        for other in ("v2", "PIL"):
            answer.append(
                rounds.row(
                    f"{title}: images/s, batched / {other}",
                    lambda s, other=other: s[other] / s["batched"],
                )
            )
        measured.append(rounds)
    report(
        args,
        answer,
        *measured,
        unit="images/s",
        images=args.root.name if args.root else "random, in memory",
        batch_size=args.batch_size,
    )


if __name__ == "__main__":
    main()
