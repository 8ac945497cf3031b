"""What it costs to bring JPEG files to squares of 224 pixels, an image and a worker.

One thread, as in a worker of the loader, and files that lie in the page cache:

* ``torchvision``: torchvision's decoder alone, the whole image: the limit without reduced sizes;
* ``torchvision crop``: the same and a random resized crop, the usual pipeline;
* ``crop, whole``: the project's random crops without reduced sizes;
* ``crop``: with them, as in training: a half, a quarter or an eighth where the box is large enough;
* ``two crops``: two views of an image, decoded once;
* ``centre``: resized to 256 and cut, as in evaluation;
* ``loader``: the training batches of the data module, by the number of its workers.

They take turns, so that whatever slows the machine slows all of them alike; the median over the
repeats counts. Processor time stands beside wall time because it holds on a busy machine.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import v2
from training import cpu_name

from ltbench import records, seeding
from ltbench.data.datamodule import LongTailDataModule
from ltbench.data.datasets import Batch
from ltbench.data.sources.decoding import Decoding
from ltbench.data.sources.files import FileSource
from ltbench.data.sources.folder import image_files
from ltbench.data.sources.lists import Lists

ROOT = Path(__file__).parents[2]
CROP = (0.08, 1.0)


def photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write JPEG files of noise whose power falls with the frequency, as that of photographs."""
    draws = np.random.default_rng(0)
    width, height = size
    distance = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    distance[0, 0] = 1
    for number in range(count):
        layers = []
        for _ in range(3):
            noise = np.fft.rfft2(draws.standard_normal((height, width))) / distance
            layer = np.fft.irfft2(noise, (height, width))
            layers.append(128 + 50 * (layer - layer.mean()) / layer.std())
        pixels = np.stack(layers, -1).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.jpg", quality=90)


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of an image."""
    with Image.open(path) as image:
        return image.size


def tasks(root: Path, names: Sequence[str], size: int) -> dict[str, Callable[[int], object]]:
    """Name -> what is done to one image."""

    def source(reduced: bool) -> FileSource:
        resize = round(size / 0.875)
        return Lists(root, size, decoding=Decoding(resize, CROP, reduced=reduced))

    reduced, whole = source(True), source(False)
    crop = v2.RandomResizedCrop(size, CROP, antialias=True)
    draw = torch.Generator().manual_seed(0)

    def read(row: int) -> torch.Tensor:
        return decode_jpeg(read_file(str(root / names[row])))

    return {
        "torchvision": read,
        "torchvision crop": lambda row: crop(read(row)),
        "crop, whole": lambda row: whole.crops("train", [row], [draw]),
        "crop": lambda row: reduced.crops("train", [row], [draw]),
        "two crops": lambda row: reduced.crops("train", [row], [draw], views=2),
        "centre": lambda row: reduced.images("train", [row]),
    }


def load(root: Path, size: int, workers: int, batch: int) -> DataLoader[Batch]:
    """Return the training batches of one epoch over the images, again and again."""
    data = LongTailDataModule(
        "lists",
        str(root),
        profile="natural",
        val_fraction=0,
        batch_size=batch,
        image_size=size,
        decoding=Decoding(random_crop=CROP),
        num_workers=workers,
    )
    data.setup()
    return data.train_dataloader()


def measure(args: argparse.Namespace, root: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return images per second of each, wall and processor time, repeat by repeat."""
    found: dict[str, dict[str, list[float]]] = {}

    def note(name: str, images: int, since: tuple[float, float]) -> None:
        rates = found.setdefault(name, {"wall": [], "processor": []})
        rates["wall"].append(images / (time.perf_counter() - since[0]))
        if not name.startswith("loader"):  # whose workers have clocks of their own
            rates["processor"].append(images / (time.process_time() - since[1]))

    rivals = tasks(root, names, args.size)
    draws = np.random.default_rng(0)
    for repeat in range(args.repeats + 1):
        rows = draws.choice(len(names), min(args.images_per_repeat, len(names)), replace=False)
        for name, task in rivals.items():
            since = time.perf_counter(), time.process_time()
            for row in rows.tolist():
                task(row)
            if repeat:  # the first is a warm-up
                note(name, len(rows), since)
    for workers in args.workers:
        loader = load(root, args.size, workers, args.batch)
        for repeat in range(args.repeats + 1):
            # From the first job to the last batch, so that nothing is loaded ahead.
            since = time.perf_counter(), time.process_time()
            seen = sum(len(batch["label"]) for batch in loader)
            if repeat:
                note(f"loader, workers: {workers}", seen, since)
    return {
        name: {clock: median(rates) for clock, rates in clocks.items() if rates}
        for name, clocks in found.items()
    }


def report(args: argparse.Namespace, root: Path, names: Sequence[str]) -> dict[str, Any]:
    """Measure, and lay out what was measured."""
    rates = measure(args, root, names)
    sizes = [size_of(root / name) for name in names]
    limit = rates["torchvision"]
    return {
        "ratios": {
            f"{name} / torchvision": {clock: rates[name][clock] / limit[clock] for clock in limit}
            for name in ("torchvision crop", "crop, whole", "crop", "two crops", "centre")
        },
        "images_per_second": rates,
        "setting": {
            "images": args.images.name if args.images else "noise like photographs",
            "number": len(names),
            "median_width": median(width for width, _ in sizes),
            "median_height": median(height for _, height in sizes),
            "median_bytes": median((root / name).stat().st_size for name in names),
            "size": args.size,
            "random_crop": CROP,
        },
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **records.versions()},
        "git": records.git_state(ROOT),
    }


def table(result: dict[str, Any]) -> Table:
    """Lay out a report for people."""
    setting, machine = result["setting"], result["machine"]
    laid = Table(
        title=f"Decoding: {setting['images']}, {setting['median_width']} x "
        f"{setting['median_height']} to {setting['size']}, {machine['cpu']}",
        caption=f"load average at the end {machine['load'][0]:.1f}",
    )
    laid.add_column("images/s and thread, or all workers")
    for heading in ("wall time", "processor time"):
        laid.add_column(heading, justify="right")
    for name, rates in result["images_per_second"].items():
        laid.add_row(name, *(f"{rate:,.0f}" for rate in rates.values()))
    return laid


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description="Decoding speed against torchvision's decoder.")
    parser.add_argument("--images", type=Path, help="folder of JPEG files; default: made of noise")
    parser.add_argument("--number", type=int, default=256, help="images to take, or to make")
    parser.add_argument("--made", type=int, nargs=2, default=(500, 375), help="their size")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images-per-repeat", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        root = Path(home)
        if args.images:
            paths = [p for p in image_files(args.images) if p.suffix.lower() in (".jpg", ".jpeg")]
            order = seeding.generator("cpu", 0, "images")
            for row in torch.randperm(len(paths), generator=order)[: args.number].tolist():
                (root / f"{row}.jpg").symlink_to(paths[row].resolve())
        else:
            photographs(root, args.number, tuple(args.made))
        names = sorted(path.name for path in root.glob("*.jpg"))
        (root / "train.txt").write_text("\n".join(f"{name} 0" for name in names))
        result = report(args, root, names)
    Console().print(table(result))
    records.write_whole(
        args.output, lambda file: file.write(f"{json.dumps(result, indent=1)}\n".encode())
    )
    Console().print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
