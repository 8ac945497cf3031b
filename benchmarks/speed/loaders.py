"""How does the training loader's speed grow with its workers?

The training batches of the data module from JPEG files that lie in the page cache, one epoch at a
time from the first job to the last batch, so that nothing is loaded ahead. The limit is one thread
that cuts the same random crops, times the workers. With one core more than workers, that is what
they can reach; beyond the cores there is nothing to gain.

Images in memory need no worker: the JSON file has the speed of their batches.
"""

from collections.abc import Sequence
from pathlib import Path

from decode import CROP, add_arguments, decoders, describe, listed_images
from timing import Parser, Rounds, report, take_turns
from torch.utils.data import DataLoader
from trainings import RandomImages

from ltbench.data.datamodule import LongTailDataModule
from ltbench.data.datasets import Batch
from ltbench.data.sources.decoding import Decoding


def loader_of_files(folder: Path, size: int, workers: int, batch: int) -> DataLoader[Batch]:
    """Return the training batches of listed files."""
    data = LongTailDataModule(
        "lists",
        str(folder),
        profile="natural",
        val_fraction=0,
        batch_size=batch,
        image_size=size,
        decoding=Decoding(random_crop=CROP),
        num_workers=workers,
    )
    data.setup()
    return data.train_dataloader()


def loader_in_memory() -> DataLoader[Batch]:
    """Return the training batches of CIFAR-10-LT's size, 128 images each."""
    data = LongTailDataModule("cifar10", val_fraction=0)
    data.source = RandomImages(Path())
    data.setup()
    return data.train_dataloader()


def epoch(loader: DataLoader[Batch]) -> int:
    """Load an epoch, and return its number of images."""
    return sum(len(batch["label"]) for batch in loader)


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__, repeats=3)
    add_arguments(parser)
    parser.add_argument("--workers", type=int, nargs="*", default=(0, 1, 2, 4))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.set_defaults(threads=1)
    args = parser.parse_args(words)
    with listed_images(args.root, args.number, args.made) as folder:
        found = describe(folder)
        number, crop = int(found["number"]), decoders(folder, args.size)["crop"]
        loaders = {n: loader_of_files(folder, args.size, n, args.batch_size) for n in args.workers}
        candidates = {
            "one thread": lambda: [crop(row) for row in range(number)],
            **{f"{n} workers": lambda n=n: epoch(loaders[n]) for n in loaders},
        }
        rounds = Rounds(clocks=("wall",))  # workers have a clock of their own
        take_turns(candidates, args.repeats, work=number, rounds=rounds)
    memory = loader_in_memory()
    resident = Rounds("in memory")
    take_turns({"loader": lambda: epoch(memory)}, args.repeats, work=epoch(memory), rounds=resident)
    answer = [
        rounds.row(
            f"images/s, {n} workers / {max(n, 1)} x one thread",
            lambda s, n=n: s["one thread"] / max(n, 1) / s[f"{n} workers"],
        )
        for n in loaders
    ]
    report(
        args,
        answer,
        rounds,
        resident,
        unit="images/s",
        images=args.root.name if args.root else "noise like photographs",
        size=args.size,
        batch_size=args.batch_size,
        **found,
    )


if __name__ == "__main__":
    main()
