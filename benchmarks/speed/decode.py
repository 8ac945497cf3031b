"""How many JPEG files a second does one worker bring to squares, against torchvision's decoder?

One thread, as in a worker of the loader, and files that lie in the page cache:

* ``torchvision``: torchvision's decoder alone, the whole image: the limit without reduced sizes;
* ``torchvision crop``: the same and a random resized crop, the usual pipeline;
* ``crop, whole``: the project's random crops without reduced sizes;
* ``crop``: with them, as in training: a half, a quarter or an eighth where the box is large enough;
* ``two crops``: two views of an image, decoded once;
* ``centre``: resized to 256 and cut, as in evaluation.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from timing import Candidate, Parser, report, take_turns
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import v2

from ltbench import seeding
from ltbench.data.sources.decoding import Decoding
from ltbench.data.sources.files import FileSource
from ltbench.data.sources.folder import image_files
from ltbench.data.sources.lists import Lists

CROP = (0.08, 1.0)


def add_arguments(parser: Parser) -> None:
    """Say which images."""
    parser.add_argument("--number", type=int, default=256, help="images to take, or to make")
    parser.add_argument("--made", type=int, nargs=2, default=(500, 375), help="their size")
    parser.add_argument("--size", type=int, default=224)


@contextmanager
def listed_images(root: Path | None, number: int, made: Sequence[int]) -> Iterator[Path]:
    """Open a folder of some JPEG files that ``train.txt`` lists."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        if root:
            paths = [p for p in image_files(root) if p.suffix.lower() in (".jpg", ".jpeg")]
            order = torch.randperm(len(paths), generator=seeding.generator("cpu", 0, "images"))
            for row in order[:number].tolist():
                (folder / f"{row}.jpg").symlink_to(paths[row].resolve())
        else:
            photographs(folder, number, *made)
        names = sorted(path.name for path in folder.glob("*.jpg"))
        lines = (f"{name} {row % 2}" for row, name in enumerate(names))  # a label is needed
        (folder / "train.txt").write_text("\n".join(lines))
        yield folder


def photographs(folder: Path, count: int, width: int, height: int) -> None:
    """Write JPEG files of noise whose power falls with the frequency, as that of photographs."""
    draws = np.random.default_rng(0)
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


def describe(folder: Path) -> dict[str, float]:
    """Return the size of the files."""
    sizes, files = [], sorted(folder.glob("*.jpg"))
    for path in files:
        with Image.open(path) as image:
            sizes.append(image.size)
    return {
        "number": len(files),
        "median_width": median(width for width, _ in sizes),
        "median_height": median(height for _, height in sizes),
        "median_bytes": median(path.stat().st_size for path in files),
    }


def decoders(folder: Path, size: int) -> dict[str, Callable[[int], object]]:
    """Name -> what is done to the image of a row."""

    def source(reduced: bool) -> FileSource:
        return Lists(folder, size, decoding=Decoding(round(size / 0.875), CROP, reduced=reduced))

    names = sorted(path.name for path in folder.glob("*.jpg"))
    reduced, whole = source(True), source(False)
    crop = v2.RandomResizedCrop(size, CROP, antialias=True)
    draw = torch.Generator().manual_seed(0)

    def read(row: int) -> torch.Tensor:
        return decode_jpeg(read_file(str(folder / names[row])))

    return {
        "torchvision": read,
        "torchvision crop": lambda row: crop(read(row)),
        "crop, whole": lambda row: whole.crops("train", [row], [draw]),
        "crop": lambda row: reduced.crops("train", [row], [draw]),
        "two crops": lambda row: reduced.crops("train", [row], [draw], views=2),
        "centre": lambda row: reduced.images("train", [row]),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__)
    add_arguments(parser)
    parser.add_argument("--images-per-repeat", type=int, default=64)
    parser.set_defaults(threads=1)
    args = parser.parse_args(words)
    with listed_images(args.root, args.number, args.made) as folder:
        found = describe(folder)
        each = min(args.images_per_repeat, int(found["number"]))
        rows = torch.randperm(int(found["number"]))[:each].tolist()

        def all_rows(decode: Callable[[int], object]) -> Candidate:
            return lambda: [decode(row) for row in rows]

        rounds = take_turns(
            {name: all_rows(decode) for name, decode in decoders(folder, args.size).items()},
            args.repeats,
            work=each,
        )
    answer = [
        rounds.row(
            f"images/s, {name} / {limit}",
            lambda s, name=name, limit=limit: s[limit] / s[name],
        )
        for name, limit in [
            ("crop", "torchvision crop"),
            *((name, "torchvision") for name in rounds.repeats[0] if name != "torchvision"),
        ]
    ]
    images = args.root.name if args.root else "noise like photographs"
    report(args, answer, rounds, unit="images/s", images=images, size=args.size, crop=CROP, **found)


if __name__ == "__main__":
    main()
